"""How often the latency judge is wrong, condition by condition, and the usual ways beside it.

``python -m tests.calibration.latency_calibration --out FILE`` runs the long version; ``test_latency_calibration.py``
a short one. The judge's decisions are vectorised here and held to ``judge_latency`` by a test.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import math
import pathlib
import platform
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from scipy import stats

from tests.calibration.latency_simulator import (
    BoolArray,
    Condition,
    FloatArray,
    Workload,
    block_gains,
    launch_effects,
    requests_tpot,
)
from validation.judging import latency_numbers, plan_latency, sequential, signflip
from validation.judging.latency_design import FINAL_SHARE, LatencyPlan, LaunchSd, log_gain

SEED = 20_250_725
MARGIN = 1.4
"""A false-alarm rate's upper 95 % limit may reach this multiple of the nominal rate."""
LAUNCH_SDS = (0.1, 0.2, 0.3, 0.4, 0.6)
_SHARES = (("shared", 1.0), ("unshared", 0.0))
WORLDS = (
    *(Condition(f"launch sd {sd:g}, {word}", sd, share) for sd in LAUNCH_SDS for word, share in _SHARES),
    Condition("drift 0.05 a launch", 0.3, 0.5, drift=0.05),
    Condition("position effect 0.1", 0.3, 0.5, position=0.1),
    Condition("position effect 0.3, pairs", 0.3, 0.5, position=0.3),
    Condition("position effect 0.3, quadruples", 0.3, 0.5, position=0.3, launches=4),
    Condition("t3 launches", 0.3, 1.0, "t3"),
    Condition("t3 launches, unshared", 0.3, 0.0, "t3"),
    Condition("10 % outlier launches", 0.3, 1.0, "outlier"),
    Condition("10 % outlier launches, sd 0.1", 0.1, 1.0, "outlier"),
    Condition("t3, drift and position", 0.4, 0.5, "t3", drift=0.05, position=0.1),
)


@dataclasses.dataclass(frozen=True)
class Stops:
    """Where and how each of many experiments ended; arrays of one entry an experiment."""

    blocks: npt.NDArray[np.int64]
    """At the stop."""
    decided: npt.NDArray[np.int64]
    """1: gain shown, -1: useful gain excluded, 0: neither."""
    gain: FloatArray
    error: FloatArray
    """Standard error at the stop."""
    critical: FloatArray
    final_critical: FloatArray


def rng_for(*names: object) -> np.random.Generator:
    """A generator of its own for each condition, the same in every process."""
    return np.random.default_rng([SEED, zlib.crc32("/".join(map(str, names)).encode())])


def run_sequential(primary: FloatArray, plan: LatencyPlan) -> Stops:
    """The sequential plan on ``(experiments, max_blocks)`` primary gains, futility stops included."""
    count, last = len(primary), plan.max_blocks
    bounds = plan.boundaries()
    useful, planned = log_gain(plan.smallest_useful_gain_percent), log_gain(plan.planned_gain_percent)
    k = np.arange(1, last + 1)
    mean = np.cumsum(primary, axis=1) / k
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt(np.maximum(np.cumsum(primary**2, axis=1) - k * mean**2, 0) / (k - 1))
    error = sd / np.sqrt(k)
    at, decided = np.full(count, last), np.zeros(count, dtype=np.int64)
    running = np.ones(count, dtype=bool)
    for look in range(plan.min_blocks, last + 1):
        m, e, c = mean[:, look - 1], error[:, look - 1], bounds.at(look)
        excluded = running & (m + c * e < useful)
        shown = running & ~excluded & (m - c * e > 0)
        decided[excluded], decided[shown] = -1, 1
        stop = excluded | shown
        if look < last and plan.futility_power:
            s = sd[:, look - 1]
            ahead = last - look
            wanted = bounds.critical_t[-1] * s * math.sqrt(last)
            chance = stats.t.cdf((look * m + ahead * planned - wanted) / (s * math.sqrt(ahead)), look - 1)
            stop |= running & (chance < plan.futility_power)
        at[stop] = look
        running &= ~stop
    rows = np.arange(count)
    critical = np.array([bounds.at(n) for n in range(last + 1)])
    left = np.array([FINAL_SHARE * (bounds.alpha - bounds.spent(n - 1)) if n > 1 else 0.01 for n in range(last + 1)])
    final = np.minimum(critical[at], stats.t.isf(left[at], at - 1))
    return Stops(at, decided, mean[rows, at - 1], error[rows, at - 1], critical[at], final)


