"""A sequential one-sided t test with alpha spending, exact for Gaussian block data of unknown variance.

After ``k`` blocks the test looks at ``t_k = mean_k * sqrt(k) / sd_k``. Textbook boundaries are for a known variance and
are far too low at three or four blocks. Here they are exact, because of one fact (transitivity: Hall, Wijsman and
Ghosh, "The relationship between sufficiency and invariance", Ann. Math. Stat. 36, 1965): given ``t_k``, the earlier
``t_2 .. t_(k-1)`` depend on neither the mean nor the variance. So

    h_k(t) = P(no boundary was crossed before look k | t_k = t)

is one curve a look, and the probability to cross first at look ``k`` is the integral of ``h_k`` over ``t >= c_k``,
weighted with Student's density under the null hypothesis and with the noncentral density under a gain.

Geometry of the recursion. Scale the ``k`` data to unit length: they are a uniform point on a sphere, and with
``u_k = sum / root of the sum of squares`` one has ``t_k = sqrt(k - 1) * tan(phi)``, ``sin(phi) = u_k / sqrt(k)``. Given
``u_(k+1) = v``, the newest datum is ``x = v / (k+1) + sqrt((1 - v*v / (k+1)) * k / (k+1)) * rho``, with ``rho`` one
coordinate of a uniform point on the sphere in ``k`` dimensions, and ``u_k = (v - x) / sqrt(1 - x*x)``.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

FloatArray = npt.NDArray[np.float64]

SPENDING_EXPONENT = 1.5
"""Cumulative alpha after a share ``i`` of the information is ``alpha * i**1.5``: the power family of Kim and DeMets,
Biometrika 74 (1987), between Pocock-like (1) and O'Brien-Fleming-like (3)."""

_GRID = 601
_NODES = 48
"""Points of the curve ``h_k`` and of each integral; doubling both moves no boundary by more than 5e-4 (tested)."""


@dataclasses.dataclass(frozen=True)
class Boundaries:
    """Critical values of ``t_k`` for ``k = first .. last``; equal on both sides for a repeated confidence interval."""

    alpha: float
    """One-sided error over all looks."""
    exponent: float
    first: int
    last: int
    critical_t: tuple[float, ...]

    def at(self, blocks: int) -> float:
        """The critical value after ``blocks`` blocks; infinite before the first look, the last one's after the last."""
        if blocks < self.first:
            return math.inf
        return self.critical_t[min(blocks, self.last) - self.first]

    def spent(self, blocks: int) -> float:
        """Cumulative one-sided alpha after ``blocks`` blocks."""
        if blocks < self.first:
            return 0.0
        return float(self.alpha * min(1.0, blocks / self.last) ** self.exponent)


@functools.lru_cache(maxsize=256)
def boundaries(alpha: float, first: int, last: int, exponent: float = SPENDING_EXPONENT) -> Boundaries:
    """The exact boundaries of a plan that looks after each block from ``first`` to ``last``.

    Raises:
        ValueError: ``alpha`` is outside (0, 0.5), ``first`` is below 2 or above ``last``.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha of {alpha!r} was given; expected a one-sided level between 0 and 0.5")
    if not 2 <= first <= last:
        raise ValueError(f"looks from {first} to {last} blocks were given; expected 2 <= first <= last")
    return Boundaries(alpha, exponent, first, last, _solve(alpha, first, last, exponent)[0])


def power(plan: Boundaries, gain_in_sd: float) -> float:
    """The probability to cross by the last look when the mean is ``gain_in_sd`` block standard deviations."""
    return float(sum(crossing(plan, gain_in_sd)))


def expected_blocks(plan: Boundaries, gain_in_sd: float) -> float:
    """Mean blocks until the boundary is crossed or the last block is in; no futility stop."""
    first_crossing = crossing(plan, gain_in_sd)
    looks = np.arange(plan.first, plan.last + 1)
    return float(np.dot(first_crossing, looks) + (1 - sum(first_crossing)) * plan.last)


@functools.lru_cache(maxsize=4096)
def crossing(plan: Boundaries, gain_in_sd: float) -> tuple[float, ...]:
    """The probability of the first crossing at each look, when the mean is ``gain_in_sd`` standard deviations."""
    _, curves = _solve(plan.alpha, plan.first, plan.last, plan.exponent)
    out = []
    for k, critical, curve in zip(range(plan.first, plan.last + 1), plan.critical_t, curves, strict=True):
        phi, weight = _legendre(math.atan(critical / math.sqrt(k - 1)), math.pi / 2)
        t = math.sqrt(k - 1) * np.tan(phi)
        density = stats.nct.pdf(t, k - 1, gain_in_sd * math.sqrt(k)) if gain_in_sd else stats.t.pdf(t, k - 1)
        slope = math.sqrt(k - 1) / np.cos(phi) ** 2
        out.append(float(np.sum(weight * np.nan_to_num(density) * slope * np.interp(phi, _phi_grid(), curve))))
    return tuple(out)


def detectable_in_sd(plan: Boundaries, power_wanted: float) -> float:
    """The smallest mean, in block standard deviations, that ``plan`` detects with probability ``power_wanted``."""
    return float(optimize.brentq(lambda d: power(plan, d) - power_wanted, 1e-3, 60.0, xtol=1e-4))


def fixed_power(blocks: int, gain_in_sd: float, alpha: float) -> float:
    """Power of the one-sided t test on a fixed number of blocks."""
    critical = stats.t.isf(alpha, blocks - 1)
    return float(stats.nct.sf(critical, blocks - 1, gain_in_sd * math.sqrt(blocks)))


def _phi_grid() -> FloatArray:
    return np.linspace(-math.pi / 2, math.pi / 2, _GRID)


def _legendre(low: float | FloatArray, high: float | FloatArray) -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre nodes and weights on ``[low, high]``; a last axis is added where the ends are arrays."""
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    middle = np.asarray((np.add(high, low)) / 2)[..., None]
    half = np.asarray(np.subtract(high, low) / 2)[..., None]
    return np.squeeze(middle + half * node), np.squeeze(half * weight)


