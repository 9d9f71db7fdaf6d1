"""Changes between the columns of a metric table, re-derived from what its printed decimals allow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

from validation.judging.claims_document import (
    Claims,
    Convention,
    Improvement,
    LargestGain,
    MetricTable,
    Row,
    RowQuantity,
    SameChange,
    Trend,
)
from validation.judging.claims_figures import Figure, Interval, exactly
from validation.verdicts import AuditResult, AuditVerdict

CONSISTENT, INCONSISTENT, UNSUPPORTED = AuditVerdict.CONSISTENT, AuditVerdict.INCONSISTENT, AuditVerdict.UNSUPPORTED
PERCENT = exactly(100)
ONE = exactly(1)

CONVENTION_WORDS: Mapping[Convention, str] = {
    "signed": "100 (candidate - baseline) / baseline",
    "reduction": "100 (baseline - candidate) / baseline",
    "improvement": "the improvement in percent of the baseline",
    "speedup_percent": "the speed-up in percent",
    "speedup_ratio": "the speed-up as a ratio",
    "difference": "candidate - baseline",
    "absolute_gain": "the absolute improvement",
}


def change(table: MetricTable, baseline: Interval, candidate: Interval, convention: Convention) -> Interval | None:
    """The changes that two intervals allow; None where the convention divides by what may be zero or less."""
    lower = table.better == "lower"
    if convention in ("difference", "absolute_gain"):
        return baseline - candidate if convention == "absolute_gain" and lower else candidate - baseline
    if baseline.lo <= 0 or (convention.startswith("speedup") and candidate.lo <= 0):
        return None
    ratio = candidate / baseline
    if convention.startswith("speedup"):
        speedup = ONE / ratio if lower else ratio
        return speedup if convention == "speedup_ratio" else PERCENT * (speedup - ONE)
    falling = convention == "reduction" or (convention == "improvement" and lower)
    return PERCENT * (ONE - ratio if falling else ratio - ONE)


def complete(table: MetricTable, group: str | None = None) -> list[tuple[Row, Interval, Interval]]:
    """The rows with both values, and what the values' rounding allows."""
    return [
        (row, row.baseline.interval, row.candidate.interval)
        for row in table.rows
        if row.baseline is not None and row.candidate is not None and group in (None, row.group)
    ]


def row_change(table: MetricTable, row: Row, convention: Convention) -> Interval | None:
    """``change`` of one row; None also where a value is missing."""
    if row.baseline is None or row.candidate is None:
        return None
    return change(table, row.baseline.interval, row.candidate.interval, convention)


def span(interval: Interval) -> list[float]:
    """An interval as JSON data."""
    return [float(interval.lo), float(interval.hi)]


def audit_changes(table: MetricTable) -> list[AuditResult]:
    """One result for each change the table states, and one more where every row fits another convention instead."""
    results = [_audit_row(table, row, row.change) for row in table.rows if row.change is not None]
    wrong = [result for result in results if result.verdict is INCONSISTENT]
    fits = [result.numbers["would_fit"] for result in wrong]
    shared = [reason for reason in fits[0] if all(reason in others for others in fits)] if fits else []
    if len(wrong) > 1 and len(wrong) == len(results) and shared:
        reason = shared[0]
        results.append(
            AuditResult(
                f"{table.name}.change_convention",
                INCONSISTENT,
                reason,
                f"None of the {len(wrong)} changes of {table.name} fits the stated convention, "
                f"{CONVENTION_WORDS[table.change]}; all fit if they are {_EXPLANATIONS[reason]}.",
                {"rows": len(wrong), "stated_convention": table.change},
            )
        )
    return results


_EXPLANATIONS: Mapping[str, str] = {
    "sign_flipped": "given the other sign",
    "truncated": "cut off instead of rounded",
    "relative_to_candidate": "taken relative to the candidate instead of the baseline",
    "arms_swapped": "computed with baseline and candidate exchanged",
    "fraction_for_percent": "a fraction printed as a percentage",
    **{f"other_convention_{name}": words for name, words in CONVENTION_WORDS.items()},
}