def run_stein(primary: FloatArray, plan: LatencyPlan) -> Stops:
    """Stein's two stages on ``(experiments, max_blocks)`` primary gains."""
    first = plan.min_blocks
    sd = primary[:, :first].std(axis=1, ddof=1)
    critical = float(stats.t.isf(plan.alpha, first - 1))
    quantiles = critical + float(stats.t.ppf(plan.power, first - 1))
    total = np.ceil((quantiles * sd / log_gain(plan.planned_gain_percent)) ** 2).astype(np.int64)
    total = np.clip(total, first, plan.max_blocks)
    mean = np.cumsum(primary, axis=1)[np.arange(len(primary)), total - 1] / total
    error = sd / np.sqrt(total)
    shown = mean - critical * error > 0
    excluded = mean + critical * error < log_gain(plan.smallest_useful_gain_percent)
    c = np.full(len(primary), critical)
    return Stops(total, np.where(excluded, -1, shown.astype(np.int64)), mean, error, c, c)


def rate(outcomes: npt.ArrayLike, nominal: float | None = None) -> dict[str, Any]:
    """A rate, its exact 95 % limits, and whether a nominal error rate is kept."""
    events = np.asarray(outcomes, dtype=bool)
    hits, of = int(events.sum()), len(events)
    out = _rate(hits, of)
    if nominal is not None:
        out |= {"nominal": nominal, "met": out["upper_95"] <= MARGIN * nominal}
    return out


def _rate(hits: int, of: int) -> dict[str, Any]:
    low = float(stats.beta.ppf(0.05, hits, of - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.95, hits + 1, of - hits)) if hits < of else 1.0
    return {"events": hits, "of": of, "rate": hits / of, "lower_95": round(low, 5), "upper_95": round(high, 5)}


def coverage(stops: Stops, truth: float, which: str) -> dict[str, Any]:
    """How often an interval holds the true log gain; 93 to 97 % is asked of ``final``, 93 % of ``repeated``."""
    half = (stops.final_critical if which == "final" else stops.critical) * stops.error
    out = rate(np.abs(stops.gain - truth) <= half)
    return out | {"met": bool(0.93 <= out["rate"] <= (0.97 if which == "final" else 1.0))}


def planned(world: Condition) -> plan_latency.LatencyDesign:
    """The planner's answer for the true standard deviation of the primary."""
    sd = true_launch_sd(world)
    return plan_latency.plan_latency(
        sd,
        run_sd_percent=100 * Workload().residual_sd() / math.sqrt(world.scenarios),
        launches_per_block=world.launches,
        position_percent=world.drift + world.position,
    )


def true_launch_sd(world: Condition) -> float:
    """Of the primary, in percent: the unshared part averages over scenarios; outliers widen it."""
    inflate = 1 + 0.1 * 0.9 * 25 if world.tail == "outlier" else 1.0
    return world.launch_sd * math.sqrt(inflate * (world.shared + (1 - world.shared) / world.scenarios))


def primary_of(world: Condition, count: int, blocks: int, gain: float, *names: object) -> FloatArray:
    """``(count, blocks)`` primary log gains."""
    rng = rng_for(world.name, gain, *names)
    return np.asarray(block_gains(rng, count, blocks, world, gain).mean(axis=2))


