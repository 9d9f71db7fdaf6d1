"""The claim audit: every figure of an author's document that can be re-derived from its other figures.

``audit`` takes the document as data (``claims_from_json``, ``claims_from_table``) and sourced facts of the model, and
says of each claim CONSISTENT, INCONSISTENT (the figures contradict it) or UNSUPPORTED (they do not give it). Nothing
here gates: a table may be wrong and the change still good. A printed decimal stands for all numbers that round to it,
so a derived figure is called INCONSISTENT only where no unrounded values could have made it true.
"""

from __future__ import annotations

from fractions import Fraction

from validation.judging.claims_accuracy import audit_accuracy, audit_bit_exact
from validation.judging.claims_averages import audit_aggregate
from validation.judging.claims_changes import (
    CONSISTENT,
    INCONSISTENT,
    UNSUPPORTED,
    audit_changes,
    audit_improvement,
    audit_largest_gain,
    audit_same_change,
    audit_trend,
    span,
)
from validation.judging.claims_document import (
    Accuracy,
    Aggregate,
    Arithmetic,
    BitExact,
    Claims,
    ConstantSaving,
    Fact,
    Improvement,
    KernelCount,
    LargestGain,
    MetricTable,
    ModelFacts,
    PerLayerSaving,
    Quantity,
    Row,
    SameChange,
    Statement,
    Trend,
)
from validation.judging.claims_figures import ClaimError, Figure, Interval, common, exactly
from validation.judging.claims_reading import claims_from_json, facts_from_json
from validation.judging.claims_savings import (
    SECONDS,
    audit_constant_saving,
    audit_kernel_count,
    audit_layers,
    audit_per_layer_saving,
)
from validation.judging.claims_table import claims_from_table
from validation.verdicts import AuditResult

__all__ = [
    "ClaimError",
    "Claims",
    "Fact",
    "Figure",
    "MetricTable",
    "ModelFacts",
    "Row",
    "audit",
    "claims_from_json",
    "claims_from_table",
    "facts_from_json",
]


def audit(claims: Claims, facts: ModelFacts | None = None) -> list[AuditResult]:
    """Every result, in the document's order: changes of tables, statements, then what is stated more than once."""
    return [
        *(result for table in claims.tables for result in audit_changes(table)),
        *(result for statement in claims.statements for result in _audit_statement(statement, claims, facts)),
        *_audit_repetitions(claims, facts),
    ]


def _audit_statement(claim: Statement, claims: Claims, facts: ModelFacts | None) -> list[AuditResult]:
    if isinstance(claim, PerLayerSaving):
        return [audit_per_layer_saving(claim, claims, facts), *audit_layers(claim, facts)]
    if isinstance(claim, ConstantSaving):
        return [audit_constant_saving(claim, claims)]
    if isinstance(claim, Trend):
        return [audit_trend(claim, claims)]
    if isinstance(claim, LargestGain):
        return [audit_largest_gain(claim, claims)]
    if isinstance(claim, Improvement):
        return audit_improvement(claim, claims)
    if isinstance(claim, Aggregate):
        return [audit_aggregate(claim, claims)]
    if isinstance(claim, SameChange):
        return [audit_same_change(claim, claims)]
    if isinstance(claim, KernelCount):
        return [audit_kernel_count(claim, facts), *audit_layers(claim, facts)]
    if isinstance(claim, Accuracy):
        return audit_accuracy(claim)
    if isinstance(claim, BitExact):
        return [audit_bit_exact(claim)]
    if isinstance(claim, Arithmetic):
        return [_audit_arithmetic(claim)]
    return []  # a Quantity says nothing alone; see _audit_repetitions


def _interval(value: Figure | int) -> Interval:
    return exactly(value) if isinstance(value, int) else value.interval


