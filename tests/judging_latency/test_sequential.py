"""The sequential t boundaries against simulation and against cases with a closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from validation.judging import sequential
from validation.judging.sequential import boundaries


def first_crossings(plan: sequential.Boundaries, gain_in_sd: float, seed: int, count: int) -> npt.NDArray[np.float64]:
    """Share of simulated experiments that cross first at each look."""
    data = np.random.default_rng(seed).standard_normal((count, plan.last)) + gain_in_sd
    crossed = np.zeros(count, dtype=bool)
    shares = []
    for k in range(plan.first, plan.last + 1):
        t = data[:, :k].mean(axis=1) * np.sqrt(k) / data[:, :k].std(axis=1, ddof=1)
        now = ~crossed & (t >= plan.at(k))
        shares.append(now.mean())
        crossed |= now
    return np.array(shares)


def test_a_single_look_is_students_t_test() -> None:
    plan = boundaries(0.025, 7, 7)
    assert plan.critical_t[0] == pytest.approx(stats.t.isf(0.025, 6), rel=1e-5)
    assert sequential.power(plan, 0.9) == pytest.approx(sequential.fixed_power(7, 0.9, 0.025), rel=1e-4)


@pytest.mark.parametrize("gain_in_sd", [0.0, 0.5, 1.6, 4.4])
def test_first_crossings_agree_with_simulation(gain_in_sd: float) -> None:
    plan = boundaries(0.025, 3, 8)
    count = 40_000
    seen = first_crossings(plan, gain_in_sd, 11, count)
    expected = np.array(sequential.crossing(plan, gain_in_sd))
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(seen - expected) < 4.5 * error + 1e-6)


@pytest.mark.parametrize(("first", "last"), [(3, 4), (3, 8), (3, 20), (4, 12), (5, 40), (2, 6)])
def test_alpha_is_spent_exactly_as_declared(first: int, last: int) -> None:
    plan = boundaries(0.025, first, last)
    spent = np.cumsum(sequential.crossing(plan, 0.0))
    assert spent == pytest.approx([plan.spent(k) for k in range(first, last + 1)], rel=2e-3)


def test_textbook_boundaries_for_known_variance_would_be_far_too_low() -> None:
    assert boundaries(0.025, 3, 8).at(3) > 3 * stats.norm.isf(0.0057)


def test_a_finer_grid_moves_no_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = boundaries(0.025, 3, 12).critical_t
    monkeypatch.setattr(sequential, "_GRID", 1201)
    monkeypatch.setattr(sequential, "_NODES", 96)
    fine, _ = sequential._solve.__wrapped__(0.025, 3, 12, 1.5)
    assert coarse == pytest.approx(fine, rel=5e-4)


def test_power_rises_with_the_gain_and_the_detectable_gain_has_the_power_asked_for() -> None:
    plan = boundaries(0.025, 3, 10)
    powers = [sequential.power(plan, d) for d in (0.0, 0.3, 0.6, 1.2, 3.0)]
    assert powers == sorted(powers)
    assert sequential.power(plan, sequential.detectable_in_sd(plan, 0.9)) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(("alpha", "first", "last"), [(0.0, 3, 8), (0.6, 3, 8), (0.025, 1, 8), (0.025, 9, 8)], ids=str)
def test_impossible_plans_are_refused(alpha: float, first: int, last: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        boundaries(alpha, first, last)
