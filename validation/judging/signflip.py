"""Randomisation tests on block data: the arms of a block could have been swapped, so its sign could have been either.

Exact at any sample size and for any noise that is symmetric under a swap of the arms. With ``n`` blocks no one-sided p
lies below ``2**-n``; where that exceeds alpha the test cannot reject, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]

MOST_ENUMERATED = 16
"""2^16 sign patterns are enumerated; beyond, as many are drawn at random, and the observed one counts as drawn
(Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010: no permutation p of zero)."""


def smallest_p(blocks: int) -> float:
    """The smallest one-sided p that ``blocks`` blocks can give."""
    return float(2.0**-blocks)


def sign_flip_p(gains: Sequence[float]) -> float:
    """One-sided p of "no gain" from block gains (above zero: the candidate is faster)."""
    return max_t_p(np.asarray(gains, dtype=np.float64)[:, None])[0]


def max_t_p(gains: FloatArray) -> tuple[float, ...]:
    """Adjusted one-sided p for each scenario: joint sign flips, step-down max-T (Westfall and Young 1993, 2.6).

    Args:
        gains: ``(blocks, scenarios)``; a block's signs flip together, so scenarios may depend on each other in any way.
    """
    blocks, scenarios = gains.shape
    root = np.sqrt((gains**2).sum(axis=0))
    # A flip leaves the sum of squares alone, so t rises with sum / root and both order the flips alike.
    scaled = np.divide(gains, root, out=np.zeros_like(gains), where=root > 0)
    observed = scaled.sum(axis=0)
    flipped = _signs(blocks) @ scaled
    adjusted = np.zeros(scenarios)
    floor = 0.0
    order = np.argsort(-observed, kind="stable")
    for rank, scenario in enumerate(order):
        highest = flipped[:, order[rank:]].max(axis=1)
        floor = max(floor, float(np.mean(highest >= observed[scenario] - 1e-12)))
        adjusted[scenario] = floor
    return tuple(float(p) for p in adjusted)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p values (Scand. J. Stat. 6, 1979)."""
    count = len(p_values)
    adjusted = [0.0] * count
    floor = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = floor
    return tuple(adjusted)


def t_p(gains: Sequence[float]) -> float:
    """One-sided p of Student's t test of "no gain"."""
    values = np.asarray(gains, dtype=np.float64)
    sd = float(values.std(ddof=1))
    if sd == 0:
        return 0.0 if values.mean() > 0 else 1.0
    return float(stats.t.sf(values.mean() / sd * np.sqrt(len(values)), len(values) - 1))


def _signs(blocks: int) -> FloatArray:
    """``(patterns, blocks)`` of -1 and 1, the unflipped pattern first."""
    if blocks <= MOST_ENUMERATED:
        bits = np.arange(2**blocks)[:, None] >> np.arange(blocks) & 1
        return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)
    drawn = np.random.default_rng(20_250_101).integers(0, 2, size=(2**MOST_ENUMERATED, blocks)) * 2.0 - 1.0
    drawn[0] = 1.0
    return np.asarray(drawn, dtype=np.float64)