def judge_world(world: Condition, count: int) -> dict[str, Any]:
    """Error rates, coverage and power of the primary in one condition, at the planner's own number of blocks."""
    design = planned(world)
    if design.plan is None:
        raise ValueError(f"no plan for {world.name}; expected one without a budget")
    plan = design.plan
    nothing = primary_of(world, count, plan.max_blocks, 0.0)
    null = run_sequential(nothing, plan)
    useful = run_sequential(primary_of(world, count, plan.max_blocks, plan.smallest_useful_gain_percent), plan)
    there = run_sequential(primary_of(world, count, plan.max_blocks, plan.planned_gain_percent), plan)
    large = run_sequential(primary_of(world, count, plan.max_blocks, 2.0), plan)
    eight = primary_of(world, count, 8, 0.0, "eight")
    same = np.abs(eight.mean(axis=1)) * math.sqrt(8) / eight.std(axis=1, ddof=1)
    alarm = 2 * stats.t.sf(same, 7) < plan.same_build_alpha
    matters = np.abs(eight.mean(axis=1)) > log_gain(plan.smallest_useful_gain_percent) / 2
    saving = float(large.blocks.mean()) / design.fixed_blocks
    sizes = {
        "max_blocks": plan.max_blocks,
        "fixed_blocks": design.fixed_blocks,
        "block_sd_percent": design.block_sd_percent,
    }
    result: dict[str, Any] = dataclasses.asdict(world) | sizes
    result["false_gain_sequential"] = rate(null.decided == 1, plan.alpha)
    result["false_gain_never_stopping_early"] = rate(_ever_above(nothing, 0.0, plan), plan.alpha)
    result["false_exclusion_sequential"] = rate(useful.decided == -1, plan.alpha)
    result["false_gain_fixed_t"] = rate(t_test(eight), plan.alpha)
    result["false_gain_sign_flip"] = rate(flip_p(eight[:, :, None])[:, 0] <= plan.alpha, plan.alpha)
    result["same_build_alarm"] = rate(alarm, plan.same_build_alpha)
    result["same_build_alarm_that_matters"] = rate(alarm & matters, plan.same_build_alpha)
    for label, stops, gain in (("0", null, 0.0), ("0.74", there, plan.planned_gain_percent), ("2", large, 2.0)):
        for which in ("final", "repeated"):
            result[f"coverage_{which}_at_{label}"] = coverage(stops, log_gain(gain), which)
    fixed = Stops(
        np.full(count, 8),
        np.zeros(count, np.int64),
        eight.mean(axis=1),
        eight.std(axis=1, ddof=1) / math.sqrt(8),
        np.full(count, stats.t.isf(plan.alpha, 7)),
        np.full(count, stats.t.isf(plan.alpha, 7)),
    )
    result["coverage_fixed_8_blocks"] = coverage(fixed, 0.0, "final")
    power = rate(there.decided == 1)
    result["power_at_planned_gain"] = power | {"met": power["rate"] >= plan.power}
    for label, stops in (("0", null), ("0.74", there), ("2", large)):
        result[f"mean_blocks_at_{label}"] = float(stops.blocks.mean())
    result["mean_blocks_at_2_over_fixed"] = {
        "value": saving,
        "asked_for": true_launch_sd(world) >= 0.3 and world.launches == 2,
        "met": saving <= 0.6 or true_launch_sd(world) < 0.3 or world.launches > 2,
    }
    return result


def t_test(gains: FloatArray) -> BoolArray:
    """Student's one-sided test at 0.025 on ``(experiments, blocks)``."""
    blocks = gains.shape[1]
    t = gains.mean(axis=1) * math.sqrt(blocks) / gains.std(axis=1, ddof=1)
    return np.asarray(t >= stats.t.isf(0.025, blocks - 1))


def flip_p(gains: FloatArray) -> FloatArray:
    """``signflip.max_t_p`` over ``(experiments, blocks, scenarios)``."""
    return np.array([signflip.max_t_p(g) for g in gains])


