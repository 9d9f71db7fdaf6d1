"""One given server against a recorded baseline: it can be shown to be no slower, never to be faster.

The candidate is one launch on one day. Its difference from the baseline holds a launch effect and a day effect that
only the baseline's own record can size, so a baseline without both says nothing.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from validation.judging.latency_design import LatencyPlan, log_gain, percent
from validation.judging.tpot import RunTpot
from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run


@dataclasses.dataclass(frozen=True)
class ScenarioBaseline:
    """What was recorded of one scenario on one kind of hardware."""

    tpot_ms: float
    """Geometric mean over launches."""
    launches: int
    launch_sd_percent: float | None
    """Between launches of one day, runs included."""
    days: int
    day_sd_percent: float | None
    """Between days, on top of launches."""


def judge_against_baseline(
    runs: Sequence[RunTpot], baseline: Mapping[str, ScenarioBaseline], plan: LatencyPlan
) -> list[Finding]:
    """``latency.primary``, always INCONCLUSIVE ``single_server``, and ``latency.no_slower`` against ``baseline``.

    The caller answers for the prompts, the model and the hardware being the same. Each scenario is tested at
    ``plan.alpha``; all must pass (intersection-union). Half widths of launch and day add as squares (MOVER: Zou and
    Donner, Stat. Med. 27, 2008).
    """
    names = plan.scenarios or tuple(sorted({r.scenario for r in runs}))
    measured = [name for name in names if any(r.scenario == name for r in runs)]
    if not runs or len(measured) < len(names) or not names:
        missing = ", ".join(set(names) - set(measured)) or "any scenario"
        return [
            not_run(n, Evidence.LATENCY, "no_runs", f"No run of {missing}.")
            for n in ("latency.primary", "latency.no_slower")
        ]
    sentence = "One server was measured and not restarted; against a recorded baseline no gain can be shown."
    primary = Finding("latency.primary", Evidence.LATENCY, Verdict.INCONCLUSIVE, "single_server", sentence, len(runs))
    return [primary, _no_slower(runs, names, baseline, plan)]


def _no_slower(
    runs: Sequence[RunTpot], names: Sequence[str], baseline: Mapping[str, ScenarioBaseline], plan: LatencyPlan
) -> Finding:
    margin = plan.no_slower_margin_percent or LatencyPlan.no_slower_margin_percent or 1.0
    limit = log_gain(-margin)
    table: dict[str, dict[str, Any]] = {}
    unsized: list[str] = []
    detectable = 0.0
    for name in names:
        recorded = baseline.get(name)
        sizes = None if recorded is None else _spread(recorded, plan.alpha)
        if recorded is None or sizes is None:
            unsized.append(name)
            continue
        tpot_ms = statistics.geometric_mean(r.tpot_ms for r in runs if r.scenario == name)
        gain, (half, error) = math.log(recorded.tpot_ms / tpot_ms), sizes
        detectable = max(detectable, half + float(stats.norm.ppf(plan.power)) * error)
        table[name] = {
            "tpot_ms": tpot_ms,
            "baseline_tpot_ms": recorded.tpot_ms,
            "gain_percent": percent(gain),
            "lower_percent": percent(gain - half),
            "upper_percent": percent(gain + half),
        }
    numbers = {"margin_percent": margin, "scenarios": table}
    effect = Effect(
        100 * detectable, "percent of TPOT", f"{100 * plan.power:g} % power, one-sided alpha {plan.alpha:g}"
    )

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        known = effect if table else None
        return Finding("latency.no_slower", Evidence.LATENCY, verdict, reason, sentence, len(runs), numbers, known)

    slower = [n for n, row in table.items() if log_gain(row["upper_percent"]) < limit]
    undecided = [n for n, row in table.items() if log_gain(row["lower_percent"]) <= limit]
    if slower:
        sentence = f"Slower than the baseline by more than {margin:g} %: {', '.join(slower)}."
        return finding(Verdict.FAIL, "scenario_slower", sentence)
    if unsized:
        sentence = f"The baseline carries no launch and day variance for {', '.join(unsized)}."
        return finding(Verdict.INCONCLUSIVE, "baseline_without_variance", sentence)
    if undecided:
        sentence = f"Not shown to be within {margin:g} % of the baseline: {', '.join(undecided)}."
        return finding(Verdict.INCONCLUSIVE, "scenario_undecided", sentence)
    return finding(
        Verdict.PASS, "no_scenario_slower", f"All {len(names)} scenarios are within {margin:g} % of the baseline."
    )


def _spread(recorded: ScenarioBaseline, alpha: float) -> tuple[float, float] | None:
    """Half width and standard error of a new launch on a new day minus the baseline; None where unknown."""
    if (
        recorded.launch_sd_percent is None
        or recorded.day_sd_percent is None
        or min(recorded.launches, recorded.days) < 2
    ):
        return None
    parts = [
        (recorded.launch_sd_percent / 100, recorded.launches),
        (recorded.day_sd_percent / 100, recorded.days),
    ]
    errors = [sd * math.sqrt(1 + 1 / count) for sd, count in parts]
    halves = [error * float(stats.t.isf(alpha, count - 1)) for error, (_, count) in zip(errors, parts, strict=True)]
    return math.hypot(*halves), math.hypot(*errors)
