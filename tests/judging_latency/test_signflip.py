"""Sign-flip and step-down tests against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from validation.judging import signflip


def test_sign_flip_p_is_the_share_of_flips_at_least_as_large() -> None:
    gains = np.array([0.5, 0.2, -0.1, 0.4, 0.3])
    flips = [np.dot(signs, gains) for signs in itertools.product((1, -1), repeat=5)]
    assert signflip.sign_flip_p(list(gains)) == np.mean(np.array(flips) >= gains.sum() - 1e-12)


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_smallest_p_is_reached_when_every_block_agrees(blocks: int) -> None:
    assert signflip.sign_flip_p([0.1 * (i + 1) for i in range(blocks)]) == signflip.smallest_p(blocks) == 2.0**-blocks


def test_no_p_is_zero_where_the_flips_are_drawn() -> None:
    assert 0 < signflip.sign_flip_p([1.0 + i for i in range(24)]) <= 2.0**-15


def test_max_t_of_one_scenario_is_the_plain_test() -> None:
    gains = np.random.default_rng(3).normal(0.3, 1, (9, 1))
    assert signflip.max_t_p(gains)[0] == signflip.sign_flip_p(list(gains[:, 0]))


def test_max_t_is_the_step_down_of_its_definition() -> None:
    gains = np.random.default_rng(4).normal(0.4, 1, (7, 3))
    t = gains.mean(axis=0) / np.sqrt((gains**2).sum(axis=0))
    flips = [np.array(s)[:, None] * gains for s in itertools.product((1, -1), repeat=7)]
    flipped = np.array([f.mean(axis=0) / np.sqrt((f**2).sum(axis=0)) for f in flips])
    expected, left, floor = np.zeros(3), [0, 1, 2], 0.0
    for best in sorted(left, key=lambda i: -t[i]):
        floor = max(floor, np.mean(flipped[:, left].max(axis=1) >= t[best] - 1e-12))
        expected[best] = floor
        left = [i for i in left if i != best]
    assert signflip.max_t_p(gains) == pytest.approx(expected)


def test_max_t_costs_nothing_for_copies_of_one_scenario_where_holm_pays() -> None:
    gains = np.random.default_rng(5).normal(0.6, 1, (10, 1))
    alone = signflip.sign_flip_p(list(gains[:, 0]))
    assert signflip.max_t_p(np.repeat(gains, 5, axis=1)) == pytest.approx([alone] * 5)
    assert max(signflip.holm([alone] * 5)) == pytest.approx(min(1.0, 5 * alone))


def test_holm_on_a_worked_example() -> None:
    assert signflip.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def test_a_constant_series_has_no_p_by_accident() -> None:
    assert signflip.t_p([0.0, 0.0, 0.0]) == 1.0
