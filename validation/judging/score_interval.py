"""Confidence limits for a paired difference of two arms' accuracies, and for one accuracy. Pure; numpy and scipy.

The unit is the question. Each arm answers every question in k launches ("runs"), so an arm is an array of shape
(k, n) of scores in 0..1. Two things vary the difference of the arms' means: which questions were asked, and which
launches were drawn.

* The questions: Tango's score interval (Tango 1998, Statistics in Medicine 17:891), which holds its level where
  discordant questions are few and gives a bound, not [0, 0], where there is none. For k runs its counts are the
  expected discordances of one run against one run, and its sample size is scaled by the design effect (Rao and Scott
  1992, Biometrics 48:577): the observed variance of the per-question differences over that of one run against one.
* The launches: a shift that a whole launch shares shows as more variance between the accuracies of one arm's launches
  than its questions' own flips explain. That excess is added in quadrature to Tango's limits (the way MOVER joins
  separate variance estimates: Zou and Donner 2008, Statistics in Medicine 27:1693), with Student's quantile for the
  launches it was estimated from. One launch an arm cannot show it; it can be taken from recorded runs of one build.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64] | np.float64
Scores = npt.NDArray[np.float64]
"""Shape (k, n): k launches by n questions, the same questions in the same order in every array compared."""

ONE_SIDED_ALPHA = 0.025
"""Level of each limit; the pair of them is a 95 % interval (ICH E9, section 5.5: half the two-sided 5 %)."""

_EDGE = 1e-12  # at a difference of exactly 1 the statistic is infinite
_INFINITE = 1e9


EXCESS_LEVEL = 0.6
"""The excess between launches is taken at its upper 60 % limit. Its plain estimate from three launches an arm is zero
too often: at a true shift of 0.4 points and a true loss of the whole margin, 3.5 to 4.5 % passed (four seeds of 4000
experiments, tests/calibration/accuracy_simulator.py), at 60 % the recorded 2.4 % (baselines/calibration/accuracy.json).
"""


@dataclasses.dataclass(frozen=True)
class RunExcess:
    """Variance of a launch's accuracy beyond what its questions' own flips explain, in proportions squared."""

    variance: float
    df: int
    """Launches less groups; 0: nothing was repeated, the variance is unknown and taken as 0."""


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Candidate accuracy minus reference accuracy, as proportions, with its limits."""

    questions: int
    difference: float
    lower: float
    upper: float
    standard_error: float
    better: float
    """Expected number of questions right in the candidate and wrong in the reference, one run against one."""
    worse: float
    design_effect: float
    excess: RunExcess

    @property
    def discordance(self) -> float:
        """Share of questions that differ, one run against one."""
        return (self.better + self.worse) / self.questions


def tango_limits(better: float, worse: float, questions: float, z: float) -> tuple[float, float]:
    """Tango's lower and upper limit of (better - worse) / questions, each at the normal quantile ``z``.

    Counts may be fractions; the limits are proportions in -1..1.
    """
    b, c, n = (np.float64(count) for count in (better, worse, questions))
    estimate = float((b - c) / n)

    def limit(sign: int) -> float:
        def beyond(difference: float) -> float:
            statistic = float(score_statistic(b, c, n, np.float64(difference)))
            return max(-_INFINITE, min(_INFINITE, sign * statistic - z))

        end = -sign * (1 - _EDGE)
        if sign * (estimate - end) <= 0 or beyond(end) <= 0:
            return -float(sign)
        return float(optimize.brentq(beyond, end, estimate))

    return limit(1), limit(-1)


def score_statistic(
    better: Floats,
    worse: Floats,
    questions: Floats,
    difference: Floats,
) -> Floats:
    """Tango's statistic for the hypothesis that the true difference is ``difference``; standard normal under it."""
    n, d = questions, difference
    # The maximum-likelihood share of "worse" under the hypothesis is the root of a quadratic (Tango 1998).
    linear = (2 * n - better + worse) * d - better - worse
    constant = -worse * d * (1 - d)
    share_worse = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * share_worse + d * (1 - d))
    distance = better - worse - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = distance / np.sqrt(np.maximum(variance, 0))
    return typing.cast(Floats, np.where(distance == 0, 0.0, statistic))


