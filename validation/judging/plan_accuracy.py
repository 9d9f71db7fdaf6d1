"""How many questions and runs an accuracy verdict needs, before anything starts. Pure.

The power is that of the judge's own rule: Tango's lower limit above the margin when the arms are truly equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from validation.judging.score_interval import ONE_SIDED_ALPHA, excess_factor, score_statistic

GSM8K_QUESTIONS = 1319
"""Rows of the test split (Cobbe et al. 2021, arXiv 2110.14168)."""

TARGET_POWER = 0.9
MOST_RUNS = 12
"""Launches of an arm beyond which the planner gives up: twelve starts of a large model take a working day."""

_GRID = 61
_EXCESS_GRID = 15
"""Points of a dimension of the sum over draws; the power then agrees with its exact binomial sum within 0.01."""


@dataclasses.dataclass(frozen=True)
class AccuracyPower:
    """What ``runs`` launches an arm on ``questions`` questions can show, if the arms are truly equal."""

    runs: int
    questions: int
    discordance: float
    power: float
    """Probability of PASS at the margin."""
    detectable_points: float
    """Smallest margin that passes with the target power, in percentage points."""


def accuracy_power(
    discordance: float,
    *,
    runs: int = 1,
    questions: int = GSM8K_QUESTIONS,
    margin_points: float = 1.0,
    persistent_share: float = 0.0,
    run_sd_points: float = 0.0,
    recorded_runs: int = 0,
    estimated: bool = True,
    alpha: float = ONE_SIDED_ALPHA,
    target: float = TARGET_POWER,
) -> AccuracyPower:
    """The power of non-inferiority at ``margin_points`` when there is no difference.

    Args:
        discordance: share of questions that differ between one run of each arm, 0..1 (from a pilot or a baseline).
        persistent_share: the part of it that is the same in every run; more runs average out only the rest.
        run_sd_points: true standard deviation of a shift that a whole run shares, in percentage points.
        recorded_runs: recorded launches of one build, which help the judge to tell how large that shift is.
        estimated: False gives the power if the judge knew the shift; the difference is the price of not knowing it.

    Raises:
        ValueError: a share outside 0..1, fewer than one run or question, or a margin that is not positive.
    """
    for name, share in (("discordance", discordance), ("persistent_share", persistent_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"a {name} of {share!r} was given; expected a share from 0 to 1")
    if runs < 1 or questions < 1:
        raise ValueError(f"{runs} runs and {questions} questions were given; expected at least one of each")
    if not (margin_points > 0 and run_sd_points >= 0 and 0 < target < 1):
        raise ValueError(
            f"margin {margin_points!r}, run standard deviation {run_sd_points!r} and target {target!r} were given; "
            "expected a positive margin, a deviation of at least 0 and a target between 0 and 1"
        )
    transient = (1 - persistent_share) / runs
    shift = (run_sd_points / 100) ** 2
    df = 2 * (runs - 1) + max(0, recorded_runs - 1) if estimated else 0
    if df:
        # A launch's accuracy varies by its questions' own flips, half the discordance of two runs, and by the shift.
        flips = discordance * (1 - persistent_share) / 2 / questions
        draws = stats.chi2.ppf(_midpoints(_EXCESS_GRID), df) / df
        excess = np.maximum(0.0, excess_factor(df) * draws * (flips + shift) - flips)
    else:
        excess = np.array([0.0 if estimated else shift])
    widths = float(stats.t.isf(alpha, df) if df else stats.norm.isf(alpha)) * np.sqrt(2 * excess / runs)

    def power(margin: float) -> float:
        n = questions / (persistent_share + transient)
        return _power(discordance, n, math.sqrt(2 * shift / runs), widths, margin, alpha)

    low, high = 0.0, 1.0
    for _ in range(20):  # to a millionth of the whole scale, far below a hundredth of a point
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= target else (middle, high)
    return AccuracyPower(runs, questions, discordance, power(margin_points / 100), 100 * high)


def plan_accuracy(
    discordance: float,
    *,
    questions: int = GSM8K_QUESTIONS,
    margin_points: float = 1.0,
    persistent_share: float = 0.0,
    run_sd_points: float = 0.0,
    recorded_runs: int = 0,
    target: float = TARGET_POWER,
    most_runs: int = MOST_RUNS,
) -> AccuracyPower:
    """The fewest runs an arm that reach ``target`` power; ``most_runs`` where none does, so look at ``power``."""
    plan = None
    for runs in range(1, most_runs + 1):
        plan = accuracy_power(
            discordance,
            runs=runs,
            questions=questions,
            margin_points=margin_points,
            persistent_share=persistent_share,
            run_sd_points=run_sd_points,
            recorded_runs=recorded_runs,
            target=target,
        )
        if plan.power >= target:
            return plan
    if plan is None:
        raise ValueError(f"at most {most_runs} runs were allowed; expected at least one")
    return plan


def fewest_questions(margin_points: float, alpha: float = ONE_SIDED_ALPHA) -> int:
    """Questions without which even two arms of identical texts stay INCONCLUSIVE: Tango's bound at no discordance."""
    if not 0 < margin_points < 100:
        raise ValueError(f"a margin of {margin_points!r} points was given; expected more than 0 and less than 100")
    z2 = float(stats.norm.isf(alpha)) ** 2
    return math.floor(z2 * (100 / margin_points - 1)) + 1


