"""An arm: one build that can be started, measured and stopped: the embedded engine, an installed server, a URL.

A command arm is started afresh for every block; its command is a template with ``{port}``, ``{gpus}``, ``{logdir}`` and
``{image}``.
A URL arm was started by somebody else: it cannot be restarted, so its launch effect cannot be separated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import random
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import requests

from validation.builds import Build
from validation.client.identity import changes, read_identity
from validation.client.redaction import MASK, Secret, redact
from validation.server_process import STOP_TIMEOUT_S as STOP_TIMEOUT_S
from validation.server_process import ArmError as ArmError
from validation.server_process import ServerChangedError as ServerChangedError
from validation.server_process import Surroundings, node_lock, spawn, stop, words_of, write_holder

READY_TIMEOUT_S = 40 * 60.0
"""Large models take up to 40 minutes to load."""
MEMORY_SLACK_MIB = 1024
"""GPU memory that may stay in use after a stop: a driver's context, not a model."""
PROBE_TIMEOUT_S = 10.0
PORTS = range(20_000, 32_000)
TELL_EVERY_S = 10.0
_INFO = ("/get_server_info", "/server_info", "/get_model_info", "/version", "/v1/models")
LOG_END_BYTES = 4096
_TEMPLATE_NAMES = ("port", "gpus", "logdir", "image")
_DECODING = (
    "tp_size",
    "pp_size",
    "dp_size",
    "ep_size",
    "speculative_algorithm",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
)
"""SGLang's names for what changes how many tokens a step brings, and what a step is."""
_SECRET_KEY = re.compile(r"(api_key|password|secret)\Z")
"""Names under which servers tell the secrets that they were started with, SGLang among them."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an arm may run."""

    logdir: pathlib.Path
    gpus: str = ""
    """Device numbers for ``{gpus}``, e.g. ``0,1``."""


class Arm(Protocol):
    """One build. ``session`` starts it, waits until it is ready, and stops it on exit, whatever happens."""

    @property
    def name(self) -> str:
        """``baseline``, ``candidate`` or ``control``."""

    @property
    def fresh(self) -> bool:
        """Whether every session is a launch of its own."""

    def session(self, place: Place, progress: Callable[[str], None]) -> contextlib.AbstractContextManager[Server]:
        """A running server for the ``with`` block."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    ready_s: float
    identity: Mapping[str, Any]
    """What it says of itself, and how it was started."""


@dataclasses.dataclass(frozen=True)
class CommandArm:
    """A build behind a command line.

    ``stop_command`` ends what ending the client would leave running, such as a container.
    """

    name: str
    command: str
    stop_command: str = ""
    ready_timeout_s: float = READY_TIMEOUT_S
    stop_timeout_s: float = STOP_TIMEOUT_S
    """For the stop command, and again until the process group has ended, and until its memory is free."""
    fresh: bool = True
    label: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For its identity, beside what is found out."""
    build: Build = dataclasses.field(default_factory=Build)
    """What it is: its commands run in the build's worktree and environment."""
    api_key: Secret | None = None

    def __post_init__(self) -> None:
        for template in (self.command, self.stop_command):
            check_template(template, self.name)

    @contextlib.contextmanager
    def session(self, place: Place, progress: Callable[[str], None]) -> Iterator[Server]:
        """Start, wait, identify; stop and see the memory freed on exit. One arm of a node at a time.

        Raises:
            ArmError: it does not start, become ready, stop, or free its memory, or its build cannot be read.
        """
        with node_lock(progress) as holder:
            place.logdir.mkdir(parents=True, exist_ok=True)
            values = {
                "port": str(free_port()),
                "gpus": place.gpus,
                "logdir": str(place.logdir.resolve()),
                "image": self.build.image,
            }
            identity = {"command": self.command, **self.label, **self._said(place)}
            where = Surroundings(self.build.worktree, self.build.variables())
            url = f"http://127.0.0.1:{values['port']}"
            log = place.logdir / f"{self.name}.log"
            before = gpu_memory_mib()
            started = time.monotonic()
            process = spawn(words_of(self.command, values), log, where)
            try:
                write_holder(holder, process.pid)
                wait_ready(url, self.ready_timeout_s, process, log, progress, self.api_key)
                ready_s = time.monotonic() - started
                identity |= {"log": log.name, **described(url, self.api_key)}
                yield Server(url, round(ready_s, 3), redact(identity, self.api_key))
            finally:
                try:
                    stop(process, words_of(self.stop_command, values), log, self.stop_timeout_s, where)
                finally:
                    hide_key(log, self.api_key)
            _wait_memory_free(before, self.name, self.stop_timeout_s)

    def _said(self, place: Place) -> dict[str, Any]:
        try:
            build = self.build.identity()
        except ValueError as error:
            raise ArmError(f"{self.name}: {error}") from None
        return {**({"build": build} if build else {}), **({"gpus": place.gpus} if place.gpus else {})}


