"""The accuracy interval keeps its promises: a short run of the simulation here, and the long run that is on record.

The short run fails only where chance alone gives the count in less than one of ten thousand runs, so it does not
cry wolf; a defect of the kind planted below is far beyond that.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from scipy import stats

from tests.calibration import accuracy_simulator
from tests.calibration.accuracy_simulator import CONDITIONS, MARGIN, Condition, simulate
from validation.judging import score_interval

RECORD = pathlib.Path(__file__).parents[2] / "baselines" / "calibration" / "accuracy.json"
COVERAGE, FALSE_PASS = 0.93, 0.035
EXPERIMENTS, SEED = 200, 7
CHANCE = 1e-4
SHORT = [c for c in CONDITIONS if c.held and c.loss == MARGIN and c.questions == 1319 and c.shock_sd in (0, 0.004)]


def undercovers(covered: int) -> bool:
    return bool(stats.binomtest(covered, EXPERIMENTS, COVERAGE, alternative="less").pvalue < CHANCE)


def passes_too_often(passed: int) -> bool:
    return bool(stats.binomtest(passed, EXPERIMENTS, FALSE_PASS, alternative="greater").pvalue < CHANCE)


@pytest.mark.parametrize("condition", SHORT, ids=lambda condition: condition.name)
def test_a_candidate_a_whole_margin_worse_rarely_passes_and_the_interval_covers(condition: Condition) -> None:
    result = simulate(condition, EXPERIMENTS, SEED)
    assert not undercovers(result.covered)
    assert not passes_too_often(result.passed)


def test_the_short_run_would_see_a_run_shift_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_interval, "run_excess", lambda groups: score_interval.RunExcess(0.0, 0))
    result = simulate(Condition(3, 0.0, 0.02, 0.004, MARGIN), EXPERIMENTS, SEED)
    assert undercovers(result.covered)
    assert passes_too_often(result.passed)


def test_the_short_run_would_see_runs_counted_as_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def independent(
        reference: score_interval.Scores, candidate: score_interval.Scores, excess: object = None
    ) -> score_interval.PairedDifference:
        return score_interval.paired_difference(reference.reshape(1, -1), candidate.reshape(1, -1))

    monkeypatch.setattr(accuracy_simulator, "paired_difference", independent)
    result = simulate(Condition(5, 0.03, 0.0, 0.0, MARGIN), EXPERIMENTS, SEED)
    assert undercovers(result.covered)
    assert passes_too_often(result.passed)


def test_one_run_an_arm_does_not_hold_its_level_under_a_run_shift_and_says_so() -> None:
    condition = Condition(1, 0.01, 0.0, 0.004, MARGIN)
    assert not condition.held
    assert undercovers(simulate(condition, EXPERIMENTS, SEED).covered)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return data


def test_the_record_is_of_every_condition_with_these_constants(record: dict[str, Any]) -> None:
    assert [row["name"] for row in record["conditions"]] == [c.name for c in CONDITIONS]
    assert record["constants"] == {
        "one_sided_alpha": score_interval.ONE_SIDED_ALPHA,
        "excess_level": score_interval.EXCESS_LEVEL,
    }
    assert all(row["experiments"] >= 5000 for row in record["conditions"])


def test_the_recorded_coverage_and_false_passes_hold(record: dict[str, Any]) -> None:
    held = [row for row in record["conditions"] if row["held"]]
    assert [row["name"] for row in held if row["coverage"] < COVERAGE] == []
    assert [row["name"] for row in held if row["loss"] == MARGIN and row["pass_share"] > FALSE_PASS] == []
    assert {row["shock_sd"] for row in held} == {0.0, 0.002, 0.004}