def holm_p(gains: FloatArray) -> FloatArray:
    """Holm's adjusted t-test p over ``(experiments, blocks, scenarios)``."""
    blocks = gains.shape[1]
    p = stats.t.sf(gains.mean(axis=1) * math.sqrt(blocks) / gains.std(axis=1, ddof=1), blocks - 1)
    return np.array([signflip.holm(list(row)) for row in p])


def judge_family(world: Condition, count: int) -> dict[str, Any]:
    """Errors over scenarios: at a fixed size, after a sequential stop with one true gain, and of "no slower"."""
    alpha, scenarios = 0.025, world.scenarios
    out: dict[str, Any] = dataclasses.asdict(world)
    for blocks in (8, 10):
        null = block_gains(rng_for(world.name, "family", blocks), count, blocks, world)
        out[f"family_error_max_t_{blocks}_blocks"] = rate((flip_p(null) <= alpha).any(axis=1), alpha)
        out[f"family_error_holm_{blocks}_blocks"] = rate((holm_p(null) <= alpha).any(axis=1), alpha)
    plan = LatencyPlan(max_blocks=12)
    gains = (2.0 * scenarios / 3, *[0.0] * (scenarios - 1))
    partial = block_gains(rng_for(world.name, "partial"), count, plan.max_blocks, world, gains)
    stops = run_sequential(partial.mean(axis=2), plan)
    wrong = np.zeros(count, dtype=bool)
    for blocks in range(plan.min_blocks, plan.max_blocks + 1):
        here = np.flatnonzero((stops.blocks == blocks) & (stops.decided == 1))
        if len(here):
            seen = partial[here, :blocks]
            p = flip_p(seen) if blocks >= latency_numbers.JOINT_TEST_BLOCKS else holm_p(seen)
            wrong[here] = (p[:, 1:] <= latency_numbers.nominal_level(blocks, plan)).any(axis=1)
    out["family_error_after_sequential_stop"] = rate(wrong, alpha)
    margin = log_gain(-1.0)
    slow = block_gains(rng_for(world.name, "slow"), count, 8, world, (-1.0, *[2.0] * (scenarios - 1)))
    eight = LatencyPlan(max_blocks=8)
    passes = np.stack([_ever_above(slow[:, :, i], margin, eight) for i in range(scenarios)]).all(axis=0)
    out["false_no_slower"] = rate(passes, alpha)
    edge = block_gains(rng_for(world.name, "edge"), count, 8, world, -1.0)
    slower = np.stack([_ever_above(-edge[:, :, i], -margin, eight, 1 / scenarios) for i in range(scenarios)]).any(
        axis=0
    )
    out["false_slower"] = rate(slower, alpha)
    return out


def _ever_above(gains: FloatArray, limit: float, plan: LatencyPlan, share: float = 1.0) -> BoolArray:
    """Whether the repeated interval of ``(experiments, blocks)`` ever lies above ``limit``."""
    bounds = plan.boundaries(share)
    above = np.zeros(len(gains), dtype=bool)
    for k in range(plan.min_blocks, plan.max_blocks + 1):
        seen = gains[:, :k]
        above |= seen.mean(axis=1) - bounds.at(k) * seen.std(axis=1, ddof=1) / math.sqrt(k) > limit
    return above


