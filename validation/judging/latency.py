"""The verdict on decode latency, from block data.

What is a finding and what is a number. Every finding of an evidence that a profile requires decides its exit status.
So there are two at most: ``latency.primary`` (is there a gain, over all declared scenarios together) and
``latency.no_slower`` (is any one scenario slower). One scenario taken alone is often undecided where the primary is
clear; such results are numbers of the primary (``numbers["scenarios"]``) and decide nothing. A regression in a single
scenario still decides, through ``latency.no_slower``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from validation.judging.latency_design import (
    LatencyPlan,
    LaunchSd,
    Look,
    Next,
    conditional_power,
    decide_next,
    declared_scenarios,
    gains_by_block,
    is_fixed,
    log_gain,
    looks,
    outcome,
    percent,
    scenarios_slower_or_not,
)
from validation.judging.latency_numbers import detectable, experiment_numbers, look_numbers, unusable_share
from validation.judging.tpot import BlockRatio, RunTpot, measure_blocks
from validation.verdicts import Evidence, Finding, Verdict, not_run

__all__ = [
    "BlockRatio",
    "LatencyPlan",
    "LaunchSd",
    "Next",
    "RunTpot",
    "decide_next",
    "judge_latency",
    "measure_blocks",
]

PRIMARY = "latency.primary"
NO_SLOWER = "latency.no_slower"
MAX_INCOMPLETE_SHARE = 0.2
"""More than one incomplete block, and more than this share of all, and the complete ones decide nothing: blocks are
rarely lost by chance alone. One is normal: the last of a run that was cut short."""
UNRECORDED_LAUNCH_LIMIT_PERCENT = 4 * math.sqrt(2) * 0.6
"""Between two fixed servers without a recorded A/A, a gain counts only beyond this: four standard deviations of the
difference of two launches, at the largest launch sd we have recorded or assumed (0.6 % of TPOT; two launches of one
SGLang build on one H200 differed by 0.55 %)."""


def judge_latency(
    blocks: Sequence[BlockRatio],
    plan: LatencyPlan,
    runs: Sequence[RunTpot] = (),
    same_build: Finding | None = None,
) -> list[Finding]:
    """``latency.primary``, and ``latency.no_slower`` where the plan has a margin.

    The primary is PASS from the first look whose repeated interval lies above zero, FAIL from the first whose interval
    lies below the smallest useful gain, else INCONCLUSIVE. Both errors are at most ``plan.alpha`` over all looks.

    Args:
        blocks: the experiment's block data, in any order.
        plan: what was declared before the first block.
        runs: the runs behind the blocks, for the variance components.
        same_build: the A/A finding of this harness and hardware, if there is one; only ``failed_same_build`` counts.
    """
    complete, rows = gains_by_block(blocks, plan)
    if not complete:
        sentence = "No block holds every declared scenario of both arms, so there is nothing to judge."
        names = [PRIMARY] if plan.no_slower_margin_percent is None else [PRIMARY, NO_SLOWER]
        return [not_run(name, Evidence.LATENCY, "no_blocks", sentence) for name in names]
    gains = [float(np.mean(row)) for row in rows]
    used = [b for b in blocks if b.block in set(complete) and b.scenario in declared_scenarios(blocks, plan)]
    numbers = experiment_numbers(blocks, used, complete, rows, plan, runs)
    obstacle = _obstacle(blocks, used, rows, plan, same_build)
    findings = [_primary(used, gains, plan, numbers, obstacle)]
    if plan.no_slower_margin_percent is not None:
        findings.append(_no_slower(used, rows, plan, obstacle))
    return findings


def _obstacle(
    blocks: Sequence[BlockRatio],
    used: Sequence[BlockRatio],
    rows: Sequence[Sequence[float]],
    plan: LatencyPlan,
    same_build: Finding | None,
) -> tuple[str, str] | None:
    """Why no verdict can rest on these blocks whatever their values, as reason and sentence."""
    if same_build is not None and same_build.reason == "failed_same_build":
        return "failed_same_build", f"Two arms of one build already differ on this harness: {same_build.sentence}"
    for scenario in declared_scenarios(used, plan):
        share = unusable_share([b for b in used if b.scenario == scenario])
        if share > plan.max_unusable_share:
            return (
                "scenario_not_decidable",
                f"{scenario} lost {100 * share:.1f} % of its request pairs: errors, missing counts, unequal lengths;"
                f" at most {100 * plan.max_unusable_share:g} % is accepted.",
            )
    if len(rows) > 1 and (np.std(np.asarray(rows), axis=0) == 0).any():
        return (
            "zero_variance",
            "A scenario has the same ratio in every block to the last bit, so these are not timings.",
        )
    incomplete = {b.block for b in blocks} - {b.block for b in used}
    if len(incomplete) > 1 and len(incomplete) > MAX_INCOMPLETE_SHARE * (len(incomplete) + len(rows)):
        return (
            "incomplete_blocks",
            f"{len(incomplete)} blocks lack a declared scenario; those that are complete may not be a fair sample.",
        )
    return None


def _primary(
    used: Sequence[BlockRatio],
    gains: Sequence[float],
    plan: LatencyPlan,
    numbers: dict[str, Any],
    obstacle: tuple[str, str] | None,
) -> Finding:
    effect = detectable(gains, plan)

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        return Finding(PRIMARY, Evidence.LATENCY, verdict, reason, sentence, len(used), numbers, effect)

    seen = looks(gains, plan)
    decided = outcome(seen, plan)
    look = decided[1] if decided else (seen[-1] if seen else None)
    if look is not None:
        numbers |= look_numbers(look, seen, gains, plan)
    if obstacle:
        return finding(Verdict.INCONCLUSIVE, *obstacle)
    if look is None:
        needed = (
            "the second stage asks for more" if plan.design == "stein" else f"the first look is at {plan.min_blocks}"
        )
        return finding(Verdict.INCONCLUSIVE, "too_few_blocks", f"{len(gains)} complete blocks; {needed}.")
    if is_fixed(used):
        return finding(*_fixed(seen[-1], plan, numbers))
    shown = f"{percent(look.gain):.2f} % (repeated interval {percent(look.lower):.2f} to {percent(look.upper):.2f} %)"
    useful = f"{plan.smallest_useful_gain_percent:g} %"
    if decided and decided[0] == "gain_shown":
        return finding(Verdict.PASS, "gain_shown", f"TPOT falls by {shown}, shown after {look.blocks} blocks.")
    if decided:
        return finding(Verdict.FAIL, "useful_gain_excluded", f"TPOT falls by {shown}: a gain of {useful} is excluded.")
    if len(gains) >= plan.max_blocks or plan.design == "stein":
        return finding(
            Verdict.INCONCLUSIVE,
            "not_shown",
            f"TPOT falls by {shown} after all {look.blocks} blocks: neither shown nor excluded.",
        )
    if conditional_power(look, plan) < plan.futility_power:
        return finding(
            Verdict.INCONCLUSIVE, "futile", f"TPOT falls by {shown}; more blocks had little chance to show a gain."
        )
    return finding(
        Verdict.INCONCLUSIVE,
        "cut_short",
        f"TPOT falls by {shown} after {look.blocks} of at most {plan.max_blocks} blocks, and no boundary was crossed.",
    )


def _fixed(look: Look, plan: LatencyPlan, numbers: dict[str, Any]) -> tuple[Verdict, str, str]:
    """Two given servers: one launch effect each, in every block alike. Half widths add as squares (MOVER: Zou and
    Donner, Stat. Med. 27, 2008)."""
    recorded = plan.recorded_launch_sd
    if recorded is None:
        launch_half = UNRECORDED_LAUNCH_LIMIT_PERCENT / 100
        source = "no launch sd of this hardware was recorded"
    else:
        launch_half = float(stats.t.isf(plan.alpha, recorded.launches - 1)) * math.sqrt(2) * recorded.percent / 100
        source = f"launch sd {recorded.percent:g} % from {recorded.launches} launches ({recorded.source})"
    half = math.hypot(look.critical * look.standard_error, launch_half)
    low, high = look.gain - half, look.gain + half
    numbers |= {
        "fixed_servers": True,
        "launch_half_width_percent": 100 * launch_half,
        "lower_percent": percent(low),
        "upper_percent": percent(high),
        "final_lower_percent": percent(low),
        "final_upper_percent": percent(high),
    }
    interval = f"{percent(low):.2f} to {percent(high):.2f} % with the launch effect"
    shown = f"TPOT differs by {percent(look.gain):.2f} % ({interval})"
    if high < log_gain(plan.smallest_useful_gain_percent):
        return Verdict.FAIL, "useful_gain_excluded", f"{shown}: a useful gain is excluded; {source}."
    if low > 0:
        return (
            Verdict.PASS,
            "gain_beyond_launch_effect",
            f"{shown}: more than two launches of one build differ; {source}.",
        )
    return (
        Verdict.INCONCLUSIVE,
        "fixed_servers",
        f"{shown} between two servers that were not restarted: a launch effect cannot be told from a gain; {source}.",
    )


def _no_slower(
    used: Sequence[BlockRatio],
    rows: Sequence[Sequence[float]],
    plan: LatencyPlan,
    obstacle: tuple[str, str] | None,
) -> Finding:
    scenarios = declared_scenarios(used, plan)
    margin = plan.no_slower_margin_percent or 0.0
    answers = scenarios_slower_or_not(used, plan)
    table = np.asarray(rows)
    effects = [e for e in (detectable(list(table[:, i]), plan) for i in range(len(scenarios))) if e]
    effect = max(effects, key=lambda e: e.value) if effects else None
    last = [looks(list(table[:, i]), plan) for i in range(len(scenarios))]
    numbers: dict[str, Any] = {
        "margin_percent": margin,
        "scenarios": dict(answers),
        "shown_no_slower_than_percent": max(-percent(s[-1].lower) for s in last) if all(last) else None,
    }

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        return Finding(NO_SLOWER, Evidence.LATENCY, verdict, reason, sentence, len(used), numbers, effect)

    if obstacle:
        return finding(Verdict.INCONCLUSIVE, *obstacle)
    if not any(last):
        return finding(
            Verdict.INCONCLUSIVE, "too_few_blocks", f"{len(rows)} complete blocks are too few for a first look."
        )
    if is_fixed(used):
        return finding(*_no_slower_fixed([s[-1] for s in last], scenarios, plan, numbers))
    slower = [s for s, answer in answers.items() if answer == "slower"]
    undecided = [s for s, answer in answers.items() if answer == "undecided"]
    if slower:
        return finding(Verdict.FAIL, "scenario_slower", f"Slower by more than {margin:g} %: {', '.join(slower)}.")
    if undecided:
        return finding(
            Verdict.INCONCLUSIVE, "scenario_undecided", f"Not shown to be within {margin:g} %: {', '.join(undecided)}."
        )
    return finding(
        Verdict.PASS,
        "no_scenario_slower",
        f"Each of {len(scenarios)} scenarios is shown not to be slower by {margin:g} %.",
    )


def _no_slower_fixed(
    seen: Sequence[Look], scenarios: Sequence[str], plan: LatencyPlan, numbers: dict[str, Any]
) -> tuple[Verdict, str, str]:
    """As ``_fixed``, against the margin: the launch effect widens every interval."""
    margin = -log_gain(-(plan.no_slower_margin_percent or 0.0))
    limits: list[tuple[float, float]] = []
    for look in seen:
        scratch: dict[str, Any] = {}
        _fixed(look, plan, scratch)
        limits.append((log_gain(scratch["lower_percent"]), log_gain(scratch["upper_percent"])))
    numbers["shown_no_slower_than_percent"] = max(-percent(low) for low, _ in limits)
    slower = [s for s, (_, high) in zip(scenarios, limits, strict=True) if high < -margin]
    if slower:
        return Verdict.FAIL, "scenario_slower", f"Slower beyond any launch effect: {', '.join(slower)}."
    if all(low > -margin for low, _ in limits):
        return Verdict.PASS, "no_scenario_slower", "Every scenario is within the margin, launch effect included."
    return (
        Verdict.INCONCLUSIVE,
        "fixed_servers",
        "Two servers that were not restarted: a launch effect cannot be told from a slower scenario.",
    )
