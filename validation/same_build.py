"""A recorded same-build run (A/A): how much two launches of one build differ on this hardware, for later verdicts.

It sizes the plan, calibrates the harness, and gives "within run-to-run variance" its measure. A run is one when both of
its arms started the same build: by what its launches say of their builds, or where they say nothing by the caller's
word.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from validation.budget import costs_of
from validation.builds import is_one_build, said
from validation.e2e_plan import BASELINE, CANDIDATE, E2EPlan
from validation.gsm8k import SCORERS
from validation.judging.accuracy_arms import record_accuracy
from validation.judging.latency import measure_blocks
from validation.judging.plan_latency import prefers_quadruples
from validation.judging.same_build import judge_same_build
from validation.judging.tpot import measure_runs
from validation.judging.variance import components
from validation.records import Question, Record, RecordError, Request, Run, ScenarioRun, read_run

ARMS = (BASELINE, CANDIDATE)


def read_same_build(folder: pathlib.Path, plan: E2EPlan) -> tuple[E2EPlan, dict[str, Any]]:
    """``plan`` with the recorded launch sd and same-build runs, and what the judges need of the record, as JSON data.

    Raises:
        RecordError: the folder holds no run, or one of two builds.
    """
    records = read_run(folder)
    recorded = E2EPlan.from_json(_header(records, folder).declared["e2e"])
    _refuse_two_builds(recorded, folder)
    data: dict[str, Any] = {"source": folder.name, "latency": None, "accuracy": None}
    wanted = [r for r in records if not isinstance(r, Request | ScenarioRun) or r.scenario in plan.latency_scenarios]
    runs, blocks = measure_blocks(wanted, candidate=CANDIDATE, baseline=BASELINE)
    latency = plan.latency
    if blocks:
        data["latency"] = judge_same_build(blocks, plan.latency, runs=runs).to_json()
        launch_sd = costs_of(wanted, folder.name, ARMS).launch_sd
        if launch_sd is not None:
            latency = dataclasses.replace(latency, recorded_launch_sd=launch_sd)
    accuracy = plan.accuracy
    questions = [r for r in records if isinstance(r, Question) and r.scenario == plan.accuracy_scenario]
    if questions and recorded.questions_sha256 == plan.questions_sha256:
        requests = [r for r in records if isinstance(r, Request)]
        arms = [
            record_accuracy(
                requests,
                questions,
                dataclasses.replace(plan.accuracy, candidate=arm, reference=None),
                SCORERS[plan.accuracy.extractor],
                folder.name,
            )
            for arm in ARMS
        ]
        together = dataclasses.replace(arms[0], runs=arms[0].runs + arms[1].runs)
        data["accuracy"] = together.to_json()
        accuracy = dataclasses.replace(accuracy, same_build_runs=len(together.runs))
    return dataclasses.replace(plan, latency=latency, accuracy=accuracy), data


def shows_position_effect(records: Sequence[Record]) -> bool:
    """Whether the arms of a same-build run show one that ``prefers_quadruples`` speaks of."""
    runs = [run for arm in ARMS for run in measure_runs(records, arm)]
    return bool(runs) and prefers_quadruples(components(runs))


def _header(records: Sequence[Record], folder: pathlib.Path) -> Run:
    header = next((r for r in records if isinstance(r, Run)), None)
    if header is None or "e2e" not in header.declared:
        raise RecordError(f"{folder} holds no end-to-end run; expected one whose two arms are one build")
    return header


def _refuse_two_builds(recorded: E2EPlan, folder: pathlib.Path) -> None:
    builds = [recorded.builds[arm] for arm in ARMS if arm in recorded.builds]
    if len(builds) == 2 and not is_one_build(*builds):
        told = " and ".join(said(build) for build in builds)
        raise RecordError(f"{folder} compares two builds ({told}); expected a run whose two arms are one build")