def judge_planner(world: Condition, count: int, launches: int = 12) -> dict[str, Any]:
    """Power where the launch sd is known only from recorded launches: sequential from 12, Stein from none."""
    rng = rng_for(world.name, "planner", launches)
    residual = Workload().residual_sd() / math.sqrt(world.scenarios)
    sizes = _max_blocks()
    recorded = launch_effects(rng, (count, launches), true_shared(world) / 100, world.tail).std(axis=1, ddof=1) * 100
    upper = recorded * LaunchSd(1.0, launches, "recorded").upper(plan_latency.UPPER_CONFIDENCE)
    spread = np.sqrt(2 * (upper**2 + (100 * residual) ** 2) + (world.drift + world.position) ** 2)
    blocks = sizes[np.clip(np.searchsorted(_SIZES, spread), 0, len(_SIZES) - 1)]
    shown, used = np.zeros(count, dtype=bool), np.zeros(count)
    for most in np.unique(blocks):
        here = np.flatnonzero(blocks == most)
        plan = LatencyPlan(max_blocks=int(most))
        stops = run_sequential(primary_of(world, len(here), int(most), 0.74, "planner", most), plan)
        shown[here], used[here] = stops.decided == 1, stops.blocks
    sequential_power = rate(shown)
    stein = plan_latency.plan_latency(None).plan
    if stein is None:
        raise ValueError("no plan without recorded launches; expected Stein's")
    power = run_stein(primary_of(world, count, stein.max_blocks, 0.74, "stein"), stein)
    null = run_stein(primary_of(world, count, stein.max_blocks, 0.0, "stein"), stein)
    stein_power = rate(power.decided == 1)
    return dataclasses.asdict(world) | {
        "recorded_launches": launches,
        "power_from_recorded": sequential_power | {"met": sequential_power["rate"] >= 0.9},
        "mean_max_blocks_from_recorded": float(blocks.mean()),
        "mean_blocks_from_recorded": float(used.mean()),
        "stein_first_stage": stein.min_blocks,
        "stein_max_blocks": stein.max_blocks,
        "power_stein": stein_power | {"met": stein_power["rate"] >= 0.9},
        "false_gain_stein": rate(null.decided == 1, 0.025),
        "coverage_stein": coverage(power, log_gain(0.74), "final"),
        "mean_blocks_stein": float(power.blocks.mean()),
    }


_SIZES = np.geomspace(0.12, 1.8, 50)


@functools.lru_cache(maxsize=1)
def _max_blocks() -> npt.NDArray[np.int64]:
    """The planner's maximum for each of ``_SIZES``, a block sd in percent."""
    gain, margin = 100 * log_gain(0.74), plan_latency.SIZING_MARGIN
    return np.array([plan_latency.sequential_blocks(LatencyPlan(), gain / sd, margin) for sd in _SIZES])


def true_shared(world: Condition) -> float:
    """Core launch sd of the primary in percent, before the tail widens it."""
    return world.launch_sd * math.sqrt(world.shared + (1 - world.shared) / world.scenarios)


def judge_the_usual_ways(count: int, launch_sd: float, gain: float, later: float) -> dict[str, Any]:
    """The same simulated servers, judged the way they usually are.

    Args:
        count: experiments.
        launch_sd: percent.
        gain: true gain, percent.
        later: percent by which whatever runs second in a pair is slower (drift, heat, a neighbour).
    """
    rng = rng_for("usual", launch_sd, gain, later)
    names = ("welch", "mann_whitney", "two_sd", "asv", "a_first", "fixed_servers", "ours")
    called = {name: np.zeros(count, dtype=bool) for name in names}
    faster = -log_gain(gain)
    world = Condition("usual", launch_sd, scenarios=1, position=later)
    plan = planned(world).plan or LatencyPlan()
    chunk, repeats = 250, 10
    for begin in range(0, count, chunk):
        part = slice(begin, min(count, begin + chunk))
        size = part.stop - part.start
        launch = launch_effects(rng, (size, 2, 1), launch_sd / 100, "normal")
        # Two servers, ten runs each, taken in turn; arm 0 is the baseline and runs first.
        level = launch + np.array([0.0, faster + later / 100])[:, None]
        runs = requests_tpot(rng, np.broadcast_to(level, (size, 2, repeats)))
        one = runs[:, :, 0]
        called["welch"][part] = stats.ttest_ind(one[:, 0], one[:, 1], axis=1, equal_var=False).pvalue < 0.05
        called["mann_whitney"][part] = stats.mannwhitneyu(one[:, 0], one[:, 1], axis=1).pvalue < 0.05
        means = runs.mean(axis=3)
        five = means[:, 0, :5]
        called["two_sd"][part] = np.abs(means[:, 1, 0] - five.mean(axis=1)) > 2 * five.std(axis=1, ddof=1)
        called["asv"][part] = stats.mannwhitneyu(means[:, 0], means[:, 1], axis=1).pvalue < 0.002
        pairs = np.log(means[:, 0] / means[:, 1])[:, :8]
        called["fixed_servers"][part] = _two_sided(pairs)
        ordered = block_gains(rng, size, 8, world, gain, "baseline_first")[:, :, 0]
        called["a_first"][part] = _two_sided(ordered)
        stops = run_sequential(block_gains(rng, size, plan.max_blocks, world, gain)[:, :, 0], plan)
        called["ours"][part] = np.abs(stops.gain) > stops.critical * stops.error
    return {"launch_sd": launch_sd, "gain": gain, "later": later} | {name: rate(hits) for name, hits in called.items()}