def pooled_discordance(runs: Sequence[Sequence[bool]]) -> float:
    """The discordance of two runs of one build, averaged over all pairs of recorded ``runs`` (runs x questions).

    Raises:
        ValueError: fewer than two runs, or runs of different lengths.
    """
    if len(runs) < 2 or len({len(run) for run in runs}) != 1 or not runs[0]:
        raise ValueError(f"{len(runs)} runs were given; expected two or more over the same questions")
    scores = np.asarray(runs, dtype=np.float64)
    right = scores.sum(axis=0)
    pairs = len(scores) * (len(scores) - 1) / 2
    return float((right * (len(scores) - right)).mean() / pairs)


def _power(
    discordance: float, questions: float, shift_sd: float, widths: npt.NDArray[np.float64], margin: float, alpha: float
) -> float:
    """The share of draws whose lower limit clears the margin, over a grid of discordant counts, splits and shifts.

    ``widths`` are the judge's allowances for a shift, equally likely, each added in quadrature to Tango's limit.
    """
    if margin <= 0:
        return 0.0
    z = float(stats.norm.isf(alpha))
    n = max(1, round(questions))
    spread = math.sqrt(n * discordance * (1 - discordance))
    # Discordant counts within five standard deviations hold all but a millionth of the draws.
    least, most = max(0, math.floor(n * discordance - 5 * spread)), min(n, math.ceil(n * discordance + 5 * spread))
    counts = np.unique(np.linspace(least, most, min(_GRID, most - least + 1)).round())
    weights = stats.binom.pmf(counts, n, discordance)
    splits = stats.norm.ppf(_midpoints(_GRID))
    shifts = shift_sd * stats.norm.ppf(_midpoints(_EXCESS_GRID)) if shift_sd else np.zeros(1)
    total, split, shift, width = np.meshgrid(counts, splits, shifts, widths, indexing="ij")
    better = np.clip(total / 2 + np.sqrt(total) / 2 * split, 0, total)
    worse = total - better
    difference = (better - worse) / n
    # The judge's limit, difference + shift - hypot(difference - tango, width), clears the margin where Tango's own
    # limit clears this bound, that is, where the score statistic there exceeds z.
    room = difference + shift + margin
    bound = np.clip(difference - np.sqrt(np.maximum(room**2 - width**2, 0)), -1 + 1e-9, 1)
    statistic = score_statistic(better, worse, np.full_like(better, n), bound)
    passed = (room > width) & (statistic > z)
    return float((weights * passed.mean(axis=(1, 2, 3))).sum() / weights.sum())


def _midpoints(count: int) -> npt.NDArray[np.float64]:
    """``count`` equally likely probabilities."""
    return (np.arange(count) + 0.5) / count
