"""Savings per layer and per step, and launches per step, against the layers of the model and the measured table."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from validation.judging.claims_averages import mean
from validation.judging.claims_changes import CONSISTENT, INCONSISTENT, UNSUPPORTED, complete, row_change, span
from validation.judging.claims_document import Claims, ConstantSaving, KernelCount, ModelFacts, PerLayerSaving
from validation.judging.claims_figures import Interval, common, exactly, hull
from validation.verdicts import AuditResult

ALPHA = 0.025
"""Level of a one-sided rejection: the one that the latency judgement declares for its primary comparison."""
SECONDS: Mapping[str, Fraction] = {
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_Array = npt.NDArray[np.float64]
MOST_NOISE = 10.0
"""1000 % of a value: where even so much noise does not reconcile a table with a model, none does."""


def layers_of(stated: int | None, facts: ModelFacts | None) -> tuple[int | None, str]:
    """The number of layers and where it comes from; a sourced fact goes before the document's own word."""
    fact = facts.get("layers") if facts else None
    if fact is not None:
        return fact.value, fact.source
    return stated, "as the document states"


def audit_layers(claim: PerLayerSaving | KernelCount, facts: ModelFacts | None) -> list[AuditResult]:
    """Whether a number of layers that the document states is the model's."""
    fact = facts.get("layers") if facts else None
    if claim.layers is None or fact is None:
        return []
    same = claim.layers == fact.value
    sentence = f"The document counts {claim.layers} layers; the model has {fact.value} ({fact.source})."
    numbers = {"claimed": claim.layers, "layers": fact.value}
    verdict, reason = (CONSISTENT, "same_count") if same else (INCONSISTENT, "another_layer_count")
    return [AuditResult(f"{claim.name}.layers", verdict, reason, sentence, numbers)]


def audit_per_layer_saving(claim: PerLayerSaving, claims: Claims, facts: ModelFacts | None) -> AuditResult:
    """Saving per layer x layers against the measured saving per step, where a step yields one token a request."""
    table = claims.table(claim.table)
    layers, source = layers_of(claim.layers, facts)
    if layers is None:
        sentence = f"{claim.saving} {claim.unit} per layer is stated, and the number of layers is not known."
        return AuditResult(claim.name, UNSUPPORTED, "no_layer_count", sentence)
    if claim.unit not in SECONDS or table.unit not in SECONDS:
        sentence = f"{claim.unit!r} per layer and {table.unit!r} of {table.name} cannot be compared; expected times."
        return AuditResult(claim.name, UNSUPPORTED, "not_a_time", sentence)
    savings = [g for row in table.rows if (g := row_change(table, row, "absolute_gain")) is not None]
    if not savings:
        return AuditResult(claim.name, UNSUPPORTED, "no_rows", f"{table.name} has no row with both values.")
    scale = exactly(SECONDS[table.unit] / SECONDS[claim.unit] / layers)
    per_layer = [scale * saving for saving in savings]
    stated = claim.saving.interval
    middles = hull(i.mid for i in per_layer)
    whole = hull(end for i in per_layer for end in (i.lo, i.hi))
    fitting = sum(stated.overlaps(i) for i in per_layer)
    step = exactly(layers * SECONDS[claim.unit] / SECONDS[table.unit]) * exactly(claim.saving.value)
    numbers: dict[str, object] = {
        "layers": layers,
        "layers_source": source,
        "claimed_per_layer": float(claim.saving.value),
        "claimed_per_step": float(step.mid),
        "measured_per_step": span(hull(s.mid for s in savings)),
        "measured_per_layer": span(middles),
        "measured_per_layer_allowed": span(whole),
        "rows": len(savings),
        "rows_fitting": fitting,
    }
    ratio = ""
    if stated.lo > 0:
        ratios = middles / exactly(claim.saving.value)
        numbers["measured_over_claimed"] = span(ratios)
        numbers["measured_over_claimed_allowed"] = span(whole / stated)
        ratio = f", {float(ratios.lo):.1f} to {float(ratios.hi):.1f} times the claim"
    sentence = (
        f"{layers} layers x {claim.saving} {claim.unit} make {float(step.mid):.3g} {table.unit} a step; "
        f"{table.name} saves {_range(hull(s.mid for s in savings))} {table.unit}, "
        f"that is {_range(middles)} {claim.unit} per layer{ratio}"
    )
    if fitting == len(savings):
        return AuditResult(claim.name, CONSISTENT, "every_row_fits", f"{sentence}: every row fits.", numbers)
    if stated.overlaps(mean(per_layer)):
        words = f"{sentence}: the mean fits, and {fitting} of {len(savings)} rows by rounding alone."
        return AuditResult(claim.name, CONSISTENT, "mean_fits", words, numbers)
    if stated.overlaps(whole):
        words = f"{sentence}: {fitting} of {len(savings)} rows fit and the mean does not."
        return AuditResult(claim.name, UNSUPPORTED, "some_rows_fit", words, numbers)
    return AuditResult(claim.name, INCONSISTENT, "no_row_fits", f"{sentence}: no row fits.", numbers)


