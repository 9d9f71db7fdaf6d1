"""The numbers of a latency finding: what a reader needs to check the verdict by hand."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from validation.judging import sequential, signflip
from validation.judging.latency_design import (
    LatencyPlan,
    Look,
    declared_scenarios,
    is_fixed,
    log_gain,
    looks,
    outcome,
    percent,
)
from validation.judging.tpot import BlockRatio, RunTpot
from validation.judging.variance import components
from validation.verdicts import Effect

JOINT_TEST_BLOCKS = 8
"""The joint sign-flip test starts here: 2^-8 = 0.4 % leaves room below alpha for several scenarios."""


def detectable(gains: Sequence[float], plan: LatencyPlan) -> Effect | None:
    """The smallest gain the whole plan would detect at the spread seen; None below two blocks or without spread."""
    sd = float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0
    if not sd:
        return None
    power, alpha = f"{100 * plan.power:g} % power", f"one-sided alpha {plan.alpha:g}"
    if plan.design == "stein":
        first = gains[: plan.min_blocks]
        degrees = len(first) - 1
        total = min(plan.max_blocks, max(len(gains), len(first)))
        quantiles = float(stats.t.isf(plan.alpha, degrees) + stats.t.ppf(plan.power, degrees))
        value = quantiles * float(np.std(first, ddof=1)) / math.sqrt(total)
        return Effect(percent(value), "percent of TPOT", f"{power}, {alpha}, {total} blocks in two stages")
    value = sequential.detectable_in_sd(plan.boundaries(), plan.power) * sd
    return Effect(percent(value), "percent of TPOT", f"{power}, {alpha}, up to {plan.max_blocks} blocks of this spread")


def unusable_share(blocks: Sequence[BlockRatio]) -> float:
    """Share of request pairs that were left out."""
    lost = sum(sum(b.unusable.values()) for b in blocks)
    return lost / max(1, lost + sum(b.pairs for b in blocks))


def experiment_numbers(
    blocks: Sequence[BlockRatio],
    used: Sequence[BlockRatio],
    complete: Sequence[int],
    rows: Sequence[Sequence[float]],
    plan: LatencyPlan,
    runs: Sequence[RunTpot],
) -> dict[str, Any]:
    """The primary's numbers that no decision changes: the data, the sign-flip test, scenarios, components."""
    gains = [float(np.mean(row)) for row in rows]
    smallest = signflip.smallest_p(len(gains))
    balance = [(b.position_shift, -b.log_ratio) for b in used if b.position_shift]
    shifts = np.array(balance) if balance else np.zeros((0, 2))
    both_ways = len(balance) > 2 and np.ptp(shifts[:, 0]) > 0
    return {
        "plan": dataclasses.asdict(plan),
        "blocks": len(complete),
        "incomplete_blocks": sorted({b.block for b in blocks} - set(complete)),
        "block_gains_percent": [percent(g) for g in gains],
        "block_orders": [next(b.order for b in used if b.block == number) for number in complete],
        "block_sd_percent": 100 * float(np.std(gains, ddof=1)) if len(gains) > 1 else None,
        "gain_percent": percent(float(np.mean(gains))),
        "ratio_of_sums_gain_percent": _mean_gain([b.log_ratio_of_sums for b in used]),
        "steady_gain_percent": _mean_gain([b.log_ratio_steady for b in used]),
        "position_shift_percent": 100 * float(np.polyfit(shifts[:, 0], -shifts[:, 1], 1)[0]) if both_ways else None,
        "sign_flip_p": signflip.sign_flip_p(gains),
        "sign_flip_smallest_p": smallest,
        "sign_flip_note": "invalid: fixed servers" if is_fixed(used) else _reachable(smallest, plan.alpha),
        "unusable_share": unusable_share(used),
        "k1_from_total_requests": sum(b.k1_from_total for b in used),
        "scenarios": _scenario_numbers(used, rows, plan),
        "times_ms": _times(runs),
        "components": components(runs).to_json() if runs else None,
    }