def _audit_row(table: MetricTable, row: Row, claimed: Figure) -> AuditResult:
    name = f"{table.name}.change.{row.name}"
    unit = {"speedup_ratio": "x", "difference": table.unit, "absolute_gain": table.unit}.get(table.change, "%")
    if row.baseline is None or row.candidate is None:
        missing = "baseline" if row.baseline is None else "candidate"
        sentence = f"{row.name}: a change of {claimed} {unit} is stated, but no {missing} value to derive it from."
        return AuditResult(name, UNSUPPORTED, "missing_value", sentence, {"claimed": float(claimed.value)})
    values = f"{row.baseline} and {row.candidate} {table.unit}"
    allowed = row_change(table, row, table.change)
    if allowed is None:
        sentence = f"{row.name}: {values} allow no relative change, because a value to divide by may be zero or less."
        return AuditResult(name, UNSUPPORTED, "not_positive", sentence, {"claimed": float(claimed.value)})
    fits = claimed.interval.overlaps(allowed)
    explanations = [] if fits else _explanations(table, row.baseline, row.candidate, claimed)
    numbers = {
        "claimed": float(claimed.value),
        "claimed_allows": span(claimed.interval),
        "derived": float(allowed.mid),
        "values_allow": span(allowed),
        "would_fit": explanations,
    }
    derived = f"{row.name}: {values}, as rounded, allow a change of {allowed} {unit}; "
    if fits:
        return AuditResult(name, CONSISTENT, "within_rounding", f"{derived}the stated {claimed} {unit} fits.", numbers)
    why = f" It would fit if it were {_EXPLANATIONS[explanations[0]]}." if explanations else ""
    reason = explanations[0] if explanations else "outside_rounding"
    return AuditResult(name, INCONSISTENT, reason, f"{derived}the stated {claimed} {unit} does not fit.{why}", numbers)


def _explanations(table: MetricTable, baseline: Figure, candidate: Figure, claimed: Figure) -> list[str]:
    """What an author may have done instead, the likeliest first."""
    b, c = baseline.interval, candidate.interval
    allowed, stated = change(table, b, c, table.change), claimed.interval
    swapped = change(table, c, b, table.change)
    found = []
    if allowed is not None:
        if (-stated).overlaps(allowed):
            found.append("sign_flipped")
        if claimed.truncation_interval.overlaps(allowed):
            found.append("truncated")
        if (PERCENT * stated).overlaps(allowed) and claimed.value:
            found.append("fraction_for_percent")
    if swapped is not None:
        if stated.overlaps(-swapped) and table.change not in ("speedup_ratio", "difference", "absolute_gain"):
            found.append("relative_to_candidate")
        if stated.overlaps(swapped) and table.change != "difference":
            found.append("arms_swapped")
    for convention in CONVENTION_WORDS:
        other = change(table, b, c, convention)
        if convention != table.change and other is not None and stated.overlaps(other):
            found.append(f"other_convention_{convention}")
    return found


def audit_improvement(claim: Improvement, claims: Claims) -> list[AuditResult]:
    """Whether every row gets better, by at least and at most what is stated."""
    table = claims.table(claim.table)
    rows = [(row.name, row_change(table, row, "absolute_gain")) for row in table.rows]
    gains = [(name, gain) for name, gain in rows if gain is not None]
    worse = [name for name, gain in gains if gain.hi < 0]
    unclear = [name for name, gain in gains if gain.lo <= 0 <= gain.hi] + [name for name, gain in rows if gain is None]
    numbers = {"rows": len(rows), "worse": worse, "not_shown": unclear}
    if worse:
        verdict, reason, words = INCONSISTENT, "a_row_gets_worse", f"{len(worse)} get worse: {_some(worse)}"
    elif unclear or not rows:
        verdict, reason = UNSUPPORTED, "not_shown_for_every_row"
        words = f"{len(unclear)} do not show it: {_some(unclear)}"
    else:
        verdict, reason, words = CONSISTENT, "every_row_improves", "every one improves by more than its rounding"
    results = [AuditResult(claim.name, verdict, reason, f"Of {len(rows)} rows of {table.name}, {words}.", numbers)]
    percent = [(r.name, g) for r in table.rows if (g := row_change(table, r, "improvement")) is not None]
    for bound, figure in (("at_least", claim.at_least), ("up_to", claim.up_to)):
        if figure is not None:
            results.append(_audit_bound(f"{claim.name}.{bound}", table, percent, figure, smallest=bound == "at_least"))
    return results


