"""Asks a running server for profiler traces of a few decode steps, by SGLang's ``/start_profile``.

The server writes the files itself, so the folder must lie on a file system that both see.
Routes and file names: sglang 0.5.12, srt/managers/scheduler_profiler_mixin.py and srt/entrypoints/http_server.py.
"""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import random
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from validation.arms import redacted
from validation.client.redaction import Secret
from validation.judging.trace import TraceClaim
from validation.records import Note
from validation.traces.counts import count_ranks
from validation.traces.reader import Profiler, TraceError

DEFAULT_STEPS = 6
"""Decode steps of one trace: enough to see that each is like the others, and a file of below 1 MB a rank."""
PROMPTS = 16
PROMPT_TOKENS = 32
SPARE_TOKENS = 8
"""Generated beyond the profiled steps: the prefill, and the step in which the server notices that it has enough."""
TOKEN_IDS = range(10, 250)
"""Every tokenizer has these; a server without one (``--skip-tokenizer-init``) takes ids too."""
ANSWER_TIMEOUT_S = 300.0
"""A profiled server stops for its export: about a minute on a large model's eight ranks (ours)."""
WRITTEN_WITHIN_S = 120.0
"""After the generation: the other ranks' exports (ours)."""
POLL_S = 0.1
_BLOCK = 1 << 20


class ProfileError(RuntimeError):
    """No trace could be had; the message says what the server answered and what to do."""


def collect_traces(
    url: str,
    folder: pathlib.Path,
    steps: int = DEFAULT_STEPS,
    api_key: Secret | None = None,
    *,
    timeout_s: float = WRITTEN_WITHIN_S,
) -> list[pathlib.Path]:
    """Profile ``steps`` decode steps of the server at ``url`` during a short generation of its own.

    Returns the traces that the server wrote into ``folder``, one a rank, complete and in order of name; where it writes
    a file a stage, only those of decode.

    Raises:
        ProfileError: the server has no ``/start_profile``, or no complete file of every rank appeared in time.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    start = {"output_dir": str(folder), "num_steps": steps, "activities": ["CPU", "GPU"], "profile_by_stage": True}
    with requests.Session() as session:
        session.headers.update({"Authorization": f"Bearer {api_key.value}"} if api_key else {})
        ranks = _ranks(session, url)
        _post(session, url, "/start_profile", start)
        try:
            _post(session, url, "/generate", _generation(steps))
        finally:
            # it has stopped by itself once it had its steps, and then refuses; else this makes it write what it has
            stopped = _try_post(session, url, "/stop_profile")
    deadline = time.monotonic() + timeout_s
    while True:
        found = _of_decode(sorted(set(folder.glob("*.json*")) - before))
        complete = [path for path in found if _is_complete(path)]
        if len(complete) >= ranks:
            return complete
        if time.monotonic() > deadline:
            raise ProfileError(
                f"{len(complete)} of {ranks} traces appeared in {folder} within {timeout_s:g} s, and /stop_profile "
                f"answered {stopped!r:.200}; the server at {redacted(url)} must write to a folder seen from here"
            )
        time.sleep(POLL_S)


def profile_launch(
    url: str,
    arm: str,
    folder: pathlib.Path,
    claim: TraceClaim,
    api_key: Secret | None = None,
    *,
    steps: int = DEFAULT_STEPS,
    timeout_s: float = WRITTEN_WITHIN_S,
) -> Note:
    """Collect the traces of one launch of ``arm`` and count their kernels: a note to journal, whatever happens.

    Its topic is as ``count_collected``'s, or ``trace_not_collected`` with the reason.
    """
    try:
        files = collect_traces(url, folder, steps, api_key, timeout_s=timeout_s)
    except ProfileError as error:
        return Note("trace_not_collected", str(error), {"arm": arm})
    return count_collected(arm, files, claim)


def count_collected(arm: str, files: Sequence[pathlib.Path], claim: TraceClaim) -> Note:
    """The kernels of one arm's traces as a note to journal and judge.

    Its topic is ``trace_counts``; ``trace_unreadable`` where a file is broken; ``trace_without_kernels`` where nothing
    ran on a GPU: the operators of a CPU are no kernels, and comparing them would judge another claim.
    """
    try:
        ranks = [rank for file in files for rank in count_ranks(file, claim)]
    except TraceError as error:
        return Note("trace_unreadable", str(error), {"arm": arm})
    if ranks and all(rank.profiler == Profiler.CPU.value for rank in ranks):
        sentence = f"the traces of {arm} hold no GPU kernel, so the removed one cannot be counted; profile it on a GPU"
        return Note("trace_without_kernels", sentence, {"arm": arm, "files": [rank.source for rank in ranks]})
    data = {"arm": arm, "claim": dataclasses.asdict(claim), "ranks": [dataclasses.asdict(rank) for rank in ranks]}
    return Note("trace_counts", f"kernels of {len(ranks)} ranks of {arm} were counted", data)


def _generation(steps: int) -> dict[str, Any]:
    """A batch of prompts of its own, each longer than the profile."""
    numbers = random.Random(0)
    prompts = [[numbers.choice(TOKEN_IDS) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    params = {"max_new_tokens": steps + SPARE_TOKENS, "temperature": 0.0, "ignore_eos": True}
    return {"input_ids": prompts, "sampling_params": params}


def _ranks(session: requests.Session, url: str) -> int:
    """How many files the server will write: its tensor parallel size, 1 where it does not say."""
    try:
        answer = session.get(url + "/get_server_info", timeout=ANSWER_TIMEOUT_S, allow_redirects=False)
        info: Any = answer.json() if answer.status_code == 200 else {}
    except (requests.RequestException, ValueError):
        return 1
    size = info.get("tp_size") if isinstance(info, Mapping) else None
    return size if isinstance(size, int) and size > 0 else 1


def _post(session: requests.Session, url: str, route: str, body: Mapping[str, Any]) -> None:
    try:
        answer = session.post(url + route, json=body, timeout=ANSWER_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise ProfileError(f"{redacted(url)}{route} did not answer ({type(error).__name__}); is it running?") from error
    if answer.status_code != 200:
        raise ProfileError(
            f"{redacted(url)}{route} answered {answer.status_code} {answer.text[:200]!r}; expected a server with "
            "SGLang's profiler routes, or give traces with --baseline-trace and --candidate-trace"
        )


def _try_post(session: requests.Session, url: str, route: str) -> str:
    try:
        answer = session.post(url + route, timeout=ANSWER_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return f"{answer.status_code} {answer.text[:200]}"


def _of_decode(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Without the other stages' files, where there is one a stage."""
    stages = [path for path in paths if "-DECODE." in path.name]
    return stages or [path for path in paths if "-EXTEND." not in path.name]


def _is_complete(path: pathlib.Path) -> bool:
    """Whether the writer has finished: the compressed stream has its end, and the text ends its object."""
    last = b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(_BLOCK):
                last = (last + block)[-64:]
    except (OSError, EOFError, zlib.error):
        return False
    return last.rstrip().endswith(b"}")