def audit_constant_saving(claim: ConstantSaving, claims: Claims) -> AuditResult:
    """One absolute gain fitted to all rows: first by interval, then by chi-square, then with the noise it would need.

    A value printed to a last place u has a rounding variance of u^2 / 12 (uniform), so a difference of two values
    printed to 0.01 has the standard deviation 0.01 sqrt(2 / 12). Chi-square is the weighted sum of squares about the
    weighted mean, on n - 1 degrees of freedom. Scenario noise of f (relative, each arm on its own) adds
    2 (f x baseline)^2 to a difference's variance; the condition is the smallest f at which chi-square comes down to its
    upper ``ALPHA`` point.
    """
    table = claims.table(claim.table)
    used = complete(table)
    if len(used) < 2:
        sentence = f"{table.name} has {len(used)} rows with both values; one constant needs two to be compared with."
        return AuditResult(claim.name, UNSUPPORTED, "too_few_rows", sentence)
    gains = [g for row, _, _ in used if (g := row_change(table, row, "absolute_gain")) is not None]
    gain = np.array([float(g.mid) for g in gains])
    baseline = np.array([abs(float(b.mid)) for _, b, _ in used])
    rounding = np.array([float((b.hi - b.lo) ** 2 + (c.hi - c.lo) ** 2) / 12 for _, b, c in used])
    degrees = len(gain) - 1
    chi_square = _chi_square(gain, rounding)
    critical = float(stats.chi2.isf(ALPHA, degrees))
    numbers: dict[str, object] = {
        "rows": len(gain),
        "smallest": float(gain.min()),
        "largest": float(gain.max()),
        "chi_square": chi_square,
        "degrees_of_freedom": degrees,
        "critical": critical,
        "alpha": ALPHA,
    }
    extent = f"{gain.min():.3g} to {gain.max():.3g} {table.unit}"
    spread = f"The absolute gain of {table.name} runs from {extent} over {len(gain)} rows"
    test = f"chi-square {chi_square:.0f} on {degrees} degrees of freedom"
    if common(gains) is not None:
        sentence = f"{spread}; rounding alone allows one constant, {common(gains)} {table.unit}."
        return AuditResult(claim.name, CONSISTENT, "one_constant_fits", sentence, numbers)
    if chi_square <= critical:
        sentence = f"{spread}; {test} does not reject one constant."
        return AuditResult(claim.name, CONSISTENT, "not_rejected", sentence, numbers)
    rejected = f"{spread}; with rounding alone, {test} rejects one constant"
    needed = _noise_needed(gain, baseline, rounding, critical)
    if needed is None:
        sentence = f"{rejected}, and no scenario noise reconciles it."
        return AuditResult(claim.name, INCONSISTENT, "no_noise_suffices", sentence, numbers)
    numbers["noise_percent_needed"] = 100 * needed
    condition = f"it holds only if scenario noise is at least {100 * needed:.2g} % of {table.metric}"
    if claim.noise_percent is not None:
        enough = float(claim.noise_percent.interval.hi) >= 100 * needed
        verdict, reason = (CONSISTENT, "shown_noise_suffices") if enough else (INCONSISTENT, "shown_noise_too_small")
        sentence = f"{rejected}; {condition}, and {claim.noise_percent} % is shown."
        return AuditResult(claim.name, verdict, reason, sentence, numbers)
    relative = [g for row, _, _ in used if (g := row_change(table, row, "improvement")) is not None]
    if len(used) > 2 and len(relative) == len(used) and common(relative) is not None:
        sentence = f"{rejected}; one relative gain fits every row instead, {common(relative)} %."
        return AuditResult(claim.name, INCONSISTENT, "proportional_instead", sentence, numbers)
    if relative and 100 * needed >= abs(float(np.median([float(g.mid) for g in relative]))):
        sentence = f"{rejected}; {condition}, which is as large as the gain itself."
        return AuditResult(claim.name, INCONSISTENT, "noise_as_large_as_the_gain", sentence, numbers)
    sentence = f"{rejected}; {condition}, which is not shown."
    return AuditResult(claim.name, UNSUPPORTED, "needs_scenario_noise", sentence, numbers)


