"""Experiments on fake arms, and what their journals must hold."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from validation.e2e import Experiment
from validation.e2e_setup import plan_of
from validation.options import Settings
from validation.profiles import Profile
from validation.records import Journal, Launch, Question, Record, Request, Run, ScenarioRun, read_run

FAKE_ARM = pathlib.Path(__file__).with_name("fake_arm.py")
BLOCKS = 6
QUESTIONS = 8


def command(*options: str) -> str:
    """The fake arm as ``--candidate-cmd`` takes it."""
    return f"{shlex.join([sys.executable, '-I', '-S', str(FAKE_ARM)])} {{port}} {shlex.join(options)}"


def settings(**given: Any) -> Settings:
    """Two fake arms, a few questions; fields of no interest are None."""
    nothing = {field.name: None for field in dataclasses.fields(Settings)}
    usual = {
        "profile": Profile.PR,
        "seed": 1,
        "baseline_cmd": command(),
        "candidate_cmd": command(),
        "baseline_stop_cmd": "",
        "candidate_stop_cmd": "",
        "backend": "sglang_native",
        "questions": QUESTIONS,
        "scenarios": ("rehearsal-c1",),
        "accuracy_scenario": "word-problems",
        "runs": BLOCKS,
        "gpus": "",
    }
    return Settings(**{**nothing, **usual, **given})


def experiment(
    folder: pathlib.Path,
    options: Settings,
    done: Sequence[Record] = (),
    told: list[str] | None = None,
    kind: type[Experiment] = Experiment,
) -> Experiment:
    """A new experiment in ``folder``; what it says goes to ``told``."""
    journal = Journal(folder / "raw" / "main.jsonl")
    told = [] if told is None else told
    return kind(options, plan_of(options), folder, journal, told.append, done)


def records_of(folder: pathlib.Path) -> list[Record]:
    """What the run's journal holds on disk."""
    return read_run(folder)


def places(records: Sequence[Record]) -> collections.Counter[tuple[Any, ...]]:
    """How often each launch, request, scenario run and question was recorded; launches by arm and block."""
    found: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for r in records:
        if isinstance(r, Launch):
            found["launch", r.arm, r.block, r.position] += 1
        elif isinstance(r, Request):
            found["request", r.arm, r.block, r.run, r.scenario, r.index, r.text, r.error] += 1
        elif isinstance(r, ScenarioRun):
            found["scenario_run", r.arm, r.block, r.run, r.scenario, r.prompts_sha256] += 1
        elif isinstance(r, Question):
            found["question", r.scenario, r.index] += 1
        elif isinstance(r, Run):
            found["run", r.run_id] += 1
    return found
