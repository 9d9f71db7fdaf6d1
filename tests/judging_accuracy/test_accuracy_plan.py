"""The accuracy planner, held against exact sums and against the judge's own decisions on simulated answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from validation.judging.plan_accuracy import accuracy_power, fewest_questions, plan_accuracy, pooled_discordance
from validation.judging.score_interval import RunExcess, paired_difference, score_statistic

N = 1319


def exact_power(discordance: float, questions: int) -> float:
    """P(the score statistic at a loss of 1 point clears 97.5 %), summed over every discordant count and split."""
    power = 0.0
    for total in range(int(questions * discordance * 2) + 20):
        better = np.arange(total + 1.0)
        z = score_statistic(better, total - better, np.full_like(better, questions), np.full_like(better, -0.01))
        split = stats.binom.pmf(better, total, 0.5)
        power += stats.binom.pmf(total, questions, discordance) * split[z > stats.norm.isf(0.025)].sum()
    return power


@pytest.mark.parametrize(
    ("runs", "discordance", "power"),
    [
        (1, 0.01, 0.899),
        (1, 0.02, 0.679),
        (1, 0.03, 0.521),
        (1, 0.04, 0.427),
        (3, 0.01, 1.000),
        (3, 0.02, 0.991),
        (3, 0.03, 0.946),
        (3, 0.04, 0.875),
    ],
)
def test_power_at_one_point_on_gsm8k_is_the_exact_sum(runs: int, discordance: float, power: float) -> None:
    exact = exact_power(discordance, N * runs)
    assert exact == pytest.approx(power, abs=0.0006)
    assert accuracy_power(discordance, runs=runs, estimated=False).power == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("runs", "shift", "estimated"),
    [(3, 0.0, False), (3, 0.0, True), (3, 0.004, False), (3, 0.004, True), (1, 0.004, True)],
)
def test_power_is_that_of_the_judges_own_interval(runs: int, shift: float, estimated: bool) -> None:
    draw = np.random.default_rng(3)
    passed, experiments = 0, 300
    for _ in range(experiments):
        unstable = draw.random(N) < 0.03
        arms = []
        for shifts in draw.normal(0, shift, (2, runs, 1)):
            chance = np.where(unstable, 0.5, 0.98)
            arms.append((draw.random((runs, N)) < chance + shifts).astype(np.float64))
        known = None if estimated else RunExcess(shift**2, 0)
        passed += paired_difference(arms[0], arms[1], known).lower > -0.01
    discordance = 0.03 / 2 + 0.97 * 2 * 0.98 * 0.02
    planned = accuracy_power(discordance, runs=runs, run_sd_points=100 * shift, estimated=estimated).power
    assert stats.binomtest(passed, experiments, planned).pvalue > 1e-3


def test_recorded_runs_lower_the_price_of_not_knowing_the_shift() -> None:
    alone, helped = (accuracy_power(0.03, runs=3, recorded_runs=recorded).power for recorded in (0, 24))
    assert alone < helped < accuracy_power(0.03, runs=3, estimated=False).power


def test_persistent_flips_are_not_averaged_out_by_more_runs() -> None:
    one, many = (accuracy_power(0.03, runs=runs, persistent_share=1.0, estimated=False) for runs in (1, 9))
    assert one.power == many.power
    assert accuracy_power(0.03, runs=9).power > one.power


def test_the_plan_is_the_fewest_runs_and_says_so_where_none_suffice() -> None:
    plan = plan_accuracy(0.03)
    assert (plan.runs, plan.power >= 0.9) == (4, True)
    assert accuracy_power(0.03, runs=3).power < 0.9
    assert plan_accuracy(0.001).runs == 1
    hopeless = plan_accuracy(0.03, persistent_share=1.0, most_runs=4)
    assert (hopeless.runs, hopeless.power < 0.9) == (4, True)


def test_the_detectable_margin_is_the_one_that_reaches_the_target() -> None:
    found = accuracy_power(0.02)
    assert accuracy_power(0.02, margin_points=found.detectable_points).power == pytest.approx(0.9, abs=0.02)
    assert accuracy_power(0.0).detectable_points == pytest.approx(0.29, abs=0.005)


def test_fewest_questions_is_where_identical_texts_start_to_pass() -> None:
    assert fewest_questions(1.0) == 381
    for margin in (0.5, 1.0, 2.0, 5.0):
        n = fewest_questions(margin)
        limits = [paired_difference(np.ones((1, m)), np.ones((1, m))).lower for m in (n - 1, n)]
        assert limits[0] <= -margin / 100 < limits[1]


def test_discordance_of_recorded_runs_is_the_mean_over_pairs() -> None:
    runs = [[True, True, False, True], [True, False, False, True], [True, True, True, True]]
    assert pooled_discordance(runs) == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)
    with pytest.raises(ValueError, match="expected two or more"):
        pooled_discordance(runs[:1])


@pytest.mark.parametrize(
    "given",
    [{"runs": 0}, {"questions": 0}, {"margin_points": 0.0}, {"persistent_share": 1.5}, {"run_sd_points": -1.0}],
    ids=lambda given: next(iter(given)),
)
def test_a_plan_that_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="given; expected"):
        accuracy_power(0.02, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="given; expected a share"):
        accuracy_power(-0.1)
