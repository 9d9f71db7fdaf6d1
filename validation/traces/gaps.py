"""Where the time between kernels goes: gaps on each lane and across lanes, stalls, and what a layer costs.

A gap belongs to the kernel that ends it: it is that kernel's start minus the latest end of the kernels before it, on
its lane or on all lanes of its device. A negative gap is an overlap, and counted apart: across lanes it is concurrency,
on one lane it is how the profiler accounts for dispatch (``ACCOUNTING``).
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from validation.traces.reader import Events, Floats, Ints, Kind, Mask, Profiler, Trace
from validation.traces.steps import OUTSIDE, Steps, launch_times, rows_of_each

ACCOUNTING: Mapping[Profiler, str] = {
    Profiler.CUPTI: (
        "CUPTI records kernels that overlap, so negative gaps occur, and leaves dispatch between the kernels, so gaps "
        "below 1 us are no bubble: they are what another profiler counts as kernel"
    ),
    Profiler.ROCTRACER: (
        "roctracer counts dispatch as part of a kernel's duration: no negative gaps, few below 1 us, and longer kernels"
    ),
    Profiler.CPU: "operators of a CPU thread nest; only the outermost are compared, and a gap is Python's own time",
    Profiler.UNKNOWN: "the profiler is unknown, and so is whether dispatch counts as kernel or as gap",
}
"""What a gap means to each profiler. Between profilers compare stalls only (pull request 24125's own caveat)."""


class GapClass(enum.IntEnum):
    """By length. ``FIRST`` is the first kernel of a lane, which ends no gap."""

    FIRST = 0
    NEGATIVE = 1
    DISPATCH = 2
    FENCE = 3
    STALL = 4


@dataclasses.dataclass(frozen=True)
class GapBounds:
    """Lower bounds, from the analysis in pull request 24125: below 1 us dispatch, 1 to 2 us a small fence."""

    fence_us: float = 1.0
    stall_us: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.fence_us <= self.stall_us:
            raise ValueError(
                f"bounds of {self.fence_us} and {self.stall_us} us were given; expected 0 < fence <= stall"
            )


@dataclasses.dataclass(frozen=True)
class Gaps:
    """One entry for each row of ``Trace.kernels``."""

    gap_us: Floats
    """NaN where the kernel is the first."""
    gap_class: npt.NDArray[np.uint8]
    before: Ints
    """The kernel whose end begins the gap; -1 for the first."""


@dataclasses.dataclass(frozen=True)
class ClassTotal:
    """All gaps of one class."""

    count: int
    total_us: float
    extreme_us: float
    """The longest; of the negative gaps, the deepest overlap."""


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One layer of one step, over all lanes: ``wall_us`` is the sum of the four below it."""

    step: int
    layer: int
    wall_us: float
    busy_us: float
    """At least one lane runs a kernel."""
    dispatch_us: float
    fence_us: float
    stall_us: float
    stalls: int
    kernels: int
    kernel_us: float
    """Sum of the kernels' durations; above ``busy_us`` by what ran at the same time."""


@dataclasses.dataclass(frozen=True)
class Stall:
    """A gap across all lanes of at least the stall bound."""

    start_us: float
    gap_us: float
    before: str
    after: str
    before_lane: str
    after_lane: str
    step: int
    layer: int
    host_wait: bool | None
    """Whether the next kernel was launched only after the gap began; None where the trace does not say."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """One kernel of a timeline, times from the timeline's zero."""

    name: str
    lane: str
    start_us: float
    duration_us: float
    step: int
    layer: int
    lane_gap_us: float | None
    lane_gap_class: GapClass
    gap_us: float | None
    """Across lanes."""
    gap_class: GapClass


@dataclasses.dataclass(frozen=True)
class LayerPass:
    """One layer of one step, to be drawn beside that of another trace."""

    source: str
    profiler: Profiler
    cost: LayerCost
    bars: tuple[Bar, ...]


@dataclasses.dataclass(frozen=True)
class IdleTime:
    """One lane's time between kernels by cause, overlaps counted negative: HTA's idle-time breakdown."""

    lane: str
    host_wait_us: float
    kernel_wait_us: float
    other_us: float


def lane_gaps(trace: Trace, bounds: GapBounds = GapBounds()) -> Gaps:
    """The gap before each kernel on its own lane."""
    return _gaps(trace, trace.kernels.lane, bounds)


def union_gaps(trace: Trace, bounds: GapBounds = GapBounds()) -> Gaps:
    """The gap before each kernel across all lanes of its device: nothing at all runs in a gap above 0."""
    return _gaps(trace, _device_of(trace), bounds)


def totals(gaps: Gaps, rows: Mask | None = None) -> dict[GapClass, ClassTotal]:
    """Gaps by class, of all kernels or of those in the mask ``rows``."""
    result = {}
    for kind in (GapClass.NEGATIVE, GapClass.DISPATCH, GapClass.FENCE, GapClass.STALL):
        chosen = gaps.gap_us[(gaps.gap_class == kind) & (True if rows is None else rows)]
        extreme = 0.0 if not len(chosen) else chosen.min() if kind is GapClass.NEGATIVE else chosen.max()
        result[kind] = ClassTotal(len(chosen), float(chosen.sum()), float(extreme))
    return result


def layer_costs(trace: Trace, steps: Steps, bounds: GapBounds = GapBounds()) -> list[LayerCost]:
    """What each layer of each step costs. The gap before a step's first kernel is the scheduler's and in no layer.

    Each kernel advances the front of finished work by its gap and by the part of its run that no earlier kernel covers;
    a layer's cost is the sum over its kernels, so layers add up to steps exactly.
    """
    gaps = union_gaps(trace, bounds)
    positive = np.where(gaps.gap_us > 0, gaps.gap_us, 0.0)
    positive[_first_of_each(steps.step)] = 0.0
    covered = np.where(np.isnan(gaps.gap_us), 0.0, np.maximum(-gaps.gap_us, 0.0))
    busy = np.maximum(trace.kernels.duration_us - covered, 0.0) * _outermost(trace.kernels)
    cell = np.where(steps.layer == OUTSIDE, OUTSIDE, steps.step * steps.layers + steps.layer)
    inside, size = cell != OUTSIDE, steps.steps * steps.layers

    def total(values: Floats | Mask) -> Floats:
        return np.bincount(cell[inside], weights=values[inside], minlength=size).astype(np.float64)

    of_class = {kind: gaps.gap_class == kind for kind in GapClass}
    columns = [
        total(busy),
        total(positive * of_class[GapClass.DISPATCH]),
        total(positive * of_class[GapClass.FENCE]),
        total(positive * of_class[GapClass.STALL]),
    ]
    stalls, kernels = total(of_class[GapClass.STALL] & (positive > 0)), total(np.ones(len(cell)))
    kernel_us = total(trace.kernels.duration_us)
    return [
        LayerCost(
            step=i // steps.layers,
            layer=i % steps.layers,
            wall_us=float(sum(column[i] for column in columns)),
            busy_us=float(columns[0][i]),
            dispatch_us=float(columns[1][i]),
            fence_us=float(columns[2][i]),
            stall_us=float(columns[3][i]),
            stalls=int(stalls[i]),
            kernels=int(kernels[i]),
            kernel_us=float(kernel_us[i]),
        )
        for i in range(size)
    ]


def mean_cost(costs: Sequence[LayerCost]) -> dict[str, float]:
    """The mean layer, by field of ``LayerCost``: ``wall_us``, ``busy_us``, ``stall_us`` and so on.

    Raises:
        ValueError: there is no layer.
    """
    if not costs:
        raise ValueError("no layer costs were given; expected those of a trace whose layers were found")
    fields = [field.name for field in dataclasses.fields(LayerCost) if field.name not in ("step", "layer")]
    return {name: sum(getattr(cost, name) for cost in costs) / len(costs) for name in fields}


def decompose(a: Sequence[LayerCost], b: Sequence[LayerCost]) -> dict[str, float]:
    """What a layer of ``b`` costs above one of ``a``, by field; the parts of ``wall_us`` add up to it."""
    of_a, of_b = mean_cost(a), mean_cost(b)
    return {name: of_b[name] - of_a[name] for name in of_a}


def stalls(trace: Trace, steps: Steps, bounds: GapBounds = GapBounds()) -> list[Stall]:
    """Every stall inside a decode step, the longest first."""
    gaps, launched, kernels = union_gaps(trace, bounds), launch_times(trace), trace.kernels
    rows = np.flatnonzero((gaps.gap_class == GapClass.STALL) & (steps.step != OUTSIDE) & ~_first_of_each(steps.step))
    result = []
    for row in rows[np.argsort(-gaps.gap_us[rows], kind="stable")].tolist():
        before = int(gaps.before[row])
        begin = float(kernels.start_us[row] - gaps.gap_us[row])
        result.append(
            Stall(
                start_us=begin,
                gap_us=float(gaps.gap_us[row]),
                before=trace.names[kernels.name[before]],
                after=trace.names[kernels.name[row]],
                before_lane=str(trace.lanes[kernels.lane[before]]),
                after_lane=str(trace.lanes[kernels.lane[row]]),
                step=int(steps.step[row]),
                layer=int(steps.layer[row]),
                host_wait=None if np.isnan(launched[row]) else bool(launched[row] > begin),
            )
        )
    return result


def timeline(trace: Trace, steps: Steps, rows: Ints, bounds: GapBounds = GapBounds()) -> tuple[Bar, ...]:
    """The kernels ``rows`` as bars, time counted from the first of them."""
    of_lane, of_all, kernels = lane_gaps(trace, bounds), union_gaps(trace, bounds), trace.kernels
    zero = float(kernels.start_us[rows].min()) if len(rows) else 0.0
    return tuple(
        Bar(
            name=trace.names[kernels.name[row]],
            lane=str(trace.lanes[kernels.lane[row]]),
            start_us=float(kernels.start_us[row]) - zero,
            duration_us=float(kernels.duration_us[row]),
            step=int(steps.step[row]),
            layer=int(steps.layer[row]),
            lane_gap_us=_number(of_lane.gap_us[row]),
            lane_gap_class=GapClass(int(of_lane.gap_class[row])),
            gap_us=_number(of_all.gap_us[row]),
            gap_class=GapClass(int(of_all.gap_class[row])),
        )
        for row in rows.tolist()
    )


def layer_pass(
    trace: Trace,
    steps: Steps,
    bounds: GapBounds = GapBounds(),
    *,
    step: int | None = None,
    layer: int | None = None,
) -> LayerPass:
    """One layer pass: the given one, else the most typical of those that fit.

    Typical is the median cost among the passes with the commonest set of kernels, so a dense layer among experts, or a
    step with a hiccup, is not drawn.

    Raises:
        ValueError: no such pass.
    """
    costs = [
        cost
        for cost in layer_costs(trace, steps, bounds)
        if cost.kernels and step in (None, cost.step) and layer in (None, cost.layer)
    ]
    if not costs:
        raise ValueError(
            f"{trace.source} has no layer {layer} in step {step}; it has {steps.layers} layers in {steps.steps} steps"
        )
    rows = {cost: np.flatnonzero((steps.step == cost.step) & (steps.layer == cost.layer)) for cost in costs}
    kinds = {cost: tuple(np.sort(trace.kernels.name[rows[cost]]).tolist()) for cost in costs}
    commonest = collections.Counter(kinds.values()).most_common(1)[0][0]
    alike = sorted((cost for cost in costs if kinds[cost] == commonest), key=lambda cost: cost.wall_us)
    chosen = alike[(len(alike) - 1) // 2]
    return LayerPass(trace.source, trace.profiler, chosen, timeline(trace, steps, rows[chosen], bounds))


def align(passes: Sequence[LayerPass], anchor: str) -> list[LayerPass]:
    """The passes shifted so that the first kernel whose name contains ``anchor`` starts at 0 in each.

    Raises:
        ValueError: a pass has no such kernel.
    """
    result = []
    for one in passes:
        zero = next((bar.start_us for bar in one.bars if anchor in bar.name), None)
        if zero is None:
            raise ValueError(f"{one.source} has no kernel named {anchor!r} in its layer pass; choose one that all have")
        bars = tuple(dataclasses.replace(bar, start_us=bar.start_us - zero) for bar in one.bars)
        result.append(dataclasses.replace(one, bars=bars))
    return result


def idle_by_cause(trace: Trace, kernel_wait_us: float = 30.0) -> list[IdleTime]:
    """HTA's idle-time breakdown: a lane waits for the host where the next kernel was launched after the last one ended,
    else for the next kernel where that took less than ``kernel_wait_us`` (HTA 0.5.0's default of 30), else for another
    reason. By cause, where ``GapClass`` goes by length; and as HTA does, overlaps subtract.
    """
    kernels, launched = trace.kernels, launch_times(trace)
    result = []
    for lane, rows in rows_of_each(kernels.lane).items():
        ends = kernels.end_us[rows][:-1]
        gap = kernels.start_us[rows][1:] - ends
        host = launched[rows][1:] > ends
        near = ~host & (gap < kernel_wait_us)
        result.append(
            IdleTime(
                lane=str(trace.lanes[lane]),
                host_wait_us=float(gap[host].sum()),
                kernel_wait_us=float(gap[near].sum()),
                other_us=float(gap[~host & ~near].sum()),
            )
        )
    return result


def _gaps(trace: Trace, group: Ints, bounds: GapBounds) -> Gaps:
    """Gaps among the kernels of one group each."""
    kernels = trace.kernels
    gap = np.full(len(kernels), np.nan)
    before = np.full(len(kernels), -1)
    outer = _outermost(kernels)
    for members in rows_of_each(group).values():
        rows = members[outer[members]]  # in order of start
        end = kernels.end_us[rows]
        reach = np.maximum.accumulate(end)
        last = np.maximum.accumulate(np.where(end >= reach, np.arange(len(rows)), 0))
        gap[rows[1:]] = kernels.start_us[rows[1:]] - reach[:-1]
        before[rows[1:]] = rows[last[:-1]]
    gap[np.abs(gap) < trace.resolution_us] = 0.0
    conditions = [np.isnan(gap), gap < 0, gap < bounds.fence_us, gap < bounds.stall_us]
    classes = np.select(
        conditions, [GapClass.FIRST, GapClass.NEGATIVE, GapClass.DISPATCH, GapClass.FENCE], default=GapClass.STALL
    )
    return Gaps(gap, classes.astype(np.uint8), before)


def _outermost(kernels: Events) -> Mask:
    """CPU operators call each other: those not inside another of their thread. All kernels of a GPU."""
    outer = np.ones(len(kernels), bool)
    if not (kernels.kind == Kind.CPU_OP).any():
        return outer
    for rows in rows_of_each(kernels.lane).values():
        reach = np.maximum.accumulate(kernels.end_us[rows])
        outer[rows[1:]] = kernels.start_us[rows[1:]] >= reach[:-1]
    return outer


def _device_of(trace: Trace) -> Ints:
    numbers: dict[int | str, int] = {}
    return np.array([numbers.setdefault(lane.device, len(numbers)) for lane in trace.lanes], np.int64)[
        trace.kernels.lane
    ]


def _first_of_each(step: Ints) -> Mask:
    """Each step's first kernel."""
    first = np.zeros(len(step), bool)
    first[np.unique(step, return_index=True)[1]] = True
    first[step == OUTSIDE] = False
    return first


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
