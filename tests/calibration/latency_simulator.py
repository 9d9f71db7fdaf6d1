"""Simulated serving experiments with a known answer, thousands at a time.

A run is a closed loop of concurrent requests that share decode steps. A request's TPOT is the mean duration of the
steps it lives through, so the mean over requests is a weighted sum of step durations. ``requests_tpot`` simulates every
step; ``block_gains`` draws the weighted sum from its exact distribution (a test holds the two together).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import signal

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Tail = Literal["normal", "t3", "outlier"]

STEP_AR = 0.9
STEP_SD = 0.0048
"""AR(1) noise of a decode step's duration, relative. With ``Workload()`` the mean TPOT of a run then has a residual of
0.10 %, the value the blocks are planned with."""
OUTLIER_SHARE, OUTLIER_SDS = 0.1, 5.0
"""One launch in ten is slower by five launch standard deviations."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A closed loop: a finished request is replaced at the next step until all have been sent."""

    concurrency: int = 64
    requests: int = 192
    shortest: int = 102
    longest: int = 128
    """Output tokens are uniform between the two (random dataset, range ratio 0.8)."""

    def windows(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First step and one past the last step of each request's decode phase. The same in both arms."""
        return _windows(self)

    def weights(self) -> FloatArray:
        """``(steps,)``: the weight of each step in the mean over requests of TPOT."""
        start, stop = self.windows()
        weights = np.zeros(int(stop.max()))
        for a, b in zip(start, stop, strict=True):
            weights[a:b] += 1 / (b - a)
        return weights / self.requests

    def residual_sd(self) -> float:
        """Standard deviation of a run's mean TPOT that step noise causes, relative."""
        weights = self.weights()
        lags = np.abs(np.subtract.outer(np.arange(len(weights)), np.arange(len(weights))))
        return STEP_SD * math.sqrt(float(weights @ STEP_AR**lags @ weights))


@functools.lru_cache(maxsize=8)
def _windows(load: Workload) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    lengths = np.random.default_rng(1).integers(load.shortest, load.longest + 1, load.requests)
    free = np.zeros(load.concurrency, dtype=np.int64)
    start = np.zeros(load.requests, dtype=np.int64)
    for i, length in enumerate(lengths):
        slot = int(free.argmin())
        start[i] = free[slot]
        free[slot] += length
    return start, start + lengths - 1


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the world is like. Everything in percent of TPOT."""

    name: str
    launch_sd: float = 0.3
    shared: float = 1.0
    """Share of the launch variance that all scenarios of a launch have in common."""
    tail: Tail = "normal"
    drift: float = 0.0
    """Slower by this much from launch to launch."""
    position: float = 0.0
    """The second launch of a block is slower by this much."""
    scenarios: int = 3
    launches: int = 2
    """Per block: a pair, or 4 for a quadruple BCCB or CBBC."""


def launch_effects(rng: np.random.Generator, shape: tuple[int, ...], sd: float, tail: Tail) -> FloatArray:
    """Launch effects with core standard deviation ``sd``; t3 is scaled to it, outliers come on top."""
    if tail == "t3":
        return np.asarray(rng.standard_t(3, shape) * sd / math.sqrt(3))
    effects = rng.normal(0, sd, shape)
    if tail == "outlier":
        effects += OUTLIER_SDS * sd * (rng.random(shape) < OUTLIER_SHARE)
    return np.asarray(effects)


def candidate_first(rng: np.random.Generator, experiments: int, blocks: int) -> BoolArray:
    """Orders randomised in balance: of each two blocks, one starts with the candidate."""
    coins = rng.random((experiments, (blocks + 1) // 2)) < 0.5
    return np.stack([coins, ~coins], axis=2).reshape(experiments, -1)[:, :blocks]


def block_gains(
    rng: np.random.Generator,
    experiments: int,
    blocks: int,
    world: Condition,
    gains_percent: tuple[float, ...] | float = 0.0,
    order: Literal["balanced", "baseline_first"] = "balanced",
) -> FloatArray:
    """``(experiments, blocks, scenarios)`` log gains, one fresh launch an arm and block."""
    if world.launches == 4:
        # In BCCB and CBBC each arm has one odd place, and the mean places are equal: drift and position cancel.
        still = dataclasses.replace(world, launches=2, drift=0.0, position=0.0)
        pairs = block_gains(rng, experiments, 2 * blocks, still, gains_percent)
        return np.asarray(pairs.reshape(experiments, blocks, 2, -1).mean(axis=2))
    shape = (experiments, blocks, 2, world.scenarios)
    sd = world.launch_sd / 100
    effect = launch_effects(rng, (*shape[:3], 1), sd * math.sqrt(world.shared), world.tail) + launch_effects(
        rng, shape, sd * math.sqrt(1 - world.shared), world.tail
    )
    effect = effect + rng.normal(0, Workload().residual_sd(), shape)
    first = candidate_first(rng, experiments, blocks) if order == "balanced" else np.zeros((experiments, blocks), bool)
    # Arm 0 is the candidate; the launch that comes second in the block carries drift and position.
    later = np.where(first, -1.0, 1.0)[:, :, None] * (world.drift + world.position) / 100
    gain = -np.log1p(-np.broadcast_to(np.asarray(gains_percent, dtype=np.float64), (world.scenarios,)) / 100)
    return np.asarray(effect[:, :, 1] - effect[:, :, 0] - later + gain)


def requests_tpot(
    rng: np.random.Generator, level: FloatArray, drift: float = 0.0, load: Workload | None = None
) -> FloatArray:
    """``(*level.shape, requests)`` TPOT of every request of runs whose true log TPOT is ``level``.

    Args:
        rng: random numbers.
        level: log TPOT of each run: launch effect, position and gain.
        drift: relative slope from a run's first step to its last.
        load: the closed loop.
    """
    load = load or Workload()
    start, stop = load.windows()
    steps = int(stop.max())
    shocks = rng.normal(0, STEP_SD * math.sqrt(1 - STEP_AR**2), (*level.shape, steps))
    shocks[..., 0] /= math.sqrt(1 - STEP_AR**2)
    noise = signal.lfilter([1.0], [1.0, -STEP_AR], shocks, axis=-1)
    durations = np.exp(level)[..., None] * (1 + noise + drift * np.linspace(-0.5, 0.5, steps))
    total = np.concatenate([np.zeros((*level.shape, 1)), np.cumsum(durations, axis=-1)], axis=-1)
    return np.asarray((total[..., stop] - total[..., start]) / (stop - start))
