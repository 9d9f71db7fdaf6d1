"""The accuracy judge: verdicts on made-up answers, each beside a defect it must catch."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation import profiles
from validation.gsm8k import SCORERS
from validation.judging.accuracy import judge_accuracy, judge_non_inferiority, judge_run_to_run
from validation.judging.accuracy_arms import AccuracyPlan, RecordedAccuracy, record_accuracy
from validation.judging.score_interval import (
    PairedDifference,
    RunExcess,
    paired_difference,
    proportion_limits,
    run_excess,
    score_statistic,
    tango_limits,
)
from validation.records import Launch, Question, Request
from validation.verdicts import Finding, Verdict

N = 1319
PLAN = AccuracyPlan("gsm8k", "skip", "cat", "lm_eval_strict", model="glm", questions_sha256="abc", prompt_mode="vllm")
QUESTIONS = [Question("gsm8k", i, f"question {i}", f"prompt {i}", f"work\n#### {i}") for i in range(N)]


def answer(arm: str, index: int, right: bool, launch: int = 0, run: int = 0, **changes: object) -> Request:
    text = f"so\n#### {index if right else index + 1}"
    request = Request(
        launch_id=f"{arm}-{launch}",
        arm=arm,
        block=launch,
        run=run,
        scenario="gsm8k",
        index=index,
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=4,
        finish_reason="stop",
        text=text,
        output_ids=None,
        chunk_ns=(1,),
        chunk_tokens=None,
        queued_ns=0,
        end_ns=2,
        error=None,
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def arm(name: str, *wrong: set[int], n: int = N) -> list[Request]:
    """One launch of ``name`` for each set of wrong questions."""
    return [answer(name, i, i not in w, launch) for launch, w in enumerate(wrong) for i in range(n)]


def judge(requests: list[Request], plan: AccuracyPlan = PLAN, n: int = N, **given: object) -> list[Finding]:
    return judge_accuracy(requests, QUESTIONS[:n], plan, SCORERS, **given)  # type: ignore[arg-type]


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


MISSED = set(range(0, 1319, 19))


# The interval


def test_tango_gives_the_published_interval() -> None:
    # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33:2850: 21 children, 1 against 7 discordant.
    lower, upper = tango_limits(1, 7, 21, 1.959964)
    assert (lower, upper) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_zero_discordance_on_gsm8k_leaves_0_29_points_not_none() -> None:
    z = 1.959964
    lower, upper = tango_limits(0, 0, N, z)
    assert 100 * upper == pytest.approx(0.29, abs=0.005)
    assert upper == pytest.approx(z**2 / (N + z**2), rel=1e-9)
    assert lower == pytest.approx(-upper, rel=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=st.integers(1, 2000), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), z=st.floats(0.5, 4))
def test_limits_hold_the_estimate_and_solve_the_score_equation(n: int, shares: tuple[float, float], z: float) -> None:
    better = math.floor(shares[0] * n)
    worse = math.floor(shares[1] * (n - better))
    lower, upper = tango_limits(better, worse, n, z)
    estimate = (better - worse) / n
    assert -1 <= lower <= estimate <= upper <= 1
    for limit, sign in ((lower, 1), (upper, -1)):
        if 1 - abs(limit) > 1e-6:
            b, c, m, d = (np.array(float(x)) for x in (better, worse, n, limit))
            assert sign * float(score_statistic(b, c, m, d)) == pytest.approx(z, abs=1e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_swapping_the_arms_mirrors_the_interval(seed: int) -> None:
    draw = np.random.default_rng(seed)
    reference, candidate = draw.integers(0, 2, (2, 3, 50)).astype(np.float64)
    one, other = paired_difference(reference, candidate), paired_difference(candidate, reference)
    assert (one.lower, one.upper) == pytest.approx((-other.upper, -other.lower), abs=1e-9)


def test_three_runs_of_transient_flips_narrow_the_interval_and_of_persistent_ones_do_not() -> None:
    draw = np.random.default_rng(1)
    base = (draw.random(N) < 0.95).astype(np.float64)
    flipped = np.where(np.arange(N) % 50 == 0, 1 - base, base)
    one = paired_difference(base[None], flipped[None], RunExcess(0, 4))
    persistent = paired_difference(np.tile(base, (3, 1)), np.tile(flipped, (3, 1)), RunExcess(0, 4))
    assert persistent.standard_error == pytest.approx(one.standard_error)
    coin = (draw.random(N) < 0.04)[None]
    arms = [np.where(coin, draw.integers(0, 2, (3, N)), base).astype(np.float64) for _ in range(2)]
    transient = paired_difference(arms[0], arms[1], RunExcess(0, 4))
    assert transient.design_effect == pytest.approx(1 / 3, abs=0.1)


def test_a_shift_shared_by_a_whole_run_is_found_and_widens_the_interval() -> None:
    draw = np.random.default_rng(2)
    steady = draw.random((6, N)) < 0.95
    shifted = draw.random((6, N)) < 0.95 + np.array([0.03, -0.03] * 3)[:, None]
    assert run_excess([shifted.astype(np.float64)]).variance > 10 * run_excess([steady.astype(np.float64)]).variance
    calm, moved = (paired_difference(a[:3].astype(float), a[3:].astype(float)) for a in (steady, shifted))
    assert moved.upper - moved.lower > 2 * (calm.upper - calm.lower)


def test_one_run_an_arm_has_no_excess_to_estimate() -> None:
    assert run_excess([np.ones((1, 5)), np.ones((1, 5))]) == RunExcess(0.0, 0)


def test_clopper_pearson_gives_its_published_limits() -> None:
    # Clopper and Pearson 1934, figure for 95 %: 0 of 10 gives 0 to 0.308.
    lower, upper = proportion_limits(np.zeros((1, 10)))
    assert (lower, upper) == pytest.approx((0.0, 0.3085), abs=5e-4)


# Non-inferiority


def test_equal_texts_are_exact_here_and_bounded_beyond() -> None:
    finding = only(judge([*arm("cat", MISSED), *arm("skip", MISSED)]))
    assert (finding.verdict, finding.reason) == (Verdict.PASS, "non_inferior")
    assert finding.numbers["identical_texts"] is True
    assert "exactly equal on these 1319 questions" in finding.sentence
    assert finding.numbers["lower_points"] == pytest.approx(-0.29, abs=0.005)
    assert finding.detectable is not None
    assert finding.detectable.value == pytest.approx(0.29, abs=0.005)
    assert finding.records == 2 * N


def test_equal_scores_of_unequal_texts_are_not_called_identical() -> None:
    changed = [dataclasses.replace(r, text="hm " + r.text) if r.index == 7 else r for r in arm("skip", MISSED)]
    finding = only(judge([*arm("cat", MISSED), *changed]))
    assert finding.verdict is Verdict.PASS
    assert finding.numbers["identical_texts"] is False
    assert "identical" not in finding.sentence


def test_a_planted_loss_of_three_points_fails() -> None:
    lost = set(range(100, 140))
    finding = only(judge([*arm("cat", set()), *arm("skip", lost)]))
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "inferior")
    assert finding.numbers["upper_points"] < -1
    assert finding.numbers["questions_lost"] == 40
    assert finding.numbers["mcnemar_exact_p"] == pytest.approx(2 * 0.5**40)


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (-0.999, 0.5, Verdict.PASS),
        (-1.0, 0.5, Verdict.INCONCLUSIVE),
        (-3.0, -0.999, Verdict.INCONCLUSIVE),
        (-3.0, -1.001, Verdict.FAIL),
    ],
)
def test_the_limits_are_held_against_the_margin_itself(lower: float, upper: float, verdict: Verdict) -> None:
    found = PairedDifference(N, (lower + upper) / 200, lower / 100, upper / 100, 0.003, 10, 20, 1.0, RunExcess(0.0, 0))
    assert judge_non_inferiority(found, PLAN, 2 * N, {}).verdict is verdict


def test_a_loss_near_the_margin_cannot_be_decided() -> None:
    finding = only(judge([*arm("cat", set()), *arm("skip", set(range(13)))]))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "interval_contains_margin")


def test_too_few_questions_never_pass_even_when_all_texts_agree() -> None:
    verdicts = [only(judge([*arm("cat", set(), n=n), *arm("skip", set(), n=n)], n=n)).verdict for n in (100, 380, 381)]
    assert verdicts == [Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.PASS]


def test_many_flips_both_ways_cancel_in_the_score_and_not_in_the_interval() -> None:
    finding = only(judge([*arm("cat", set(range(60))), *arm("skip", set(range(60, 120)))]))
    assert finding.numbers["difference_points"] == 0
    assert finding.verdict is Verdict.INCONCLUSIVE


def test_a_wider_declared_margin_decides_what_a_narrow_one_cannot() -> None:
    requests = [*arm("cat", set(range(60))), *arm("skip", set(range(60, 120)))]
    assert only(judge(requests, dataclasses.replace(PLAN, margin_points=3.0))).verdict is Verdict.PASS


def test_one_run_an_arm_says_what_it_cannot_show() -> None:
    one = only(judge([*arm("cat", MISSED), *arm("skip", MISSED)]))
    three = only(judge([*arm("cat", *[MISSED] * 3), *arm("skip", *[MISSED] * 3)], dataclasses.replace(PLAN, runs=3)))
    assert "a shift that a whole run shares" in one.sentence
    assert "a shift that a whole run shares" not in three.sentence


def test_persistent_and_transient_flips_are_told_apart() -> None:
    cat = arm("cat", {1}, {1, 5}, {1})
    skip = arm("skip", {2}, {2}, {2, 6})
    numbers = only(judge([*cat, *skip], dataclasses.replace(PLAN, runs=3))).numbers
    assert numbers["persistent_flips"] == 2
    assert numbers["transient_flips"] == 2
    kinds = {flip["question"]: flip["kind"] for flip in numbers["flips"]}
    assert kinds == {1: "persistent", 2: "persistent", 5: "transient", 6: "transient"}
    one = only(judge([*arm("cat", {1}), *arm("skip", {2})])).numbers
    assert one["persistent_flips"] is None


def test_each_flip_shows_where_its_texts_part_and_the_list_is_bounded() -> None:
    numbers = only(judge([*arm("cat", set()), *arm("skip", set(range(10, 60)))])).numbers
    assert len(numbers["flips"]) == 20
    assert numbers["flips"][0]["first_divergence"] == {
        "unit": "character",
        "position": len("so\n#### 1"),
        "reference": "0",
        "candidate": "1",
    }
    ids = [
        dataclasses.replace(r, output_ids=(5, 6, 7 if r.arm == "cat" else 8))
        for r in (*arm("cat", set()), *arm("skip", {3}))
    ]
    (flip,) = only(judge(ids)).numbers["flips"]
    assert flip["first_divergence"] == {"unit": "token", "position": 2, "reference": 7, "candidate": 8}


def test_every_extractor_is_reported_and_the_declared_one_decides() -> None:
    boxed = [dataclasses.replace(r, text=f"{r.text} \\boxed{{{r.index}}}") for r in arm("skip", set(range(100)))]
    requests = [*[dataclasses.replace(r, text=f"{r.text} \\boxed{{{r.index}}}") for r in arm("cat", set())], *boxed]
    strict = only(judge(requests))
    assert set(strict.numbers["scores"]) == set(SCORERS)
    assert strict.verdict is Verdict.FAIL
    assert only(judge(requests, dataclasses.replace(PLAN, extractor="boxed"))).verdict is Verdict.PASS


# What is not an answer


def test_an_error_is_never_a_wrong_answer() -> None:
    failed = [dataclasses.replace(r, error="timeout", text="") if r.index < 6 else r for r in arm("skip", set())]
    finding = only(judge([*arm("cat", set()), *failed]))
    assert finding.verdict is Verdict.PASS
    assert (finding.numbers["left_out"], finding.numbers["questions"]) == (6, N - 6)
    assert finding.numbers["accuracy"] == {"cat": 1.0, "skip": 1.0}


@pytest.mark.parametrize("how", ["error", "missing"])
@pytest.mark.parametrize("where", ["cat", "skip"])
def test_errors_over_the_budget_are_inconclusive_in_either_arm(how: str, where: str) -> None:
    requests = [*arm("cat", set()), *arm("skip", set())]
    hit = {(where, i) for i in range(7)}
    if how == "error":
        requests = [dataclasses.replace(r, error="reset") if (r.arm, r.index) in hit else r for r in requests]
    else:
        requests = [r for r in requests if (r.arm, r.index) not in hit]
    finding = only(judge(requests))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "error_budget")
    assert finding.numbers["left_out"] == 7


def test_an_error_in_one_run_leaves_the_question_out_of_all() -> None:
    skip = arm("skip", set(), set(), set())
    skip = [dataclasses.replace(r, error="x") if (r.index, r.launch_id) == (4, "skip-1") else r for r in skip]
    finding = only(judge([*arm("cat", set(), set(), set()), *skip], dataclasses.replace(PLAN, runs=3)))
    assert finding.numbers["left_out"] == 1


def test_an_error_in_one_repetition_within_a_launch_leaves_the_question_out() -> None:
    again = [answer("skip", i, True, run=1, error="reset" if i in (2, 3) else None) for i in range(N)]
    finding = only(judge([*arm("cat", set()), *arm("skip", set()), *again]))
    assert (finding.numbers["left_out"], finding.numbers["runs"]) == (2, {"skip": 1, "cat": 1})


def test_repetitions_within_a_launch_are_averaged() -> None:
    again = [answer("skip", i, i not in {4, 5}, run=1) for i in range(N)]
    finding = only(judge([*arm("cat", set()), *arm("skip", {4}), *again]))
    assert finding.numbers["difference_points"] == pytest.approx(-100 * 1.5 / N)


def test_no_answer_at_all_is_not_run() -> None:
    assert only(judge([])).verdict is Verdict.NOT_RUN
    finding = only(judge(arm("skip", set())))
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "not_gathered")
    assert "arm cat" in finding.sentence


@pytest.mark.parametrize("launches", [1, 2, 4], ids=["cut short", "one missing", "one more until it passed"])
def test_another_number_of_launches_than_declared_is_inconclusive(launches: int) -> None:
    requests = [*arm("cat", *[set()] * 3), *arm("skip", *[set()] * launches)]
    finding = only(judge(requests, dataclasses.replace(PLAN, runs=3)))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "runs_not_as_declared")


def test_the_first_answer_stands_when_a_question_was_asked_again() -> None:
    again = [answer("skip", i, True) for i in range(40)]
    finding = only(judge([*arm("cat", set()), *arm("skip", set(range(40))), *again]))
    assert finding.verdict is Verdict.FAIL


def test_repeated_runs_on_a_url_are_one_launch() -> None:
    urls = [Launch(f"{a}-{i}", a, i, 0, f"http://{a}", 0.0, False, {}) for a in ("cat", "skip") for i in range(3)]
    requests = [*arm("cat", *[MISSED] * 3), *arm("skip", *[MISSED] * 3)]
    finding = only(judge(requests, launches=urls))
    assert finding.numbers["runs"] == {"cat": 1, "skip": 1}
    assert finding.verdict is Verdict.PASS
    assert finding.numbers["run_excess_df"] == 0
    assert only(judge(requests, dataclasses.replace(PLAN, runs=3), launches=urls)).reason == "runs_not_as_declared"


def test_an_answer_without_a_question_and_an_unknown_extractor_are_refused() -> None:
    with pytest.raises(ValueError, match="question 2000 of gsm8k"):
        judge([answer("skip", 2000, True)])
    with pytest.raises(ValueError, match="'guess' is unknown; expected one of boxed"):
        judge([], dataclasses.replace(PLAN, extractor="guess"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reference", "skip"),
        ("margin_points", 0.0),
        ("runs", 0),
        ("floor", 1.0),
        ("error_budget", 1.0),
        ("same_build_runs", -1),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"given; expected|expected two"):
        dataclasses.replace(PLAN, **{field: value})  # type: ignore[arg-type]


# One arm


ALONE = dataclasses.replace(PLAN, reference=None)


def recorded(*wrong: set[int]) -> RecordedAccuracy:
    return record_accuracy(arm("skip", *wrong), QUESTIONS, PLAN, SCORERS[PLAN.extractor], "cat_h200")


def test_one_arm_is_judged_against_a_recorded_baseline_question_by_question() -> None:
    same = only(judge(arm("skip", MISSED), ALONE, baseline=recorded(MISSED)))
    assert (same.verdict, same.numbers["discordance"]) == (Verdict.PASS, 0)
    assert same.numbers["identical_texts"] is None
    worse = only(judge(arm("skip", MISSED | set(range(500, 550))), ALONE, baseline=recorded(MISSED)))
    assert worse.verdict is Verdict.FAIL


def test_a_baseline_survives_its_json() -> None:
    baseline = recorded(MISSED, {1, 2})
    assert RecordedAccuracy.from_json(baseline.to_json()) == baseline
    assert baseline.runs[1][:4] == "1001"


def test_a_baseline_with_missing_marks_leaves_those_questions_out() -> None:
    baseline = recorded(set())
    baseline = dataclasses.replace(baseline, runs=("--" + baseline.runs[0][2:],))
    assert only(judge(arm("skip", set()), ALONE, baseline=baseline)).numbers["left_out"] == 2


@pytest.mark.parametrize("field", ["model", "questions_sha256", "prompt_mode", "extractor"])
def test_a_baseline_of_something_else_is_refused_by_name(field: str) -> None:
    baseline = RecordedAccuracy.from_json({**recorded(set()).to_json(), field: "other"})
    finding = only(judge(arm("skip", set()), ALONE, baseline=baseline))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "baseline_mismatch")
    assert f"recorded with {field} 'other'" in finding.sentence


def test_a_doctored_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="1318 marks for 1319 questions"):
        dataclasses.replace(recorded(set()), runs=("1" * (N - 1),))


def test_one_arm_alone_has_nothing_to_be_held_against() -> None:
    finding = only(judge(arm("skip", MISSED), ALONE))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "no_baseline")


@pytest.mark.parametrize(
    ("floor", "verdict"), [(0.90, Verdict.PASS), (0.945, Verdict.INCONCLUSIVE), (0.97, Verdict.FAIL)]
)
def test_a_floor_is_held_against_the_interval_not_the_estimate(floor: float, verdict: Verdict) -> None:
    finding = only(judge(arm("skip", MISSED), dataclasses.replace(ALONE, floor=floor)))
    assert finding.numbers["accuracy"]["skip"] == pytest.approx(0.947, abs=0.001)
    assert finding.verdict is verdict


# Within run-to-run variance


def test_no_run_to_run_claim_is_made_unless_runs_were_planned() -> None:
    findings = judge([*arm("cat", MISSED), *arm("skip", MISSED)])
    assert [f.name for f in findings] == ["accuracy.gsm8k.non_inferiority"]
    assert findings[0].numbers["run_to_run"]["reason"] == "too_few_same_build_runs"
    required = [f for f in findings if profiles.is_required(f.evidence, profiles.Profile.PR)]
    assert profiles.exit_status(required, profiles.Profile.PR) == profiles.EXIT_PASS


def test_planned_runs_make_a_finding_of_its_own() -> None:
    plan = dataclasses.replace(PLAN, same_build_runs=5)
    five = recorded(*({i, i + 1} for i in range(5)))
    both = judge([*arm("cat", {1, 2}), *arm("skip", {2, 3})], plan, same_build=five)
    assert [(f.name.rpartition(".")[2], f.verdict) for f in both] == [
        ("non_inferiority", Verdict.PASS),
        ("run_to_run", Verdict.PASS),
    ]
    four = dataclasses.replace(five, runs=five.runs[:4])
    few = judge([*arm("cat", {1, 2}), *arm("skip", {2, 3})], plan, same_build=four)[1]
    assert (few.verdict, few.reason) == (Verdict.INCONCLUSIVE, "too_few_same_build_runs")


def test_without_a_record_the_reference_arms_own_launches_are_the_same_build() -> None:
    plan = dataclasses.replace(PLAN, runs=5, same_build_runs=5)
    wrong = [set(range(i, 40 + 2 * i)) for i in range(5)]
    findings = judge([*arm("cat", *wrong), *arm("skip", *wrong)], plan)
    assert findings[1].numbers["same_build_runs"] == 5
    assert findings[1].verdict is Verdict.PASS


ACCURACIES = {"quiet": [0.950, 0.9505, 0.9495, 0.9502, 0.9498], "noisy": [0.90, 0.98, 0.93, 0.99, 0.91]}


@pytest.mark.parametrize(
    ("noise", "lost", "reason"),
    [
        ("quiet", 0, "within_run_to_run_variance"),
        ("quiet", 4, "outside_run_to_run_variance"),
        ("quiet", 40, "outside_margin"),
        ("noisy", 4, "within_run_to_run_variance"),
        ("noisy", 10, "not_equivalent"),
        ("noisy", 40, "outside_margin"),
    ],
)
def test_a_noisier_server_does_not_pass_more(noise: str, lost: int, reason: str) -> None:
    reference = np.ones((1, N))
    candidate = np.where(np.arange(N) < lost, 0.0, 1.0)[None]
    finding = judge_run_to_run(
        paired_difference(reference, candidate), PLAN, ACCURACIES[noise], reference, candidate, 2 * N
    )
    assert finding.reason == reason


def test_a_difference_between_the_95_and_the_99_per_cent_interval_is_undecided() -> None:
    reference = np.ones((1, N))
    widths = []
    for lost in range(12):
        candidate = np.where(np.arange(N) < lost, 0.0, 1.0)[None]
        difference = paired_difference(reference, candidate)
        accuracies = [0.95, 0.951, 0.949, 0.9508, 0.9492]
        widths.append(judge_run_to_run(difference, PLAN, accuracies, reference, candidate, 1).reason)
    assert [key for key, _ in itertools.groupby(widths)] == [
        "within_run_to_run_variance",
        "outside_prediction_interval",
        "outside_run_to_run_variance",
    ]


def test_findings_survive_their_json() -> None:
    plan = dataclasses.replace(PLAN, same_build_runs=5)
    for finding in judge([*arm("cat", {1}), *arm("skip", {2})], plan, same_build=recorded(*[{i} for i in range(5)])):
        assert Finding.from_json(finding.to_json()).to_json() == finding.to_json()
