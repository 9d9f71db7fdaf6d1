"""Planner, single server and variance components."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from validation.judging.latency_design import LatencyPlan, LaunchSd
from validation.judging.plan_latency import block_seconds, plan_latency, scenarios_for_budget
from validation.judging.single_server import ScenarioBaseline, judge_against_baseline
from validation.judging.tpot import RunTpot
from validation.judging.variance import components
from validation.verdicts import Verdict


def run(
    tpot_ms: float, *, scenario: str = "s", arm: str = "candidate", block: int = 0, position: int = 0, number: int = 0
) -> RunTpot:
    name = f"{arm}{block}.{position}"
    return RunTpot(scenario, arm, block, name, position, True, number, 100, tpot_ms, tpot_ms, None, 0.1, 0, {})


@pytest.mark.parametrize(
    ("launch_sd", "fixed", "most"), [(0.1, 4, 4), (0.2, 5, 5), (0.3, 7, 8), (0.4, 9, 11), (0.6, 17, 20)]
)
def test_blocks_for_the_smallest_claimed_gain(launch_sd: float, fixed: int, most: int) -> None:
    design = plan_latency(launch_sd)
    assert (design.fixed_blocks, design.needed_blocks) == (fixed, most)
    assert design.power >= 0.9


def test_recorded_launches_are_planned_with_their_upper_limit() -> None:
    design = plan_latency(LaunchSd(0.3, 12, "recorded"))
    assert design.launch_sd_percent == pytest.approx(0.3 * math.sqrt(11 / 6.98867), rel=1e-4)
    assert design.plan is not None
    assert design.plan.design == "sequential"


@pytest.mark.parametrize("launch_sd", [None, LaunchSd(0.3, 6, "a pilot")], ids=["nothing-recorded", "few-launches"])
def test_too_few_launches_lead_to_two_stages(launch_sd: LaunchSd | None) -> None:
    design = plan_latency(launch_sd)
    assert design.plan is not None
    assert (design.plan.design, design.power >= 0.9) == ("stein", True)


def test_a_budget_cuts_the_blocks_and_says_what_is_left_to_detect() -> None:
    free = plan_latency(0.3, block_s=600)
    tight = plan_latency(0.3, block_s=600, budget_s=3600)
    assert (free.max_blocks, tight.max_blocks, tight.needed_blocks) == (8, 6, 8)
    assert free.detectable is not None
    assert tight.detectable is not None
    assert tight.detectable.value > free.detectable.value
    assert tight.power < 0.9 < free.power
    assert "buys 6 blocks" in str(tight)


def test_a_budget_below_the_first_look_gives_no_plan() -> None:
    design = plan_latency(0.3, block_s=600, budget_s=1200)
    assert design.plan is None
    assert "too few" in str(design)


def test_a_budget_without_block_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="block_s"):
        plan_latency(0.3, budget_s=60)


def test_a_position_effect_costs_pairs_but_not_quadruples() -> None:
    plain, pairs = plan_latency(0.3), plan_latency(0.3, position_percent=0.3)
    assert pairs.needed_blocks > plain.needed_blocks
    quadruples = plan_latency(0.3, launches_per_block=4)
    assert plan_latency(0.3, launches_per_block=4, position_percent=0.3).needed_blocks == quadruples.needed_blocks


def test_scenarios_are_chosen_in_order_while_they_fit() -> None:
    seconds = {"a": 60.0, "b": 60.0, "c": 60.0}
    assert block_seconds(100, seconds) == 560
    assert scenarios_for_budget(5 * 440, 5, 100, seconds) == ("a", "b")
    assert scenarios_for_budget(1, 5, 100, seconds) == ("a",)


STEADY = ScenarioBaseline(20.0, launches=20, launch_sd_percent=0.2, days=6, day_sd_percent=0.1)


@pytest.mark.parametrize(
    ("tpot_ms", "verdict", "reason"),
    [
        pytest.param(20.0, Verdict.PASS, "no_scenario_slower", id="equal"),
        pytest.param(20.18, Verdict.INCONCLUSIVE, "scenario_undecided", id="near-the-margin"),
        pytest.param(20.6, Verdict.FAIL, "scenario_slower", id="slower"),
    ],
)
def test_a_single_server_against_a_recorded_baseline(tpot_ms: float, verdict: Verdict, reason: str) -> None:
    primary, no_slower = judge_against_baseline([run(tpot_ms)], {"s": STEADY}, LatencyPlan())
    assert (primary.verdict, primary.reason) == (Verdict.INCONCLUSIVE, "single_server")
    assert (no_slower.verdict, no_slower.reason) == (verdict, reason)


def test_a_single_server_never_shows_a_gain_however_large() -> None:
    primary, _ = judge_against_baseline([run(1.0)], {"s": STEADY}, LatencyPlan())
    assert primary.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    "baseline",
    [
        {},
        {"s": dataclasses.replace(STEADY, day_sd_percent=None)},
        {"s": dataclasses.replace(STEADY, launch_sd_percent=None)},
        {"s": dataclasses.replace(STEADY, days=1)},
    ],
    ids=["not-recorded", "no-day-variance", "no-launch-variance", "one-day"],
)
def test_a_baseline_without_its_variance_decides_nothing(baseline: dict[str, ScenarioBaseline]) -> None:
    _, no_slower = judge_against_baseline([run(20.0)], baseline, LatencyPlan())
    assert (no_slower.verdict, no_slower.reason) == (Verdict.INCONCLUSIVE, "baseline_without_variance")


def test_a_declared_scenario_that_was_not_measured_is_not_run() -> None:
    findings = judge_against_baseline([run(20.0)], {"s": STEADY}, LatencyPlan(scenarios=("s", "t")))
    assert {f.verdict for f in findings} == {Verdict.NOT_RUN}


def simulated(seed: int, blocks: int = 400) -> list[RunTpot]:
    """Launch sd 0.3 % (two thirds of the variance shared), run sd 0.1 %, drift 0.001 %, position 0.2 %, gain 1 %."""
    rng = np.random.default_rng(seed)
    out = []
    for block in range(blocks):
        arms = ("baseline", "candidate") if rng.random() < 0.5 else ("candidate", "baseline")
        for position, arm in enumerate(arms):
            shared = rng.normal(0, 0.3 * math.sqrt(2 / 3))
            for scenario in ("s", "t"):
                own = rng.normal(0, 0.3 * math.sqrt(1 / 3))
                for number in range(2):
                    percent = shared + own + rng.normal(0, 0.1) + 0.001 * (2 * block + position) + 0.2 * position
                    level = 20 * math.exp((percent - (arm == "candidate")) / 100)
                    out.append(run(level, scenario=scenario, arm=arm, block=block, position=position, number=number))
    return out


def test_variance_components_are_recovered() -> None:
    found = components(simulated(7))
    assert found.launches == 800
    assert found.launch_sd_percent == pytest.approx(0.3, rel=0.08)
    assert found.shared_launch_sd_percent == pytest.approx(0.3 * math.sqrt(2 / 3), rel=0.08)
    assert found.own_launch_sd_percent == pytest.approx(0.3 * math.sqrt(1 / 3), rel=0.08)
    assert found.run_sd_percent == pytest.approx(0.1, rel=0.08)
    assert found.drift_se_percent is not None
    assert found.drift_percent_per_launch == pytest.approx(0.001, abs=4 * found.drift_se_percent)
    assert found.position_se_percent is not None
    assert found.position_effect_percent == pytest.approx(0.2, abs=4 * found.position_se_percent)


def test_components_that_the_data_cannot_tell_are_none() -> None:
    found = components([run(20.0), run(20.1, arm="baseline", position=1)])
    assert (found.launch_sd_percent, found.run_sd_percent, found.position_effect_percent) == (None, None, None)
    with pytest.raises(ValueError, match="no runs"):
        components([])


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"power": 0.4},
        {"min_blocks": 2},
        {"max_blocks": 2},
        {"smallest_useful_gain_percent": -1.0},
        {"no_slower_margin_percent": 0.0},
        {"max_unusable_share": 1.0},
        {"design": "peeking"},
    ],
    ids=str,
)
def test_plans_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LatencyPlan(**wrong)  # type: ignore[arg-type]
