"""A recorded same-build run (A/A): how much two launches of one build differ on this hardware, for later verdicts.

It sizes the plan, calibrates the harness, and gives "within run-to-run variance" its measure. A run is one when both of
its arms started the same build, which is the caller's word.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from validation.e2e_plan import BASELINE, CANDIDATE, E2EPlan
from validation.gsm8k import SCORERS
from validation.judging.accuracy_arms import record_accuracy
from validation.judging.latency import LaunchSd, measure_blocks
from validation.judging.same_build import judge_same_build
from validation.judging.variance import components
from validation.records import Question, Request, Run, read_run


def read_same_build(folder: pathlib.Path, plan: E2EPlan) -> tuple[E2EPlan, dict[str, Any]]:
    """``plan`` with the recorded launch sd and same-build runs, and what the judges need of the record, as JSON data.

    Raises:
        RecordError: the folder holds no run.
    """
    records = read_run(folder)
    recorded = E2EPlan.from_json(next(r for r in records if isinstance(r, Run)).declared["e2e"])
    data: dict[str, Any] = {"source": folder.name, "latency": None, "accuracy": None}
    runs, blocks = measure_blocks(records, candidate=CANDIDATE, baseline=BASELINE)
    wanted = [block for block in blocks if block.scenario in plan.latency_scenarios]
    latency = plan.latency
    if wanted:
        data["latency"] = judge_same_build(wanted, plan.latency, runs=runs).to_json()
        found = components([run for run in runs if run.scenario in plan.latency_scenarios])
        if found.launch_sd_percent is not None:
            latency = dataclasses.replace(
                latency, recorded_launch_sd=LaunchSd(found.launch_sd_percent, found.launches, folder.name)
            )
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
            for arm in (BASELINE, CANDIDATE)
        ]
        together = dataclasses.replace(arms[0], runs=arms[0].runs + arms[1].runs)
        data["accuracy"] = together.to_json()
        accuracy = dataclasses.replace(accuracy, same_build_runs=len(together.runs))
    return dataclasses.replace(plan, latency=latency, accuracy=accuracy), data