@dataclasses.dataclass(frozen=True)
class UrlArm:
    """A server somebody else started. Its identity is read at the start and at the end of every session."""

    name: str
    url: str
    fresh: bool = False
    api_key: Secret | None = None

    @contextlib.contextmanager
    def session(self, place: Place, progress: Callable[[str], None]) -> Iterator[Server]:
        """The server as it is.

        Raises:
            ArmError: it does not answer.
            ServerChangedError: another model or build answers at the end than at the start.
        """
        started = time.monotonic()
        url = self.url.rstrip("/")
        wait_ready(url, PROBE_TIMEOUT_S, None, None, progress, self.api_key)
        identity = {"url": redacted(url), **described(url, self.api_key)}
        yield Server(url, round(time.monotonic() - started, 3), identity)
        became = changes(identity["serves"], read_identity(url, self.api_key))
        if became:
            raise ServerChangedError(
                f"{self.name} at {redacted(url)} is another server at the end than at the start ({became}); expected "
                "one model and build, measure again"
            )


def embedded_arm(name: str, query_path: str, *options: str) -> CommandArm:
    """The embedded engine with one query path, in a process of its own."""
    words = (sys.executable, "-m", "validation.engine", "--query-path", query_path, *options)
    command = f"{' '.join(shlex.quote(word) for word in words)} --port {{port}}"
    return CommandArm(name, command, ready_timeout_s=120.0, label={"engine": "embedded", "query_path": query_path})