def _two_sided(gains: FloatArray) -> BoolArray:
    blocks = gains.shape[1]
    t = np.abs(gains.mean(axis=1)) * math.sqrt(blocks) / gains.std(axis=1, ddof=1)
    return np.asarray(t >= stats.t.isf(0.025, blocks - 1))


def planning_table() -> list[dict[str, Any]]:
    """Blocks for a gain of 0.74 % at 90 % power, fixed and sequential, and what early stopping saves. Exact."""
    rows = []
    for sd in LAUNCH_SDS:
        design = plan_latency.plan_latency(sd)
        spread = design.block_sd_percent / 100
        plan = design.plan or LatencyPlan()
        rows.append(
            {
                "launch_sd": sd,
                "fixed_blocks": design.fixed_blocks,
                "max_blocks": plan.max_blocks,
                "power": design.power,
                "expected_blocks_at_0.74": design.expected_blocks,
                "expected_blocks_at_2": sequential.expected_blocks(plan.boundaries(), log_gain(2.0) / spread),
            }
        )
    return rows


def misses(report: dict[str, Any]) -> list[str]:
    """Every criterion that a condition did not meet."""
    return [
        f"{part}: {row['name']}: {key} = {value.get('rate', value.get('value')):.4f}"
        for part in ("primary", "family", "planner")
        for row in report[part]
        for key, value in row.items()
        if isinstance(value, dict) and value.get("met") is False
    ]


def long_run(count: int) -> dict[str, Any]:
    """Everything, at ``count`` experiments a condition."""
    family = [
        dataclasses.replace(w, scenarios=s, name=f"{w.name}, {s} scenarios")
        for w in WORLDS[4:6] + WORLDS[14:17]
        for s in (3, 10)
    ]
    usual = [(sd, gain, later) for sd in (0.0, 0.3) for gain in (0.0, 0.74) for later in (0.0, 0.2)]
    report: dict[str, Any] = {
        "what": "false alarms, coverage and power of the latency judge on simulated serving runs",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "seed": SEED,
        "experiments": count,
        "residual_sd_percent": 100 * Workload().residual_sd(),
        "planning": planning_table(),
        "primary": [judge_world(w, count) for w in WORLDS],
        "family": [judge_family(w, min(count, 5000)) for w in family],
        "planner": [judge_planner(w, count) for w in WORLDS if w.launches == 2],
        "usual_ways": [judge_the_usual_ways(min(count, 5000), *case) for case in usual],
    }
    return report | {"not_met": misses(report)}


def as_text(report: dict[str, Any]) -> str:
    """JSON with one line a condition, so that two runs can be compared line by line."""
    parts = []
    for key, value in report.items():
        rows = ",\n".join(json.dumps(row) for row in value) if isinstance(value, list) else ""
        parts.append(f"{json.dumps(key)}: " + (f"[\n{rows}\n]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write the long run to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--experiments", type=int, default=20_000)
    options = parser.parse_args()
    report = long_run(options.experiments)
    options.out.write_text(as_text(report), encoding="utf-8")
    print("\n".join(report["not_met"]) or "every criterion is met")


if __name__ == "__main__":
    main()