def _audit_bound(
    name: str, table: MetricTable, gains: Sequence[tuple[str, Interval]], stated: Figure, smallest: bool
) -> AuditResult:
    which = "smallest" if smallest else "largest"
    if not gains:
        sentence = f"No row of {table.name} shows both values, so no {which} gain can be derived."
        return AuditResult(name, UNSUPPORTED, "no_rows", sentence)
    row, _ = (min if smallest else max)(gains, key=lambda item: item[1].mid)
    pick = min if smallest else max
    extreme = Interval(pick(g.lo for _, g in gains), pick(g.hi for _, g in gains))
    fits = stated.interval.overlaps(extreme)
    sentence = (
        f"The {which} gain in {table.name} is that of {row}, {extreme} %; "
        f"the stated {stated} % {'fits' if fits else 'does not fit'}."
    )
    numbers = {"claimed": float(stated.value), "values_allow": span(extreme), "row": row}
    return AuditResult(
        name, CONSISTENT if fits else INCONSISTENT, "within_rounding" if fits else "outside_rounding", sentence, numbers
    )


def row_quantity(table: MetricTable, row: Row, quantity: RowQuantity) -> Interval | None:
    """One quantity of one row, in percent or in the table's unit; None where it cannot be derived."""
    if quantity == "baseline":
        return None if row.baseline is None else row.baseline.interval
    if quantity == "candidate":
        return None if row.candidate is None else row.candidate.interval
    return row_change(table, row, "improvement" if quantity == "relative_gain" else "absolute_gain")


def audit_trend(claim: Trend, claims: Claims) -> AuditResult:
    """Whether a quantity falls or rises along ``at`` within every group, as far as rounding lets one see."""
    table = claims.table(claim.table)
    groups: dict[str, list[tuple[Fraction, str, Interval]]] = {}
    for row in table.rows:
        value = row_quantity(table, row, claim.quantity)
        if row.at is not None and value is not None:
            groups.setdefault(row.group, []).append((row.at.value, row.name, value))
    against, shown, pairs = [], True, 0
    for points in groups.values():
        points.sort(key=lambda point: point[0])
        steps = [(p, q) for p, q in itertools.pairwise(points) if p[0] < q[0]]
        pairs += len(steps)
        sign = -1 if claim.direction == "decreasing" else 1
        moves = [(p, q, (q[2] - p[2]) if sign > 0 else (p[2] - q[2])) for p, q in steps]
        against += [f"{p[1]} to {q[1]}" for p, q, move in moves if move.hi < 0]
        if steps:
            whole = points[-1][2] - points[0][2] if sign > 0 else points[0][2] - points[-1][2]
            shown = shown and whole.lo > 0
    numbers = {"groups": len(groups), "steps": pairs, "against": against}
    what = f"{claim.quantity.replace('_', ' ')} of {table.name}"
    if against:
        other_way = f"goes the other way in {len(against)} of {pairs} steps: {_some(against)}"
        sentence = f"The {what} is said to be {claim.direction}, and {other_way}."
        return AuditResult(claim.name, INCONSISTENT, "goes_the_other_way", sentence, numbers)
    if not pairs or not shown:
        sentence = f"The {what} is said to be {claim.direction}; its {pairs} steps do not show more than rounding."
        return AuditResult(claim.name, UNSUPPORTED, "not_beyond_rounding", sentence, numbers)
    sentence = f"The {what} is {claim.direction} in each of {len(groups)} groups; none of {pairs} steps contradicts it."
    return AuditResult(claim.name, CONSISTENT, "monotone", sentence, numbers)