@functools.lru_cache(maxsize=256)
def _solve(alpha: float, first: int, last: int, exponent: float) -> tuple[tuple[float, ...], tuple[FloatArray, ...]]:
    """Critical values and the curves ``h_k`` (on the grid of ``phi``), look by look."""
    critical: list[float] = []
    curve = np.ones(_GRID)
    curves = [curve]
    spent = 0.0
    for k in range(first, last + 1):
        target = alpha * (k / last) ** exponent
        critical.append(_critical(curve, k, target - spent))
        spent = target
        if k < last:
            curve = _next_curve(curve, k, critical[-1])
            curves.append(curve)
    return tuple(critical), tuple(curves)


def _critical(curve: FloatArray, k: int, level: float) -> float:
    """The ``c`` with P(no earlier crossing and t_k >= c) = ``level`` under a mean of zero."""

    def excess(tail: float) -> float:
        p, weight = _legendre(0.0, tail)
        phi = np.arctan(stats.t.isf(p, k - 1) / math.sqrt(k - 1))
        return float(np.sum(weight * np.interp(phi, _phi_grid(), curve))) - level

    return float(stats.t.isf(optimize.brentq(excess, level * (1 - 1e-9), 0.5, xtol=1e-12), k - 1))


def _next_curve(curve: FloatArray, k: int, critical: float) -> FloatArray:
    """``h_(k+1)`` from ``h_k`` and the critical value of look ``k``: integrate over the newest datum."""
    bound = math.sqrt(k) * math.sin(math.atan(critical / math.sqrt(k - 1)))
    v = math.sqrt(k + 1) * np.sin(_phi_grid())
    centre = v / (k + 1)
    reach = np.sqrt(np.maximum(1 - v * v / (k + 1), 1e-15) * k / (k + 1))
    # u_k < bound exactly where x lies between the roots of (1 + bound^2) x^2 - 2 v x + v^2 - bound^2 = 0.
    root = bound * np.sqrt(np.maximum(1 + bound**2 - v * v, 0))
    low = np.arcsin(np.clip(((v - root) / (1 + bound**2) - centre) / reach, -1, 1))
    high = np.arcsin(np.clip(((v + root) / (1 + bound**2) - centre) / reach, -1, 1))
    omega, weight = _legendre(low, high)
    x = centre[:, None] + reach[:, None] * np.sin(omega)
    u = (v[:, None] - x) / np.sqrt(np.maximum(1 - x * x, 1e-15))
    phi = np.arcsin(np.clip(u / math.sqrt(k), -1, 1))
    # rho = sin(omega) has density cos(omega)^(k-2) * constant in omega.
    constant = math.exp(math.lgamma(k / 2) - math.lgamma((k - 1) / 2)) / math.sqrt(math.pi)
    density = constant * np.cos(omega) ** (k - 2)
    before = np.sum(weight * density * np.interp(phi, _phi_grid(), curve), axis=1)
    return np.asarray(np.clip(before, 0.0, 1.0), dtype=np.float64)