def _times(runs: Sequence[RunTpot]) -> dict[str, dict[str, float | None]]:
    """Mean times of each scenario and arm over its runs, and TPOT by the formulas of other tools; shown, not judged."""
    found: dict[str, list[RunTpot]] = {}
    for run in sorted(runs, key=lambda run: (run.scenario, run.arm)):
        found.setdefault(f"{run.scenario}, {run.arm}", []).append(run)
    return {
        name: {
            "tpot_ms": statistics.fmean(run.tpot_ms for run in own),
            "ttft_ms": _mean([run.ttft_ms for run in own]),
            "e2e_ms": _mean([run.e2e_ms for run in own]),
            **{f"tpot_ms, {tool}": _mean([run.by_tool_ms.get(tool) for run in own]) for tool in own[0].by_tool_ms},
        }
        for name, own in found.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _reachable(smallest_p: float, alpha: float) -> str:
    return "unreachable" if smallest_p > alpha else "reachable"


def _scenario_numbers(
    used: Sequence[BlockRatio], rows: Sequence[Sequence[float]], plan: LatencyPlan
) -> dict[str, dict[str, Any]]:
    """Each scenario apart, tested once the primary is shown, at the nominal level of the look: looking again cannot add
    up."""
    table = np.asarray(rows, dtype=np.float64)
    names = declared_scenarios(used, plan)
    count = len(table)
    # Only after the primary, and never between two fixed servers, whose launch effect no flip of signs can reach.
    decided = outcome(looks([float(np.mean(row)) for row in rows], plan), plan)
    open_to_test = decided is not None and decided[0] == "gain_shown" and not is_fixed(used)
    by_t = signflip.holm([signflip.t_p(list(table[:, i])) for i in range(len(names))]) if count > 1 else None
    joint = signflip.max_t_p(table) if count >= JOINT_TEST_BLOCKS else None
    level = nominal_level(count, plan)
    out: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        own = [b for b in used if b.scenario == name]
        seen = looks(list(table[:, i]), plan, blocks=count)
        effect = detectable(list(table[:, i]), plan)
        out[name] = {
            "gain_percent": percent(float(table[:, i].mean())),
            "ratio_of_sums_gain_percent": _mean_gain([b.log_ratio_of_sums for b in own]),
            "steady_gain_percent": _mean_gain([b.log_ratio_steady for b in own]),
            "lower_percent": percent(seen[-1].lower) if seen else None,
            "upper_percent": percent(seen[-1].upper) if seen else None,
            "holm_t_p": by_t[i] if by_t else None,
            "max_t_p": joint[i] if joint else None,
            "level": level,
            "gain_shown": open_to_test and (joint or by_t or (1.0,) * len(names))[i] <= level,
            "test": "sign-flip step-down max-T" if joint else "Holm on t",
            "detectable_percent": effect.value if effect else None,
            "unusable_share": unusable_share(own),
        }
    return out


def nominal_level(blocks: int, plan: LatencyPlan) -> float:
    """The one-sided level a single test has at this look."""
    if plan.design == "stein" or blocks < plan.min_blocks:
        return plan.alpha if blocks >= plan.min_blocks else 0.0
    k = min(blocks, plan.max_blocks)
    return float(stats.t.sf(plan.boundaries().at(k), k - 1))


def look_numbers(look: Look, seen: Sequence[Look], gains: Sequence[float], plan: LatencyPlan) -> dict[str, Any]:
    """The primary's numbers at the look that decided, or the last one."""
    half = look.final_critical * look.standard_error
    error = look.standard_error
    return {
        "decision_look_blocks": look.blocks,
        "gain_percent": percent(look.gain),
        "lower_percent": percent(look.lower),
        "upper_percent": percent(look.upper),
        "final_lower_percent": percent(look.gain - half),
        "final_upper_percent": percent(look.gain + half),
        "t": look.gain / error if error else None,
        "critical_t": look.critical,
        "useful_gain_shown": look.lower > log_gain(plan.smallest_useful_gain_percent),
        "looks": [
            {
                "blocks": s.blocks,
                "gain_percent": percent(s.gain),
                "lower_percent": percent(s.lower),
                "upper_percent": percent(s.upper),
            }
            for s in seen
        ],
        "all_blocks_gain_percent": percent(float(np.mean(gains))),
    }


def _mean_gain(log_ratios: Sequence[float | None]) -> float | None:
    known = [r for r in log_ratios if r is not None]
    return percent(-float(np.mean(known))) if len(known) == len(log_ratios) and known else None