def audit_largest_gain(claim: LargestGain, claims: Claims) -> AuditResult:
    """Whether no row certainly exceeds the named one."""
    table = claims.table(claim.table)
    values = {row.name: v for row in table.rows if (v := row_quantity(table, row, claim.quantity)) is not None}
    what = claim.quantity.replace("_", " ")
    if claim.row not in values:
        sentence = f"The {what} of {claim.row} cannot be derived from {table.name}."
        return AuditResult(claim.name, UNSUPPORTED, "missing_value", sentence)
    own = values[claim.row]
    unit = "%" if claim.quantity == "relative_gain" else table.unit
    larger = [name for name, value in values.items() if value.lo > own.hi]
    numbers = {"row": claim.row, "values_allow": span(own), "larger": larger}
    if larger:
        sentence = f"{claim.row} is said to have the largest {what}, {own} {unit}; {_some(larger)} has more."
        return AuditResult(claim.name, INCONSISTENT, "another_row_is_larger", sentence, numbers)
    sentence = f"{claim.row} has a {what} of {own} {unit}, and none of {len(values)} rows certainly has more."
    return AuditResult(claim.name, CONSISTENT, "none_is_larger", sentence, numbers)


def audit_same_change(claim: SameChange, claims: Claims) -> AuditResult:
    """Whether another metric can be said to improve by the same percentage."""
    table = claims.table(claim.table)
    gains = {row.name: g for row in table.rows if (g := row_change(table, row, "improvement")) is not None}
    if claim.other_table is None:
        speedups = {r.name: s for r in table.rows if (s := row_change(table, r, "speedup_percent")) is not None}
        shared = [name for name in gains if name in speedups]
        best = max(shared, key=lambda name: gains[name].mid, default=None)
        sentence = (
            f"No {claim.metric} is shown, and it does not follow from {table.metric} alone, "
            f"since it also holds whatever {table.metric} leaves out (for TPOT: TTFT, queueing, idle time)."
        )
        if best is not None:
            sentence += (
                f" Even if {claim.metric} were exactly the inverse of {table.metric}, it would improve by "
                f"{float(speedups[best].mid):.2f} % in {best}, not by {float(gains[best].mid):.2f} %."
            )
        return AuditResult(claim.name, UNSUPPORTED, "not_derivable", sentence, {"rows": len(gains)})
    other = claims.table(claim.other_table)
    compared, differing = [], []
    for row in other.rows:
        readings = [row_change(other, row, c) for c in ("improvement", "speedup_percent")]
        if row.name in gains and readings[0] is not None:
            compared.append(row.name)
            if not any(reading is not None and reading.overlaps(gains[row.name]) for reading in readings):
                differing.append(row.name)
    numbers = {"rows": len(gains), "compared": len(compared), "differing": differing}
    if differing:
        where = f"{len(differing)} of {len(compared)} rows: {_some(differing)}"
        sentence = f"{claim.metric} improves by another percentage than {table.metric} in {where}."
        return AuditResult(claim.name, INCONSISTENT, "percentages_differ", sentence, numbers)
    if len(compared) < len(gains) or not compared:
        sentence = f"Only {len(compared)} of {len(gains)} rows of {table.name} show {claim.metric} too."
        return AuditResult(claim.name, UNSUPPORTED, "not_shown_for_every_row", sentence, numbers)
    sentence = (
        f"{claim.metric} improves by the same percentage as {table.metric} in all {len(compared)} rows, as rounded."
    )
    return AuditResult(claim.name, CONSISTENT, "within_rounding", sentence, numbers)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