def _audit_arithmetic(claim: Arithmetic) -> AuditResult:
    total = exactly(0 if claim.operation == "sum" else 1)
    for term in claim.terms:
        total = total + _interval(term) if claim.operation == "sum" else total * _interval(term)
    fits = _interval(claim.result).overlaps(total)
    formula = (" + " if claim.operation == "sum" else " x ").join(map(str, claim.terms))
    sentence = (
        f"{formula} is {total}, as rounded; the stated {claim.result} {claim.unit}".rstrip()
        + f" {'fits' if fits else 'does not fit'}."
    )
    numbers = {"claimed": span(_interval(claim.result)), "allowed": span(total)}
    verdict, reason = (CONSISTENT, "within_rounding") if fits else (INCONSISTENT, "outside_rounding")
    return AuditResult(claim.name, verdict, reason, sentence, numbers)


def _audit_repetitions(claims: Claims, facts: ModelFacts | None) -> list[AuditResult]:
    """One result for each quantity that the document (or a fact) gives more than once."""
    stated: dict[str, list[Quantity]] = {}
    for quantity in _quantities(claims):
        stated.setdefault(" ".join(quantity.quantity.casefold().split()), []).append(quantity)
    for key, values in stated.items():
        fact = facts.get(key) if facts else None
        if fact is not None:
            values.append(Quantity("fact", key, fact.value, values[0].unit, fact.source))
    return [_audit_repetition(values) for values in stated.values() if len(values) > 1]


def _quantities(claims: Claims) -> list[Quantity]:
    """Quantities named as such, accuracies, and the values of tables: wherever the same thing may stand twice."""
    found = [statement for statement in claims.statements if isinstance(statement, Quantity)]
    for claim in claims.statements:
        if isinstance(claim, Accuracy):
            for arm, accuracy in (("baseline", claim.baseline), ("candidate", claim.candidate)):
                if accuracy is not None:
                    name = f"{claim.benchmark} accuracy, {arm}"
                    found.append(Quantity(claim.name, name, accuracy, claim.unit, claim.place))
    for table in claims.tables:
        for row in table.rows:
            for arm, value in (("baseline", row.baseline), ("candidate", row.candidate)):
                if value is not None:
                    name = " ".join(filter(None, (table.scope, table.metric, f"of {row.name},", arm)))
                    found.append(Quantity(table.name, name, value, table.unit, table.place))
    return found


def _audit_repetition(values: list[Quantity]) -> AuditResult:
    name = f"repeated.{values[0].quantity}"
    scaled = [_to_base_unit(value) for value in values]
    shown = " and ".join(f"{v.value} {v.unit}".rstrip() + (f" ({v.place})" if v.place else "") for v in values[:4])
    numbers = {"values": [str(v.value) for v in values], "units": [v.unit for v in values]}
    if len({dimension for _, dimension in scaled}) > 1:
        sentence = f"{values[0].quantity} is given as {shown}, in units that cannot be compared."
        return AuditResult(name, UNSUPPORTED, "units_differ", sentence, numbers)
    shared = common(interval for interval, _ in scaled)
    # A single shared point between two rounded values is where one ends and the next begins: no rule rounds it to both.
    if shared is None or (shared.lo == shared.hi and all(interval.lo < interval.hi for interval, _ in scaled)):
        sentence = (
            f"{values[0].quantity} is given as {shown}; no one value is printed as all of these, "
            "and nothing says that they are different measurements."
        )
        return AuditResult(name, INCONSISTENT, "contradicts_itself", sentence, numbers)
    return AuditResult(
        name, CONSISTENT, "agrees_with_itself", f"{values[0].quantity} is given as {shown}, which agree.", numbers
    )


def _to_base_unit(quantity: Quantity) -> tuple[Interval, str]:
    """The value in seconds or as a fraction where its unit can be converted, and what it then measures."""
    interval = _interval(quantity.value)
    if quantity.unit in SECONDS:
        return interval * exactly(SECONDS[quantity.unit]), "s"
    if quantity.unit in ("percent", "%"):
        return interval * exactly(Fraction(1, 100)), "fraction"
    return interval, quantity.unit
