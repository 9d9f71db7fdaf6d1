"""Accuracy against its stated range, the runs behind it and the sampling error of its questions; and "bit-exact"."""

from __future__ import annotations

import math
from fractions import Fraction

from validation.judging.claims_changes import CONSISTENT, INCONSISTENT, UNSUPPORTED
from validation.judging.claims_document import Accuracy, BitExact
from validation.judging.claims_figures import Figure, Interval, exactly
from validation.verdicts import AuditResult

Z_TWO_SIDED = 1.959964
"""97.5 % point of the normal distribution."""
Z_POWER = 1.281552
"""90 % point, for the smallest difference that would be seen nine times in ten."""
MARGIN = 0.01
"""One percentage point, the default non-inferiority margin of the accuracy judgement."""
FEWEST_RUNS = 5
"""With k runs of one build, one more falls outside their range with probability 2 / (k + 1): a half at k = 3."""


def audit_accuracy(claim: Accuracy) -> list[AuditResult]:
    """Results ``.counts`` (questions stated), ``.range`` and ``.runs`` (range stated) and ``.sampling``."""
    results = [_counts(claim)] if claim.questions is not None else []
    if claim.range is not None:
        results.append(_range(claim, claim.range.low, claim.range.high))
        results.append(_runs(claim, claim.range.low, claim.range.high))
    return [*results, _sampling(claim)]


def audit_bit_exact(claim: BitExact) -> AuditResult:
    """ "Bit-exact within a tolerance" is a contradiction in terms: a difference above zero is no equality of bits.

    Where the consumer is not deterministic, its output cannot show equality at all, and the tolerance would let a real
    difference of its own size pass. What can be exact is the tensor before that consumer.
    """
    if claim.tolerance is None:
        sentence = "Bit-exact within noise is stated, and the noise is not; an exact comparison has no noise to state."
        return AuditResult(claim.name, UNSUPPORTED, "tolerance_not_stated", sentence)
    numbers = {"tolerance": float(claim.tolerance.value)}
    if claim.tolerance.value == 0:
        sentence = "The comparison allows no difference, so it can show equality of bits."
        return AuditResult(claim.name, CONSISTENT, "no_tolerance", sentence, numbers)
    sentence = (
        f"Bit-exact allows a difference of 0, and {claim.tolerance} is allowed: a comparison with that tolerance "
        "passes a changed result, and an output that differs between runs of one build cannot show equality of bits; "
        "compare the bytes before the first kernel that is not deterministic."
    )
    return AuditResult(claim.name, INCONSISTENT, "contradiction_in_terms", sentence, numbers)


def _share(claim: Accuracy, figure: Figure) -> Interval:
    """A figure as a fraction of the questions."""
    return figure.interval / exactly(1 if claim.unit == "fraction" else 100)


def _trials(claim: Accuracy) -> int:
    return (claim.questions or 0) * claim.runs_per_arm


def _counts(claim: Accuracy) -> AuditResult:
    """Whether some number of right answers rounds to each printed accuracy."""
    trials = _trials(claim)
    impossible = []
    for figure in (claim.baseline, claim.candidate):
        if figure is not None:
            share = _share(claim, figure)
            least, most = max(0, math.ceil(share.lo * trials)), min(trials, math.floor(share.hi * trials))
            if least > most:
                impossible.append(str(figure))
    numbers = {"trials": trials, "impossible": impossible}
    if impossible:
        sentence = f"No number of right answers out of {trials} rounds to {' or '.join(impossible)}."
        return AuditResult(f"{claim.name}.counts", INCONSISTENT, "no_count_rounds_to_it", sentence, numbers)
    sentence = f"Some number of right answers out of {trials} rounds to each printed accuracy."
    return AuditResult(f"{claim.name}.counts", CONSISTENT, "counts_exist", sentence, numbers)


def _range(claim: Accuracy, low: Figure, high: Figure) -> AuditResult:
    name = f"{claim.name}.range"
    numbers = {"candidate": float(claim.candidate.value), "low": float(low.value), "high": float(high.value)}
    if low.value > high.value:
        sentence = f"The stated range runs from {low} down to {high}."
        return AuditResult(name, INCONSISTENT, "range_reversed", sentence, numbers)
    allowed = Interval(low.interval.lo, high.interval.hi)
    outside = [
        f"the {arm}'s {figure}"
        for arm, figure in (("candidate", claim.candidate), ("baseline", claim.baseline))
        if figure is not None and not figure.interval.overlaps(allowed)
    ]
    if outside:
        beyond = f"{' and '.join(outside)} lies outside the stated run-to-run range {low} to {high}"
        sentence = f"{claim.benchmark}: {beyond}."
        return AuditResult(name, INCONSISTENT, "outside_stated_range", sentence, numbers)
    sentence = f"{claim.benchmark}: {claim.candidate} lies inside the stated run-to-run range {low} to {high}."
    return AuditResult(name, CONSISTENT, "inside_stated_range", sentence, numbers)


