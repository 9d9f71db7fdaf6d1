"""A short calibration of the latency judge. Each rate fails only at an exact binomial p below 1e-4.

The long version is recorded in baselines/calibration/latency.json; ``latency_calibration.py`` makes both.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.calibration import latency_calibration as calibration
from tests.calibration import why_blocks_pictures
from tests.calibration.latency_simulator import Condition, Workload, block_gains, requests_tpot
from validation.judging.latency import BlockRatio, LatencyPlan, decide_next, judge_latency
from validation.verdicts import Verdict

RECORDED = pathlib.Path(__file__).parents[2] / "baselines" / "calibration" / "latency.json"
SHORT = 1500
P_LIMIT = 1e-4
"""So that ten thousand runs of CI see one false failure a rate."""
WORLDS = {w.name: w for w in calibration.WORLDS}
CHOSEN = (
    "launch sd 0.3, shared",
    "launch sd 0.6, unshared",
    "position effect 0.1",
    "t3 launches",
    "10 % outlier launches",
)


def not_above(measured: dict[str, Any], limit: float) -> bool:
    """Whether ``events`` of ``of`` is compatible with a true rate of at most ``limit``."""
    return bool(stats.binomtest(measured["events"], measured["of"], limit, alternative="greater").pvalue >= P_LIMIT)


def not_below(measured: dict[str, Any], limit: float) -> bool:
    """Whether ``events`` of ``of`` is compatible with a true rate of at least ``limit``."""
    return bool(stats.binomtest(measured["events"], measured["of"], limit, alternative="less").pvalue >= P_LIMIT)


@pytest.mark.parametrize("name", CHOSEN)
def test_false_alarms_coverage_and_power(name: str) -> None:
    measured = calibration.judge_world(WORLDS[name], SHORT)
    for key, value in measured.items():
        if isinstance(value, dict) and "nominal" in value:
            assert not_above(value, value["nominal"] * calibration.MARGIN), key
        elif key.startswith("coverage"):
            assert not_below(value, 0.93), key
            assert not_above(value, 0.97 if "repeated" not in key else 1.0), key
    assert not_below(measured["power_at_planned_gain"], 0.9)


@pytest.mark.parametrize("scenarios", [3, 10])
def test_errors_over_scenarios(scenarios: int) -> None:
    world = Condition(f"short, {scenarios}", 0.3, 0.5, scenarios=scenarios)
    for key, value in calibration.judge_family(world, 400).items():
        if isinstance(value, dict):
            assert not_above(value, value["nominal"] * calibration.MARGIN), key


def test_an_unadjusted_look_after_every_block_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peeking(LatencyPlan):
        """Student's critical value at every look, as if it were the only one."""

        def boundaries(self, share: float = 1.0) -> Any:
            exact = super().boundaries(share)
            looks = range(exact.first, exact.last + 1)
            plain = tuple(float(stats.t.isf(exact.alpha, k - 1)) for k in looks)
            return type(exact)(exact.alpha, exact.exponent, exact.first, exact.last, plain)

    gains = calibration.primary_of(WORLDS["launch sd 0.3, shared"], SHORT, 20, 0.0)
    stops = calibration.run_sequential(gains, Peeking(max_blocks=20, futility_power=0.0))
    assert not not_above(calibration.rate(stops.decided == 1), 0.025 * calibration.MARGIN)


def test_the_vectorised_judge_is_the_judge() -> None:
    plan = LatencyPlan(scenarios=("s",), max_blocks=9, no_slower_margin_percent=None)
    world = Condition("vectorised", 0.3, scenarios=1)
    verdicts = {1: Verdict.PASS, -1: Verdict.FAIL, 0: Verdict.INCONCLUSIVE}
    seen = set()
    for gain in (0.0, 0.5, 1.0):
        gains = block_gains(np.random.default_rng(17), 25, plan.max_blocks, world, gain)[:, :, 0]
        stops = calibration.run_sequential(gains, plan)
        for i, row in enumerate(gains):
            blocks: list[BlockRatio] = []
            for number, value in enumerate(row):
                blocks.append(BlockRatio(number, "s", -float(value), "BC", (f"b{number}",), (f"c{number}",)))
                if decide_next(blocks, plan).stop:
                    break
            finding = judge_latency(blocks, plan)[0]
            assert len(blocks) == stops.blocks[i]
            assert finding.verdict is verdicts[int(stops.decided[i])]
            half = float(stops.final_critical[i] * stops.error[i])
            low = -100 * np.expm1(-(float(stops.gain[i]) - half))
            assert finding.numbers["final_lower_percent"] == pytest.approx(low)
            seen.add(finding.reason)
    assert {"gain_shown", "useful_gain_excluded", "not_shown"} <= seen


def test_every_step_simulated_agrees_with_the_exact_residual() -> None:
    runs = requests_tpot(np.random.default_rng(5), np.zeros(4000)).mean(axis=1)
    assert runs.std() == pytest.approx(Workload().residual_sd(), rel=0.05)
    assert Workload().residual_sd() == pytest.approx(0.00104, rel=0.1)


def test_the_usual_ways_see_differences_between_equal_builds() -> None:
    measured = calibration.judge_the_usual_ways(250, 0.3, 0.0, 0.0)
    for name in ("welch", "mann_whitney", "two_sd", "asv", "fixed_servers"):
        assert measured[name]["rate"] > 0.4, name
    assert not_above(measured["ours"], 0.05 * calibration.MARGIN)


def test_the_recorded_long_run_meets_what_it_says_it_meets() -> None:
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert report["experiments"] >= 5000
    assert calibration.misses(report) == report["not_met"]
    assert report["seed"] == calibration.SEED
    assert {row["name"] for row in report["primary"]} == set(WORLDS)


def test_the_pictures_and_tables_are_made_from_the_recorded_run() -> None:
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    for name, drawing in why_blocks_pictures.pictures(report).items():
        assert (why_blocks_pictures.PICTURES / name).read_text(encoding="utf-8") == drawing, name
    text = why_blocks_pictures.PAGE.read_text(encoding="utf-8")
    assert why_blocks_pictures.page(report, text) == text
