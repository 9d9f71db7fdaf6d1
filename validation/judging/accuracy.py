"""Whether a build lost accuracy: paired by question, launches nested in arms, decided by a non-inferiority margin.

Read in this order: ``AccuracyPlan`` in ``accuracy_arms`` (what is declared before the run), ``judge_accuracy`` (what is
said afterwards), ``judge_non_inferiority`` and ``judge_run_to_run`` (the two decisions). The statistics are in
``score_interval``.

An error is never a wrong answer: a question that any launch of either arm could not answer is left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from validation.judging.accuracy_arms import (
    AccuracyPlan,
    RecordedAccuracy,
    Scorer,
    arm_of,
    flips,
    identical_texts,
    recorded_arm,
    truncated,
)
from validation.judging.score_interval import (
    ONE_SIDED_ALPHA,
    PairedDifference,
    Scores,
    paired_difference,
    proportion_limits,
    run_excess,
)
from validation.records import Launch, Question, Request
from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run

POWER = 0.9
"""Power at which the smallest detectable loss is stated (ICH E9, section 3.5: 80 to 90 %)."""

LEAST_SAME_BUILD_RUNS = 5
"""Fewer runs say little about run-to-run variance: a new run falls outside the range of three earlier ones half the
time, 2 / (m + 1) for m runs (order statistics of exchangeable draws)."""

PREDICTION_LEVEL = 0.95
CONTRADICTION_LEVEL = 0.99
"""Outside the 95 % prediction interval the claim is not shown; one same-build comparison in twenty falls there, so only
a difference outside the 99 % interval contradicts it (the 1 % of this suite's A/A checks)."""


def judge_accuracy(
    requests: Sequence[Request],
    questions: Sequence[Question],
    plan: AccuracyPlan,
    scorers: Mapping[str, Scorer],
    *,
    launches: Sequence[Launch] = (),
    baseline: RecordedAccuracy | None = None,
    same_build: RecordedAccuracy | None = None,
) -> list[Finding]:
    """The findings on the accuracy of one scenario.

    * ``accuracy.SCENARIO.non_inferiority`` always, with run-to-run variance in its numbers;
    * ``accuracy.SCENARIO.run_to_run`` too where the plan declares same-build runs, so that a pull request with one run
      an arm, which makes no such claim, is decided by non-inferiority alone.

    Args:
        scorers: every extractor by name; each score is reported, ``plan.extractor`` decides.
        launches: which answers came from a fresh launch; repeated runs on a given URL are one launch.
        baseline: the reference where the plan names no reference arm.
        same_build: recorded launches of one build; without it the reference arm's own launches serve.

    Raises:
        ValueError: the plan's extractor is not among ``scorers``, or an answer has no question.
    """
    name = f"accuracy.{plan.scenario}.non_inferiority"
    if plan.extractor not in scorers:
        raise ValueError(f"extractor {plan.extractor!r} is unknown; expected one of {', '.join(sorted(scorers))}")
    gold = {q.index: q.gold for q in questions if q.scenario == plan.scenario}
    candidate = arm_of(requests, questions, plan.scenario, plan.candidate, launches)
    if plan.reference is None:
        reference = recorded_arm(baseline)
    else:
        reference, baseline = arm_of(requests, questions, plan.scenario, plan.reference, launches), None
    gathered = candidate.answers + reference.answers

    if not candidate.runs or (plan.reference is not None and not reference.runs):
        absent = plan.candidate if not candidate.runs else plan.reference
        sentence = f"arm {absent} answered no question of {plan.scenario}; expected {plan.runs} launches"
        return [not_run(name, Evidence.ACCURACY, "not_gathered", sentence)]

    def undecided(reason: str, sentence: str, numbers: Mapping[str, Any] | None = None) -> list[Finding]:
        verdict = Verdict.INCONCLUSIVE
        return [Finding(name, Evidence.ACCURACY, verdict, reason, sentence, max(1, gathered), numbers or {})]

    for arm in (candidate, reference):
        if arm.launches and arm.runs != plan.runs:
            sentence = (
                f"arm {arm.name} has {arm.runs} launches, {plan.runs} were declared; the number is fixed before the run"
            )
            return undecided("runs_not_as_declared", sentence)
    mismatch = [m for m in (b.mismatch(plan) for b in (baseline, same_build) if b is not None) if m]
    if mismatch:
        return undecided("baseline_mismatch", mismatch[0])

    arms = [arm for arm in (candidate, reference) if arm.runs]
    kept = sorted(set(gold).intersection(*(arm.answered() for arm in arms)))
    left_out = len(gold) - len(kept)
    numbers: dict[str, Any] = {
        "questions": len(kept),
        "left_out": left_out,
        "runs": {arm.name: arm.runs for arm in arms},
        "truncated": {arm.name: truncated(arm) for arm in arms if arm.launches},
        "extractor": plan.extractor,
    }
    if not kept or left_out > plan.error_budget * len(gold):
        sentence = (
            f"{left_out} of {len(gold)} questions have no answer in an arm; "
            f"the budget is {plan.error_budget:.2%} and an error is not a wrong answer"
        )
        return undecided("error_budget", sentence, numbers)

    measured = [arm for arm in arms if arm.launches]
    numbers["scores"] = {
        extractor: {arm.name: float(arm.scores(kept, gold, scorer).mean()) for arm in measured}
        for extractor, scorer in scorers.items()
    }
    decide = scorers[plan.extractor]
    right = candidate.scores(kept, gold, decide)
    if not reference.runs:
        return [_judge_floor(right, plan, gathered, numbers)]

    right_reference = reference.scores(kept, gold, decide)
    numbers["accuracy"] = {reference.name: float(right_reference.mean()), candidate.name: float(right.mean())}
    numbers["accuracy_per_run"] = {
        reference.name: [float(share) for share in right_reference.mean(axis=1)],
        candidate.name: [float(share) for share in right.mean(axis=1)],
    }
    groups, same = [right_reference, right], right_reference
    if same_build is not None and same_build != baseline:
        recorded = recorded_arm(same_build)
        common = [i for i in kept if i in recorded.answered()]
        if common:
            same = recorded.scores(common, gold, decide)
            groups.append(same)
    difference = paired_difference(right_reference, right, run_excess(groups))
    prompts = {q.index: q.prompt for q in questions if q.scenario == plan.scenario}
    numbers.update(flips(reference, candidate, kept, right_reference, right, prompts))
    identical = identical_texts(reference, candidate, kept)
    numbers["identical_texts"] = identical
    run_to_run = judge_run_to_run(difference, plan, same.mean(axis=1), right_reference, right, gathered)
    numbers["run_to_run"] = {"reason": run_to_run.reason, **run_to_run.numbers}
    decided = judge_non_inferiority(difference, plan, gathered, numbers, identical=bool(identical))
    return [decided, run_to_run] if plan.same_build_runs else [decided]


def judge_non_inferiority(
    difference: PairedDifference,
    plan: AccuracyPlan,
    records: int,
    numbers: Mapping[str, Any],
    *,
    identical: bool = False,
) -> Finding:
    """PASS where the lower limit lies above the margin, FAIL where the upper limit lies below it."""
    lower, upper, estimate = (100 * x for x in (difference.lower, difference.upper, difference.difference))
    margin = -plan.margin_points
    interval = f"{estimate:+.2f} points, 95 % interval {lower:+.2f} to {upper:+.2f}, margin {margin:+g}"
    if lower > margin:
        verdict, reason = Verdict.PASS, "non_inferior"
        sentence = f"{plan.candidate} is not worse by {plan.margin_points:g} points or more: {interval}"
    elif upper < margin:
        verdict, reason = Verdict.FAIL, "inferior"
        sentence = f"{plan.candidate} is worse by more than {plan.margin_points:g} points: {interval}"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, "interval_contains_margin"
        sentence = f"the questions and runs cannot decide: {interval}"
    if identical:
        beyond = "the limits hold" if verdict is Verdict.PASS else "they are too few to decide"
        sentence = (
            f"every text is identical, so the accuracy is exactly equal on these {difference.questions} questions; "
            f"beyond them {beyond}: {interval}"
        )
    if not difference.excess.df:
        sentence += "; one run an arm cannot show a shift that a whole run shares"
    detectable = detectable_loss_points(difference)
    return Finding(
        f"accuracy.{plan.scenario}.non_inferiority",
        Evidence.ACCURACY,
        verdict,
        reason,
        sentence,
        max(1, records),
        {
            **numbers,
            "difference_points": estimate,
            "lower_points": lower,
            "upper_points": upper,
            "margin_points": margin,
            "one_sided_alpha": ONE_SIDED_ALPHA,
            "discordance": difference.discordance,
            "better": difference.better,
            "worse": difference.worse,
            "design_effect": difference.design_effect,
            "run_excess_sd_points": 100 * math.sqrt(difference.excess.variance),
            "run_excess_df": difference.excess.df,
        },
        Effect(detectable, "percentage points", f"loss ruled out with {POWER:.0%} power if there is none"),
    )


def detectable_loss_points(difference: PairedDifference) -> float:
    """The smallest margin these data would have cleared with ``POWER`` if the arms were equal, in percentage points."""
    below = difference.difference - difference.lower
    return 100 * (below + float(stats.norm.ppf(POWER)) * difference.standard_error)


def judge_run_to_run(
    difference: PairedDifference,
    plan: AccuracyPlan,
    same_build_accuracies: Sequence[float] | Scores,
    reference: Scores,
    candidate: Scores,
    records: int,
) -> Finding:
    """ "Within run-to-run variance": equivalent within the margin, and no farther apart than two arms of one build are.

    Both are needed. The margin alone says nothing of noise, and the noise alone would pass the noisier servers. The
    prediction interval is Student's, for the difference of two means of new runs, from the accuracies of recorded runs
    of one build (Hahn and Meeker 1991, Statistical Intervals).
    """
    accuracies = np.asarray(same_build_accuracies, dtype=np.float64)
    runs = len(accuracies)
    numbers: dict[str, Any] = {
        "same_build_runs": runs,
        "same_build_accuracies": [float(a) for a in accuracies],
        "difference_points": 100 * difference.difference,
        "lower_points": 100 * difference.lower,
        "upper_points": 100 * difference.upper,
        "margin_points": plan.margin_points,
    }

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        name = f"accuracy.{plan.scenario}.run_to_run"
        effect = Effect(
            detectable_loss_points(difference), "percentage points", f"difference ruled out with {POWER:.0%} power"
        )
        return Finding(name, Evidence.ACCURACY, verdict, reason, sentence, max(1, records), numbers, effect)

    needed = max(LEAST_SAME_BUILD_RUNS, plan.same_build_runs)
    if runs < needed:
        sentence = f"{runs} runs of one build are recorded; run-to-run variance needs {needed}"
        return finding(Verdict.INCONCLUSIVE, "too_few_same_build_runs", sentence)

    spread = float(accuracies.std(ddof=1)) * math.sqrt(1 / len(reference) + 1 / len(candidate))
    half = {
        level: spread * float(stats.t.ppf((1 + level) / 2, runs - 1))
        for level in (PREDICTION_LEVEL, CONTRADICTION_LEVEL)
    }
    numbers["prediction_half_width_points"] = 100 * half[PREDICTION_LEVEL]
    margin = plan.margin_points / 100
    distance = abs(difference.difference)
    at = f"the difference is {100 * difference.difference:+.2f} points"
    usual = 100 * half[PREDICTION_LEVEL]
    within = f"two arms of one build differ by up to {usual:.2f} points in 95 % of cases ({runs} runs)"
    tie = 1e-12  # two equal accuracies may differ in the last bit of their means
    if difference.lower > margin or difference.upper < -margin:
        return finding(
            Verdict.FAIL,
            "outside_margin",
            f"{at}, and its whole 95 % interval lies beyond {plan.margin_points:g} points",
        )
    if distance > half[CONTRADICTION_LEVEL] + tie:
        sentence = f"{at}; {within}, and by this much in less than 1 %"
        return finding(Verdict.FAIL, "outside_run_to_run_variance", sentence)
    if distance > half[PREDICTION_LEVEL] + tie:
        return finding(Verdict.INCONCLUSIVE, "outside_prediction_interval", f"{at}; {within}")
    if difference.lower <= -margin or difference.upper >= margin:
        sentence = f"{at}, but its 95 % interval reaches beyond {plan.margin_points:g} points either way; {within}"
        return finding(Verdict.INCONCLUSIVE, "not_equivalent", sentence)
    return finding(
        Verdict.PASS,
        "within_run_to_run_variance",
        f"{at}, its 95 % interval within {plan.margin_points:g} points; {within}",
    )


def _judge_floor(right: Scores, plan: AccuracyPlan, records: int, numbers: Mapping[str, Any]) -> Finding:
    accuracy = float(right.mean())
    lower, upper = proportion_limits(right)
    numbers = {**numbers, "accuracy": {plan.candidate: accuracy}, "lower": lower, "upper": upper, "floor": plan.floor}
    interval = f"accuracy {accuracy:.4f}, 95 % interval {lower:.4f} to {upper:.4f}"

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        effect = Effect(100 * (accuracy - lower), "percentage points", "distance of the 97.5 % lower limit")
        name = f"accuracy.{plan.scenario}.non_inferiority"
        return Finding(name, Evidence.ACCURACY, verdict, reason, sentence, max(1, records), numbers, effect)

    if plan.floor is None:
        sentence = f"{interval}; there is no reference arm, no recorded baseline and no floor to hold it against"
        return finding(Verdict.INCONCLUSIVE, "no_baseline", sentence)
    if lower >= plan.floor:
        return finding(Verdict.PASS, "above_floor", f"{interval}, above the floor {plan.floor:g}")
    if upper < plan.floor:
        return finding(Verdict.FAIL, "below_floor", f"{interval}, below the floor {plan.floor:g}")
    return finding(
        Verdict.INCONCLUSIVE, "interval_contains_floor", f"{interval}, which contains the floor {plan.floor:g}"
    )