def _runs(claim: Accuracy, low: Figure, high: Figure) -> AuditResult:
    name, count = f"{claim.name}.runs", len(claim.runs)
    if not claim.runs:
        sentence = f"The range {low} to {high} of {claim.benchmark} is stated, and the runs behind it are not shown."
        return AuditResult(name, UNSUPPORTED, "runs_not_shown", sentence, {"runs": 0})
    shown = (min(claim.runs, key=lambda r: r.value), max(claim.runs, key=lambda r: r.value))
    outside = 2 / (count + 1)
    numbers = {"runs": count, "smallest": float(shown[0].value), "largest": float(shown[1].value), "outside": outside}
    if not (shown[0].interval.overlaps(low.interval) and shown[1].interval.overlaps(high.interval)):
        sentence = f"The runs shown span {shown[0]} to {shown[1]}, and the range is stated as {low} to {high}."
        return AuditResult(name, INCONSISTENT, "not_the_range_of_its_runs", sentence, numbers)
    chance = f"a further run of the same build falls outside the range of {count} with probability {outside:.2f}"
    if count < FEWEST_RUNS:
        return AuditResult(name, UNSUPPORTED, "too_few_runs", f"{chance[0].upper()}{chance[1:]}.", numbers)
    sentence = f"The {count} runs shown span the stated range {low} to {high}; {chance}."
    return AuditResult(name, CONSISTENT, "range_of_its_runs", sentence, numbers)


def _sampling(claim: Accuracy) -> AuditResult:
    """The difference of the arms, by Newcombe's hybrid score interval (1998, method 10), arms taken as independent.

    Pairing by question would narrow it, and needs the answers, which a printed accuracy does not give. The standard
    error of one arm is taken at the middle of the stated range ("no change"), else at the mean of the arms.
    """
    name, trials = f"{claim.name}.sampling", _trials(claim)
    candidate = _share(claim, claim.candidate).mid
    baseline = None if claim.baseline is None else _share(claim, claim.baseline).mid
    shares = [share for share in (candidate, baseline) if share is not None]
    if not all(0 <= share <= 1 for share in shares):
        sentence = f"{claim.benchmark}: an accuracy is stated that is no share of its questions."
        return AuditResult(name, INCONSISTENT, "no_share", sentence, {"candidate": float(candidate)})
    if not trials:
        sentence = f"{claim.benchmark}: the number of questions is not stated, so its sampling error is not known."
        return AuditResult(name, UNSUPPORTED, "no_question_count", sentence)
    middle = sum(shares, Fraction()) / len(shares)
    if claim.range is not None:
        middle = (_share(claim, claim.range.low).mid + _share(claim, claim.range.high).mid) / 2
    expected = min(max(float(middle), 0.0), 1.0)
    error = math.sqrt(expected * (1 - expected) / trials)
    detectable = (Z_TWO_SIDED + Z_POWER) * math.sqrt(2) * error
    numbers: dict[str, object] = {
        "trials": trials,
        "standard_error": error,
        "detectable_difference": detectable,
        "margin": MARGIN,
    }
    if baseline is None:
        sentence = f"{claim.benchmark}: no baseline is stated; the standard error of {claim.candidate} is {error:.4f}."
        return AuditResult(name, UNSUPPORTED, "no_baseline", sentence, numbers)
    difference = float(candidate - baseline)
    lower, upper = _newcombe(float(candidate), float(baseline), trials)
    numbers |= {"difference": difference, "difference_interval": [lower, upper]}
    words = (
        f"{claim.benchmark} changes by {difference:+.4f} (95 % interval {lower:+.4f} to {upper:+.4f}; "
        f"standard error of one arm {error:.4f} at n = {trials})"
    )
    if lower > -MARGIN:
        return AuditResult(name, CONSISTENT, "no_loss_beyond_margin", f"{words}: no loss of {MARGIN} or more.", numbers)
    if upper < 0:
        sentence = f"{words}: a loss that sampling error does not explain."
        return AuditResult(name, INCONSISTENT, "loss_beyond_sampling_error", sentence, numbers)
    sentence = f"{words}: neither a loss nor its absence follows; {detectable:.3f} could have been detected."
    return AuditResult(name, UNSUPPORTED, "inconclusive", sentence, numbers)


def _newcombe(candidate: float, baseline: float, trials: int) -> tuple[float, float]:
    (c_lo, c_hi), (b_lo, b_hi) = _wilson(candidate, trials), _wilson(baseline, trials)
    lower = math.hypot(candidate - c_lo, b_hi - baseline)
    upper = math.hypot(c_hi - candidate, baseline - b_lo)
    return candidate - baseline - lower, candidate - baseline + upper


def _wilson(share: float, trials: int) -> tuple[float, float]:
    z = Z_TWO_SIDED
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return middle - half, middle + half