def check_template(template: str, option: str) -> None:
    """Raise ``ValueError`` unless ``template`` uses only the known names in braces."""
    try:
        template.format(**dict.fromkeys(_TEMPLATE_NAMES, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{option}: command {template!r} cannot be filled in ({error}); expected only "
            f"{', '.join('{' + name + '}' for name in _TEMPLATE_NAMES)}, and double braces for literal ones"
        ) from error


def check_url(url: str, option: str) -> str:
    """``url`` without a trailing slash; raises ``ValueError`` unless it is plain http with a host and no more."""
    example = "http://127.0.0.1:30000"
    try:
        parts = urllib.parse.urlsplit(url)
        missing = not parts.hostname or (parts.port or 1) < 1
    except ValueError as error:  # no port number, or broken brackets
        raise ValueError(f"{option} is no URL ({error}); expected something like {example}") from None
    if parts.scheme not in ("http", "https") or missing:
        raise ValueError(f"{option} {redacted(url)} has no scheme or host; expected something like {example}")
    if parts.scheme == "https":
        raise ValueError(
            f"{option} {redacted(url)} is https, which the client does not speak because it would time the encryption "
            f"too; expected {example}, or a tunnel to it"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"{option} {redacted(url)} holds more than an address; expected {example}, and a key in --api-key"
        )
    return url.rstrip("/")


def redacted(url: str) -> str:
    """``url`` without user name, password and query."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def free_port() -> int:
    """A port that nobody listens on now, below Linux's ephemeral range.

    SGLang opens a second one 10000 above it, which must exist too.
    """
    ports = list(PORTS)
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ArmError(f"every port from {PORTS.start} to {PORTS.stop - 1} is taken; free one")


def wait_ready(
    url: str,
    timeout_s: float,
    process: subprocess.Popen[bytes] | None,
    log: pathlib.Path | None,
    progress: Callable[[str], None],
    api_key: Secret | None = None,
) -> None:
    """Return once ``url`` answers a health request with 200.

    Raises:
        ArmError: its process ended, or ``timeout_s`` passed.
    """
    started = told = time.monotonic()
    while True:
        where = f"; its log is {log}" if log else ""
        if process is not None and process.poll() is not None:  # first: somebody else may answer on its port
            hide_key(log, api_key)
            raise ArmError(
                f"the server of {redacted(url)} ended with status {process.returncode} before it was ready{where}"
                f"{_tail(log, api_key)}"
            )
        if _is_ready(url, api_key):
            return
        waited = time.monotonic() - started
        if waited > timeout_s:
            raise ArmError(
                f"no server answered at {redacted(url)} within {timeout_s:.0f} s{where}{_tail(log, api_key)}"
            )
        if process is None:
            raise ArmError(f"no server answers at {redacted(url)}; start it, or give the URL of one that runs")
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            progress(f"waiting for {redacted(url)}: {waited:.0f} of at most {timeout_s:.0f} s{_tail(log, api_key)}")
        time.sleep(min(0.05 + waited / 20, 2.0))


def _is_ready(url: str, api_key: Secret | None) -> bool:
    """Whether ``/health`` answers 200; a server without that route is asked for its models instead.

    A server that has the route answers something else while it warms up, when it may name its models already.
    """
    answer = _ask("GET", url + "/health", api_key)
    if answer is None:
        return False
    return answer.status_code == 200 or (answer.status_code == 404 and _get(url + "/v1/models", api_key) is not None)


def described(url: str, api_key: Secret | None = None) -> dict[str, Any]:
    """The part of an identity that the server tells: ``serves`` (model and build, compared during the run),
    ``decoding`` (parallelism and speculation) and all else as ``server``."""
    server = describe(url, api_key)
    info = server.get("get_server_info") or server.get("server_info")
    decoding = {key: info[key] for key in _DECODING if key in info} if isinstance(info, Mapping) else {}
    serves = read_identity(url, api_key)
    return {"serves": serves, **({"decoding": decoding} if decoding else {}), "server": server}


def describe(url: str, api_key: Secret | None = None) -> dict[str, Any]:
    """What the server says of itself, route by route, without secrets; routes it lacks are left out."""
    found = {route.strip("/").replace("/", "_"): _get(url + route, api_key) for route in _INFO}
    return {route: _without_secrets(redact(answer, api_key)) for route, answer in found.items() if answer}


def _without_secrets(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        return {
            key: MASK if value and isinstance(value, str) and _SECRET_KEY.search(key) else _without_secrets(value)
            for key, value in answer.items()
        }
    return [_without_secrets(item) for item in answer] if isinstance(answer, list) else answer


def reset_caches(url: str, api_key: Secret | None = None) -> bool:
    """Ask the server to forget cached prefixes; False where it has no such route or refuses."""
    answer = _ask("POST", url + "/flush_cache", api_key)
    return answer is not None and answer.status_code == 200


def gpu_memory_mib() -> dict[str, int]:
    """Memory in use on each GPU in MiB, by the vendor's tool; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return {index.strip(): int(used) for index, used in (line.split(",") for line in output.splitlines())}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, KeyError):
        query = ["rocm-smi", "--showmeminfo", "vram", "--json"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        cards = json.loads(output)
        return {card: int(info["VRAM Total Used Memory (B)"]) >> 20 for card, info in cards.items()}
    return {}


def hide_key(log: pathlib.Path | None, api_key: Secret | None) -> None:
    """Take the key out of a log: servers write their arguments there."""
    if log is not None and api_key is not None and log.exists():
        log.write_bytes(api_key.redact_bytes(log.read_bytes()))


def _wait_memory_free(before: Mapping[str, int], name: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        held = {gpu: used for gpu, used in gpu_memory_mib().items() if used > before.get(gpu, 0) + MEMORY_SLACK_MIB}
        if not held:
            return
        if time.monotonic() > deadline:
            raise ArmError(
                f"{name} was stopped, but memory is still in use (MiB per GPU: {held}); expected {dict(before)}"
            )
        time.sleep(min(0.5, timeout_s / 10))


def _ask(method: str, url: str, api_key: Secret | None) -> requests.Response | None:
    """The answer, or None where there is none. Redirects are not followed, and no proxy or netrc is used: the servers
    are on this machine or near it, and the key is for them alone."""
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {api_key.value}"} if api_key else {}
        try:
            return session.request(method, url, headers=headers, timeout=PROBE_TIMEOUT_S, allow_redirects=False)
        except requests.RequestException:
            return None


def _get(url: str, api_key: Secret | None = None) -> Any:
    """The JSON (or text) behind ``url``, or None unless it answers 200."""
    answer = _ask("GET", url, api_key)
    if answer is None or answer.status_code != 200:
        return None
    try:
        return answer.json()
    except ValueError:
        return answer.text[:200] or "ok"


def _tail(log: pathlib.Path | None, api_key: Secret | None) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        skipped = max(0, log.stat().st_size - LOG_END_BYTES)
        file.seek(skipped)
        text = file.read().decode("utf-8", "replace")
    lines = (api_key.redact(text) if api_key else text).strip().splitlines()[1 if skipped else 0 :]  # whole ones
    return f"; its last line: {lines[-1][:300]}" if lines else ""
