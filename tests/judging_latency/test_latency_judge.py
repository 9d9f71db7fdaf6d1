"""The latency verdict on block data whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from validation.judging import latency_design
from validation.judging.latency import LatencyPlan, LaunchSd, decide_next, judge_latency
from validation.judging.same_build import judge_same_build
from validation.judging.tpot import BlockRatio
from validation.profiles import Profile, exit_status
from validation.verdicts import Finding, Verdict, not_run

ONE = LatencyPlan(scenarios=("s",), max_blocks=8)


def blocks_of(*gains_percent: float, scenario: str = "s", fresh: bool = True, **more: object) -> list[BlockRatio]:
    """Blocks with the given gains, orders alternating, every launch its own."""
    return [
        BlockRatio(
            i,
            scenario,
            math.log1p(-gain / 100),
            "BC" if i % 2 else "CB",
            (f"{scenario}{i}b",),
            (f"{scenario}{i}c",),
            fresh,
            **more,  # type: ignore[arg-type]
        )
        for i, gain in enumerate(gains_percent)
    ]


def noisy(gain_percent: float, count: int, sd_percent: float, seed: int, scenario: str = "s") -> list[BlockRatio]:
    values = np.random.default_rng(seed).normal(gain_percent, sd_percent, count)
    return blocks_of(*values, scenario=scenario)


def primary(findings: list[Finding]) -> Finding:
    return next(f for f in findings if f.name == "latency.primary")


def no_slower(findings: list[Finding]) -> Finding:
    return next(f for f in findings if f.name == "latency.no_slower")


def test_a_clear_gain_passes_at_the_first_look_and_stays_passed() -> None:
    early = primary(judge_latency(blocks_of(2.0, 2.1, 1.9), ONE))
    assert (early.verdict, early.reason) == (Verdict.PASS, "gain_shown")
    later = primary(judge_latency(blocks_of(2.0, 2.1, 1.9, -3.0, 2.0), ONE))
    assert later.verdict is Verdict.PASS
    assert later.numbers["decision_look_blocks"] == 3
    assert later.numbers["looks"][-1]["lower_percent"] < 0


def test_the_unadjusted_critical_value_would_pass_where_the_plan_does_not() -> None:
    blocks = blocks_of(0.6, 0.9, 0.75 - 0.42)
    finding = primary(judge_latency(blocks, ONE))
    assert finding.numbers["t"] > 3.0
    assert finding.numbers["critical_t"] == pytest.approx(9.25, abs=0.01)
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "cut_short")


def test_no_gain_fails_once_a_useful_one_is_excluded() -> None:
    finding = primary(judge_latency(blocks_of(0.02, -0.03, 0.01, 0.0), ONE))
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "useful_gain_excluded")


def test_a_gain_too_small_to_be_useful_fails_even_where_it_is_certain() -> None:
    finding = primary(judge_latency(blocks_of(0.2, 0.201, 0.199), ONE))
    assert finding.numbers["lower_percent"] > 0
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "useful_gain_excluded")


def test_undecided_at_the_maximum_is_inconclusive() -> None:
    finding = primary(judge_latency(blocks_of(1.4, -0.2, 0.9, -0.5, 1.2, -0.1, 0.8, 0.2), ONE))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "not_shown")
    assert finding.detectable is not None
    assert finding.detectable.value > 0.5


def test_sign_flip_says_unreachable_below_six_blocks() -> None:
    few = primary(judge_latency(blocks_of(2.0, 2.1, 1.9, 2.0, 2.2), ONE)).numbers
    assert (few["sign_flip_p"], few["sign_flip_note"]) == (2**-5, "unreachable")
    more = primary(judge_latency(blocks_of(2.0, 2.1, 1.9, 2.0, 2.2, 2.0), ONE)).numbers
    assert (more["sign_flip_p"], more["sign_flip_note"]) == (2**-6, "reachable")


def test_a_single_scenario_undecided_does_not_undo_a_clear_primary() -> None:
    plan = LatencyPlan(scenarios=("a", "b"), no_slower_margin_percent=None)
    blocks = noisy(3.0, 8, 0.2, 1, "a") + noisy(0.1, 8, 0.2, 2, "b")
    findings = judge_latency(blocks, plan)
    assert [f.name for f in findings] == ["latency.primary"]
    assert exit_status(findings, Profile.PR) == 0
    assert findings[0].numbers["scenarios"]["a"]["gain_shown"] is True
    assert findings[0].numbers["scenarios"]["b"]["gain_shown"] is False


def test_a_slower_scenario_fails_beside_a_passing_primary() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    blocks = noisy(8.0, 8, 0.2, 1, "a") + noisy(-3.0, 8, 0.2, 2, "b")
    findings = judge_latency(blocks, plan)
    assert primary(findings).verdict is Verdict.PASS
    assert (no_slower(findings).verdict, no_slower(findings).reason) == (Verdict.FAIL, "scenario_slower")
    assert exit_status(findings, Profile.PR) == 1


def test_no_slower_needs_every_scenario() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    good = judge_latency(noisy(1.0, 8, 0.2, 1, "a") + noisy(0.5, 8, 0.2, 2, "b"), plan)
    assert no_slower(good).verdict is Verdict.PASS
    mixed = judge_latency(noisy(1.0, 8, 0.2, 1, "a") + noisy(-0.6, 8, 0.9, 2, "b"), plan)
    assert (no_slower(mixed).verdict, no_slower(mixed).reason) == (Verdict.INCONCLUSIVE, "scenario_undecided")


def test_two_given_servers_are_inconclusive_for_a_gain_of_a_launch_effects_size() -> None:
    finding = primary(judge_latency(blocks_of(0.8, 0.81, 0.79, 0.8, 0.82, fresh=False), ONE))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "fixed_servers")


def test_a_recorded_launch_sd_lets_two_given_servers_show_a_larger_gain() -> None:
    plan = dataclasses.replace(ONE, recorded_launch_sd=LaunchSd(0.1, 20, "an A/A of this hardware"))
    clear = primary(judge_latency(blocks_of(0.8, 0.81, 0.79, 0.8, 0.82, fresh=False), plan))
    assert (clear.verdict, clear.reason) == (Verdict.PASS, "gain_beyond_launch_effect")
    small = primary(judge_latency(blocks_of(0.2, 0.21, 0.19, 0.2, 0.22, fresh=False), plan))
    assert (small.verdict, small.reason) == (Verdict.FAIL, "useful_gain_excluded") or small.reason == "fixed_servers"
    wide = dataclasses.replace(ONE, recorded_launch_sd=LaunchSd(0.4, 12, "an A/A of this hardware"))
    assert primary(judge_latency(blocks_of(0.8, 0.81, 0.79, 0.8, 0.82, fresh=False), wide)).reason == "fixed_servers"


def test_one_launch_in_several_blocks_counts_as_a_fixed_server() -> None:
    blocks = [dataclasses.replace(b, baseline_launches=("same",)) for b in blocks_of(0.8, 0.81, 0.79, 0.8, 0.82)]
    assert primary(judge_latency(blocks, ONE)).reason == "fixed_servers"


def test_too_many_lost_requests_make_the_scenario_undecidable() -> None:
    lost = blocks_of(2.0, 2.1, 1.9, 2.0, pairs=90, unusable={"error": 10})
    finding = primary(judge_latency(lost, ONE))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "scenario_not_decidable")
    few = blocks_of(2.0, 2.1, 1.9, 2.0, pairs=99, unusable={"output_tokens_differ": 1})
    assert primary(judge_latency(few, ONE)).verdict is Verdict.PASS


def test_identical_ratios_are_no_timings() -> None:
    assert primary(judge_latency(blocks_of(2.0, 2.0, 2.0), ONE)).reason == "zero_variance"


def test_no_complete_block_is_not_run() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    findings = judge_latency(blocks_of(1.0, 1.0, 1.0, scenario="a"), plan)
    assert {(f.verdict, f.reason) for f in findings} == {(Verdict.NOT_RUN, "no_blocks")}


def test_incomplete_blocks_are_named() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    blocks = noisy(2, 4, 0.1, 1, "a") + noisy(2, 3, 0.1, 2, "b")
    numbers = primary(judge_latency(blocks, plan)).numbers
    assert (numbers["blocks"], numbers["incomplete_blocks"]) == (3, [3])


def test_many_incomplete_blocks_decide_nothing() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    blocks = noisy(2, 8, 0.1, 1, "a") + noisy(2, 5, 0.1, 2, "b")
    assert primary(judge_latency(blocks, plan)).reason == "incomplete_blocks"


def test_no_scenario_is_called_faster_between_fixed_servers_or_before_the_primary() -> None:
    fixed = primary(judge_latency(blocks_of(2.0, 2.1, 1.9, 2.0, 2.05, 2.1, 2.0, 1.9, fresh=False), ONE)).numbers
    assert (fixed["scenarios"]["s"]["gain_shown"], fixed["sign_flip_note"]) == (False, "invalid: fixed servers")
    plan = LatencyPlan(scenarios=("a", "b"))
    opposite = noisy(3.0, 8, 0.2, 1, "a") + noisy(-3.0, 8, 0.2, 2, "b")
    assert primary(judge_latency(opposite, plan)).numbers["scenarios"]["a"]["gain_shown"] is False


def test_a_failed_same_build_experiment_blocks_the_verdict_and_a_passed_one_does_not() -> None:
    gain = blocks_of(2.0, 2.1, 1.9, 2.0)
    shifted = noisy(0.6, 10, 0.1, 5)
    failed = judge_same_build(shifted, ONE, repeat=noisy(0.6, 10, 0.1, 6))
    assert (failed.verdict, failed.reason) == (Verdict.INCONCLUSIVE, "failed_same_build")
    assert primary(judge_latency(gain, ONE, same_build=failed)).reason == "failed_same_build"
    fine = judge_same_build(noisy(0.0, 10, 0.1, 7), ONE)
    assert (fine.verdict, fine.reason) == (Verdict.PASS, "same_build_agrees")
    assert primary(judge_latency(gain, ONE, same_build=fine)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("gain", "repeat_gain", "reason"),
    [
        pytest.param(0.6, None, "repeat_needed", id="alarm-without-repeat"),
        pytest.param(0.6, 0.0, "repeat_disagrees", id="repeat-finds-nothing"),
        pytest.param(0.6, -0.6, "repeat_disagrees", id="repeat-has-the-other-sign"),
        pytest.param(0.2, None, "same_build_agrees", id="significant-but-below-half-the-useful-gain"),
    ],
)
def test_a_same_build_alarm_needs_size_and_a_repeat(gain: float, repeat_gain: float | None, reason: str) -> None:
    repeat = None if repeat_gain is None else noisy(repeat_gain, 10, 0.05, 9)
    assert judge_same_build(noisy(gain, 10, 0.05, 8), ONE, repeat).reason == reason


@pytest.mark.parametrize(
    ("gains", "stop", "reason"),
    [
        pytest.param((2.0, 2.1), False, "before_first_look", id="two-blocks"),
        pytest.param((2.0, 2.1, 1.9), True, "gain_shown", id="clear"),
        pytest.param((0.9, 0.4, 1.2), False, "undecided", id="promising"),
        pytest.param((0.02, -0.03, 0.01, 0.0), True, "useful_gain_excluded", id="nothing-there"),
        pytest.param((-0.6, 0.5, -0.3, 0.4, -0.5, 0.2), True, "futile", id="hopeless"),
        pytest.param((1.4, -0.2, 0.9, -0.5, 1.2, -0.1, 1.8, 0.2), True, "max_blocks", id="maximum"),
    ],
)
def test_decide_next(gains: tuple[float, ...], stop: bool, reason: str) -> None:
    step = decide_next(blocks_of(*gains), dataclasses.replace(ONE, no_slower_margin_percent=None))
    assert (step.stop, step.reason) == (stop, reason)


def test_the_experiment_goes_on_for_a_scenario_not_yet_shown_to_be_no_slower() -> None:
    plan = LatencyPlan(scenarios=("a", "b"))
    opposite = [0.9, -0.9, 0.8]
    blocks = blocks_of(*(3 + x for x in opposite), scenario="a") + blocks_of(*(3 - x for x in opposite), scenario="b")
    assert primary(judge_latency(blocks, plan)).verdict is Verdict.PASS
    assert decide_next(blocks, plan).reason == "no_slower_undecided"


def test_stein_asks_for_the_second_stage_its_first_one_needs() -> None:
    plan = LatencyPlan(scenarios=("s",), design="stein", min_blocks=5, max_blocks=40, no_slower_margin_percent=None)
    first = noisy(0.74, 5, 0.45, 3)
    needed = latency_design.stein_blocks([-b.log_ratio for b in first], plan)
    assert needed > 5
    assert (decide_next(first, plan).stop, decide_next(first, plan).reason) == (False, "second_stage")
    everything = first + [dataclasses.replace(b, block=b.block + 5) for b in noisy(0.74, needed - 5, 0.45, 4)]
    everything = [
        dataclasses.replace(b, baseline_launches=(f"b{b.block}",), candidate_launches=(f"c{b.block}",))
        for b in everything
    ]
    assert decide_next(everything, plan).stop
    numbers = primary(judge_latency(everything, plan)).numbers
    assert numbers["decision_look_blocks"] == needed


def test_two_data_for_one_block_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        judge_latency(blocks_of(1.0) + blocks_of(1.0), ONE)


def test_findings_are_json() -> None:
    for finding in judge_latency(blocks_of(2.0, 2.1, 1.9), ONE):
        assert Finding.from_json(finding.to_json()) == finding


def test_same_build_without_blocks_is_not_run() -> None:
    empty = judge_same_build([], ONE)
    assert empty.verdict is not_run("x", empty.evidence, "y", "z").verdict


def test_the_plan_prints_its_boundaries_before_the_first_block() -> None:
    text = str(ONE)
    assert "9.25, 6.06, 4.48" in text
    assert "at most 8" in text