def audit_kernel_count(claim: KernelCount, facts: ModelFacts | None) -> AuditResult:
    """Removed launches against launches per layer x layers x profiled steps."""
    layers, source = layers_of(claim.layers, facts)
    removed = claim.before - claim.after
    if layers is None:
        sentence = f"{removed} launches of {claim.kernel} are said to go, and the number of layers is not known."
        return AuditResult(claim.name, UNSUPPORTED, "no_layer_count", sentence, {"removed": removed})
    a_step = layers * claim.per_layer
    expected = f"{layers} layers x {claim.per_layer} make {a_step} launches a step"
    whole = "decode step" if claim.per == "step" else "profile"
    stated = f"{claim.before} -> {claim.after} launches of {claim.kernel} per {whole}"
    steps, rest = divmod(removed, a_step)
    numbers = {
        "before": claim.before,
        "after": claim.after,
        "layers": layers,
        "layers_source": source,
        "per_layer": claim.per_layer,
        "steps_implied": removed / a_step,
    }
    if removed <= 0:
        return AuditResult(claim.name, INCONSISTENT, "none_removed", f"{stated}: no launch is removed.", numbers)
    known = 1 if claim.per == "step" else claim.profiled_steps
    if known is not None and removed == known * a_step:
        return AuditResult(
            claim.name, CONSISTENT, "counts_agree", f"{stated}; {expected}, and {known} counted.", numbers
        )
    if rest:
        sentence = f"{stated}; {expected}, and {removed} is no multiple of that."
        return AuditResult(claim.name, INCONSISTENT, "no_multiple_of_layers", sentence, numbers)
    product = f"{removed} = {a_step} x {steps}"
    if known is None:
        sentence = f"{stated}; {expected}, and {product}, so {steps} profiled steps, which are not stated."
        return AuditResult(claim.name, UNSUPPORTED, "steps_not_stated", sentence, numbers)
    sentence = f"{stated}; {expected}, and {product}: it counts {steps} profiled steps, not {known}."
    return AuditResult(claim.name, INCONSISTENT, "counts_other_steps", sentence, numbers)


def _chi_square(gain: _Array, variance: _Array) -> float:
    constant = np.sum(gain / variance) / np.sum(1 / variance)
    return float(np.sum((gain - constant) ** 2 / variance))


def _noise_needed(gain: _Array, baseline: _Array, rounding: _Array, critical: float) -> float | None:
    """The relative standard deviation of one value at which chi-square is ``critical``; None where none is enough."""

    def excess(noise: float) -> float:
        return _chi_square(gain, rounding + 2 * (noise * baseline) ** 2) - critical

    if excess(MOST_NOISE) > 0:
        return None
    return float(optimize.brentq(excess, 0.0, MOST_NOISE, xtol=1e-12))


def _range(interval: Interval) -> str:
    lo, hi = f"{float(interval.lo):.3g}", f"{float(interval.hi):.3g}"
    return lo if lo == hi else f"{lo} to {hi}"
