"""Averages and extremes over the rows of a metric table, each by every reading that its rows allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from validation.judging.claims_changes import (
    CONSISTENT,
    INCONSISTENT,
    UNSUPPORTED,
    change,
    complete,
    row_change,
    span,
)
from validation.judging.claims_document import Aggregate, Claims, MetricTable, Statistic
from validation.judging.claims_figures import Interval, exactly
from validation.verdicts import AuditResult

LOG_SLACK = Fraction(1, 10**12)
"""Relative widening of a geometric mean, for the rounding of binary logarithms (2^-52 each, at most 1000 rows)."""


def audit_aggregate(claim: Aggregate, claims: Claims) -> AuditResult:
    """Whether an average or extreme over rows follows from them, from the values or from the printed changes."""
    table = claims.table(claim.table)
    chosen = [row for row in table.rows if claim.group in (None, row.group)]
    used = complete(table, claim.group)
    readings = statistics(table, claim.group)
    fitting = [name for name, reading in readings.items() if any(claim.value.interval.overlaps(i) for i in reading)]
    wanted: list[Statistic] = [claim.statistic]
    if claim.statistic == "average_change":
        wanted = ["mean_change", "change_of_means"]
    allowed = [interval for name in wanted for interval in readings.get(name, [])]
    numbers = {
        "claimed": float(claim.value.value),
        "values_allow": [span(interval) for interval in allowed],
        "rows": len(used),
        "rows_missing": len(chosen) - len(used),
        "would_fit": [name for name in fitting if name not in wanted],
    }
    words = claim.statistic.replace("_", " ")
    if not allowed:
        sentence = f"The {words} of {table.name} cannot be derived from its {len(used)} complete rows."
        return AuditResult(claim.name, UNSUPPORTED, "not_derivable", sentence, numbers)
    over = f"{len(used)} of {len(chosen)} rows of {table.name}"
    derived = f"The {words} over {over} is {' or '.join(map(str, allowed))}; "
    if any(name in fitting for name in wanted):
        sentence = f"{derived}the stated {claim.value} fits."
        return AuditResult(claim.name, CONSISTENT, "within_rounding", sentence, numbers)
    if len(used) < len(chosen):
        sentence = f"{derived}the stated {claim.value} does not fit, and may rest on the rows that are not shown."
        return AuditResult(claim.name, UNSUPPORTED, "rows_missing", sentence, numbers)
    others = [name for name in fitting if name not in wanted]
    why = f" It would fit as {others[0].replace('_', ' ')}." if others else ""
    reason = "another_statistic" if others else "outside_rounding"
    sentence = f"{derived}the stated {claim.value} does not fit.{why}"
    return AuditResult(claim.name, INCONSISTENT, reason, sentence, numbers)


def statistics(table: MetricTable, group: str | None) -> dict[Statistic, list[Interval]]:
    """Every statistic that the rows allow; two readings where both values and printed changes give it."""
    chosen = [row for row in table.rows if group in (None, row.group)]
    used = complete(table, group)
    derived = [change(table, b, c, table.change) for _, b, c in used]
    changes = [interval for interval in derived if interval is not None]
    printed = [exactly(row.change.value) for row in chosen if row.change is not None]
    found: dict[Statistic, list[Interval]] = {}

    def put(name: Statistic, values: Sequence[Interval], combine: Callable[[Sequence[Interval]], Interval]) -> None:
        if values:
            found.setdefault(name, []).append(combine(values))

    for values in (changes if len(changes) == len(used) else [], printed):
        put("mean_change", values, mean)
        put("median_change", values, median)
        put("min_change", values, lambda v: Interval(min(i.lo for i in v), min(i.hi for i in v)))
        put("max_change", values, lambda v: Interval(max(i.lo for i in v), max(i.hi for i in v)))
    baselines, candidates = [b for _, b, _ in used], [c for _, _, c in used]
    put("mean_gain", [row_change(table, row, "absolute_gain") or exactly(0) for row, _, _ in used], mean)
    put("mean_baseline", [row.baseline.interval for row in chosen if row.baseline is not None], mean)
    put("mean_candidate", [row.candidate.interval for row in chosen if row.candidate is not None], mean)
    positive = all(interval.lo > 0 for interval in baselines + candidates)
    averages: tuple[tuple[Statistic, Callable[[Sequence[Interval]], Interval]], ...] = (
        ("change_of_means", mean),
        ("geometric_mean_change", geometric_mean),
    )
    for name, combine in averages:
        if baselines and (combine is mean or positive):
            whole = change(table, combine(baselines), combine(candidates), table.change)
            if whole is not None:
                found[name] = [whole]
    if baselines and positive:
        put("geometric_mean_baseline", baselines, geometric_mean)
        put("geometric_mean_candidate", candidates, geometric_mean)
    return found


def mean(values: Sequence[Interval]) -> Interval:
    """The arithmetic mean of at least one interval."""
    total = sum(values[1:], values[0])
    return Interval(total.lo / len(values), total.hi / len(values))


def median(values: Sequence[Interval]) -> Interval:
    """The median of at least one interval."""
    return Interval(_middle(sorted(i.lo for i in values)), _middle(sorted(i.hi for i in values)))


def geometric_mean(values: Sequence[Interval]) -> Interval:
    """The geometric mean of at least one positive interval, widened by ``LOG_SLACK``."""
    lo, hi = (Fraction(math.exp(math.fsum(map(math.log, ends)) / len(values))) for ends in (
        [i.lo for i in values], [i.hi for i in values]
    ))  # fmt: skip
    return Interval(lo * (1 - LOG_SLACK), hi * (1 + LOG_SLACK))


def _middle(ordered: Sequence[Fraction]) -> Fraction:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
