"""``python -m validation.llama_cpp.compare``: the same word problems, answered greedily by both engines, text by text.

Both are asked through the suite's own client and its OpenAI backend, one request at a time. The embedded engine
computes in bfloat16 and llama.cpp in float32, so a text may part where two tokens are nearly equally likely; a mistake
in the rotation, the softmax scale or the indexer would part them in the first words.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from validation.arms import CommandArm, Place, embedded_arm
from validation.client import Backend, Job, run_load
from validation.discovery import ROOT, load_all
from validation.provenance import provenance
from validation.records import Request
from validation.scenario import AccuracyScenario, scenario_named

BACKEND = "openai_completions"
SCENARIO = "word-problems"
QUESTIONS = 200
OUTPUT = ROOT / "baselines" / "llama_cpp" / "texts.json"
_SHOWN = 60
"""Characters of each text that a divergence shows, from where they part."""


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Where two texts of one question part."""

    index: int
    character: int
    """Characters that both have in common."""
    engine: str
    llama_cpp: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What both engines said to the same questions."""

    questions: int
    identical: int
    divergences: tuple[Divergence, ...]
    tokens: tuple[int, ...]
    """Of each question, prompt and answer, as the engine counted them: beyond the indexer's top-k it must choose."""
    engine: dict[str, Any]
    llama_cpp: dict[str, Any]
    """What each server says of itself."""


def compare_texts(engine: Sequence[str], llama_cpp: Sequence[str]) -> tuple[Divergence, ...]:
    """The questions whose texts differ.

    Raises:
        ValueError: the texts are not of the same questions.
    """
    found = []
    for index, (one, other) in enumerate(zip(engine, llama_cpp, strict=True)):
        if one == other:
            continue
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        found.append(Divergence(index, same, one[same : same + _SHOWN], other[same : same + _SHOWN]))
    return tuple(found)


def llama_cpp_arm(*options: str) -> CommandArm:
    """llama.cpp with the engine's checkpoint, in a process of its own."""
    command = " ".join([sys.executable, "-m", "validation.llama_cpp", *options, "--port {port}"])
    return CommandArm("llama_cpp", command, ready_timeout_s=120.0)


def ask(arm: CommandArm, count: int, logdir: pathlib.Path) -> tuple[list[Request], dict[str, Any]]:
    """The answers of one server to the first ``count`` word problems, and what it says of itself.

    Raises:
        ArmError: it does not start.
        RuntimeError: a request failed.
    """
    scenario = scenario_named(SCENARIO, AccuracyScenario)
    _, questions, _ = scenario.questions_of(None, count)
    backend: Backend = load_all("scenarios/backends", "BACKEND")[BACKEND]
    jobs = [Job(*asked, arm.name, arm.name, 0, 0, SCENARIO, i) for i, asked in enumerate(scenario.jobs(questions))]
    answers: dict[int, Request] = {}
    with arm.session(Place(logdir), lambda line: None) as server:
        run_load(server.url, backend, jobs, 1, lambda request: answers.update({request.index: request}))
        told = dict(server.identity["server"])
    failed = [request for request in answers.values() if request.error is not None]
    if failed:
        raise RuntimeError(f"{arm.name}: {len(failed)} of {count} requests failed, the first: {failed[0].error}")
    return [answers[index] for index in range(count)], told


def compare(count: int, *options: str) -> Comparison:
    """Ask the engine and then llama.cpp, which gets ``options``."""
    with tempfile.TemporaryDirectory() as folder:
        engine, engine_told = ask(embedded_arm("engine", "skip", "--device", "cpu"), count, pathlib.Path(folder))
        llama_cpp, llama_cpp_told = ask(llama_cpp_arm(*options), count, pathlib.Path(folder))
    divergences = compare_texts([r.text for r in engine], [r.text for r in llama_cpp])
    tokens = tuple((r.prompt_tokens or 0) + (r.output_tokens or 0) for r in engine)
    return Comparison(count, count - len(divergences), divergences, tokens, engine_told, llama_cpp_told)


def main(arguments: Sequence[str]) -> int:
    """Compare and write the result; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m validation.llama_cpp.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    found = compare(options.questions)
    topk = found.engine["get_server_info"]["index_topk"]
    data = {
        "what": "greedy texts of the same word problems: embedded engine (bfloat16) against llama.cpp (float32)",
        "command": f"python -m validation.llama_cpp.compare --questions {options.questions}",
        "backend": BACKEND,
        "scenario": SCENARIO,
        "questions": found.questions,
        "identical": found.identical,
        "divergences": [dataclasses.asdict(divergence) for divergence in found.divergences],
        "index_topk": topk,
        "questions_longer_than_topk": sum(tokens > topk for tokens in found.tokens),
        "longest_tokens": max(found.tokens),
        "engine": {"get_server_info": found.engine["get_server_info"]},
        "llama_cpp": {"xllamacpp": importlib.metadata.version("xllamacpp"), **found.llama_cpp},
        "provenance": provenance(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{found.identical} of {found.questions} texts are identical: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