def run_excess(groups: Sequence[Scores]) -> RunExcess:
    """The excess variance between launches, pooled over ``groups``: each the launches of one build, shape (k, n)."""
    repeated = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in repeated)
    if not df:
        return RunExcess(0.0, 0)
    observed = sum((len(g) - 1) * float(g.mean(axis=1).var(ddof=1)) for g in repeated)
    # Independent flips of each question's answer from run to run make a mean over n questions vary by this much.
    expected = sum((len(g) - 1) * float(g.var(axis=0, ddof=1).sum()) / g.shape[1] ** 2 for g in repeated)
    return RunExcess(max(0.0, excess_factor(df) * observed / df - expected / df), df)


def excess_factor(df: int) -> float:
    """Upper limit of a variance over its estimate, at ``EXCESS_LEVEL``, from the chi-square distribution."""
    return df / float(stats.chi2.isf(EXCESS_LEVEL, df))


def paired_difference(
    reference: Scores, candidate: Scores, excess: RunExcess | None = None, alpha: float = ONE_SIDED_ALPHA
) -> PairedDifference:
    """The difference of the arms' accuracies and its limits, each at one-sided ``alpha``.

    ``excess`` is the variance between launches to allow for; without it, it is estimated from the two arms.
    """
    runs_reference, questions = reference.shape
    runs_candidate = len(candidate)
    excess = run_excess([reference, candidate]) if excess is None else excess
    right_reference, right_candidate = reference.mean(axis=0), candidate.mean(axis=0)
    per_question = right_candidate - right_reference
    difference = float(per_question.mean())
    better = float((right_candidate * (1 - right_reference)).sum())
    worse = float((right_reference * (1 - right_candidate)).sum())

    one_run = (better + worse) / questions - difference**2
    # k runs can shrink the variance by k at the most; a smaller observed value is luck.
    least = 1 / max(runs_reference, runs_candidate)
    design_effect = min(1.0, max(least, float(per_question.var()) / one_run)) if one_run > 0 else 1.0

    z = float(stats.norm.isf(alpha))
    tango_lower, tango_upper = tango_limits(better / design_effect, worse / design_effect, questions / design_effect, z)
    launches = excess.variance * (1 / runs_reference + 1 / runs_candidate)
    quantile = float(stats.t.isf(alpha, excess.df)) if excess.df else z
    return PairedDifference(
        questions=questions,
        difference=difference,
        lower=max(-1.0, difference - math.hypot(difference - tango_lower, quantile * math.sqrt(launches))),
        upper=min(1.0, difference + math.hypot(tango_upper - difference, quantile * math.sqrt(launches))),
        standard_error=math.sqrt(design_effect * max(one_run, 0.0) / questions + launches),
        better=better,
        worse=worse,
        design_effect=design_effect,
        excess=excess,
    )


def proportion_limits(
    scores: Scores, excess: RunExcess | None = None, alpha: float = ONE_SIDED_ALPHA
) -> tuple[float, float]:
    """Clopper and Pearson's limits (1934, Biometrika 26:404) of one arm's accuracy, each at one-sided ``alpha``.

    Counts are scaled by the design effect of k runs; the excess between launches is added in quadrature.
    """
    runs, questions = scores.shape
    excess = run_excess([scores]) if excess is None else excess
    right = scores.mean(axis=0)
    mean = float(right.mean())
    one_run = mean * (1 - mean)
    design_effect = min(1.0, max(1 / runs, float(right.var()) / one_run)) if one_run > 0 else 1.0
    n = questions / design_effect
    x = mean * n
    lower = float(stats.beta.ppf(alpha, x, n - x + 1)) if x > 0 else 0.0
    upper = float(stats.beta.isf(alpha, x + 1, n - x)) if x < n else 1.0
    quantile = float(stats.t.isf(alpha, excess.df)) if excess.df else float(stats.norm.isf(alpha))
    launch = quantile * math.sqrt(excess.variance / runs)
    return max(0.0, mean - math.hypot(mean - lower, launch)), min(1.0, mean + math.hypot(upper - mean, launch))
