"""What the viewer and the analysis show of some traces: the mean layer, gaps by class, stalls, and one aligned pass."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from validation.traces.gaps import (
    ACCOUNTING,
    ClassTotal,
    GapBounds,
    GapClass,
    LayerPass,
    Stall,
    align,
    lane_gaps,
    layer_costs,
    layer_pass,
    mean_cost,
    stalls,
    totals,
    union_gaps,
)
from validation.traces.reader import Profiler, Trace
from validation.traces.steps import OUTSIDE, Steps, find_steps

_DECORATION = re.compile(r"\(anonymous namespace\)::|^void ")


@dataclasses.dataclass(frozen=True)
class NamedTrace:
    """One trace and what to call it; ``steps`` are found when they are first asked for."""

    name: str
    trace: Trace

    @functools.cached_property
    def steps(self) -> Steps:
        """The decode steps and layers of the trace."""
        return find_steps(self.trace)


@dataclasses.dataclass(frozen=True)
class StallGroup:
    """The stalls between two kernels, wherever in the steps they occur."""

    before: str
    after: str
    changes_lane: bool
    """Whether the work goes on on another stream: a fork or a join."""
    in_layers: bool
    count: int
    total_us: float
    longest: Stall
    host_waits: int
    """How many of them ended with a kernel that was launched only after the stall began."""


@dataclasses.dataclass(frozen=True)
class TraceView:
    """One trace as it is shown."""

    name: str
    trace: Trace
    steps: Steps
    passes: int
    """Layer passes behind ``mean``: layers times steps; 0 where no layers were found."""
    mean: Mapping[str, float]
    """The mean layer by field of ``LayerCost``, and ``changes_lane_us``: the gaps at whose end the work goes on on
    another stream, a part of dispatch, fences and stalls. Empty where no layers were found."""
    across: Mapping[GapClass, ClassTotal]
    """Gaps across all lanes, in the layers where there are some, else in the whole trace."""
    on_lanes: Mapping[GapClass, ClassTotal]
    stalls: tuple[StallGroup, ...]
    shown_pass: LayerPass | None
    pass_start_us: float
    """Where ``shown_pass`` starts in the trace; 0 where there is none."""
    zero_us: float
    """The moment of the trace that is drawn at 0."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Traces on one time scale."""

    bounds: GapBounds
    views: tuple[TraceView, ...]
    alignment: str
    """What stands at 0, in a sentence."""

    @property
    def profilers(self) -> tuple[Profiler, ...]:
        """Who recorded them, each once."""
        return tuple(dict.fromkeys(view.trace.profiler for view in self.views))

    @property
    def caveat(self) -> str:
        """What a gap means to the profilers, and what may therefore be compared."""
        sentences = [f"{profiler.value}: {ACCOUNTING[profiler]}." for profiler in self.profilers]
        if len(self.profilers) > 1:
            stall = f"{self.bounds.stall_us:g} us"
            sentences.append(f"The profilers differ, so compare only the stalls, gaps of {stall} and more.")
        return " ".join(sentences)


def timeline_of(traces: Sequence[NamedTrace], bounds: GapBounds = GapBounds()) -> Timeline:  # noqa: B008 - frozen
    """Everything that is shown of ``traces``, the first of which is what the others are compared with.

    Raises:
        ValueError: no trace was given, or two of one name.
    """
    names = [named.name for named in traces]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"traces named {names} were given; expected at least one, and a name of its own for each")
    views = [_view(named, bounds) for named in traces]
    with_pass = [view for view in views if view.shown_pass is not None]
    if len(with_pass) < len(views):
        missing = next(view for view in views if view.shown_pass is None)
        why = missing.steps.layers_sentence
        sentence = f"Each trace starts at 0: {missing.name} has no layer pass to align ({why})"
        return Timeline(bounds, tuple(views), sentence)
    anchor = _common_anchor([view.steps for view in views])
    if anchor is None:
        sentence = "0 is the start of one layer pass in each: no kernel runs once a layer in all of them"
    else:
        views = [_aligned(view, anchor) for view in views]
        sentence = f"0 is the start of {short_name(anchor)} in one layer pass of each"
    typical = ", ".join(
        f"{view.name} layer {view.shown_pass.cost.layer} of step {view.shown_pass.cost.step}"
        for view in views
        if view.shown_pass is not None
    )
    return Timeline(bounds, tuple(views), f"{sentence}; the most typical was chosen ({typical})")


def short_name(name: str) -> str:
    """A kernel's name without return type, namespaces, template arguments and parameters.

    ``void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>(...)`` is ``CatArrayBatchedCopy``.
    """
    bare = _DECORATION.sub("", name)
    head = re.split(r"[<(]", bare, maxsplit=1)[0]
    return head.rpartition("::")[2].strip() or head.strip() or name


def _view(named: NamedTrace, bounds: GapBounds) -> TraceView:
    trace, steps = named.trace, named.steps
    costs = layer_costs(trace, steps, bounds) if steps.layers else []
    across = union_gaps(trace, bounds)
    inside = (steps.layer != OUTSIDE) if costs else np.ones(len(trace.kernels), bool)
    mean: dict[str, float] = {}
    shown = None
    start = float(trace.kernels.start_us.min()) if len(trace.kernels) else 0.0
    if costs:
        lane = trace.kernels.lane
        inside[np.unique(steps.step, return_index=True)[1]] = False  # the gap before a step is in no layer
        changes = (across.before >= 0) & (lane[across.before] != lane) & (across.gap_us > 0) & inside
        mean = {**mean_cost(costs), "changes_lane_us": float(across.gap_us[changes].sum()) / len(costs)}
        shown = layer_pass(trace, steps, bounds)
        chosen = (steps.step == shown.cost.step) & (steps.layer == shown.cost.layer)
        start = float(trace.kernels.start_us[chosen].min())
    return TraceView(
        name=named.name,
        trace=trace,
        steps=steps,
        passes=len(costs),
        mean=mean,
        across=totals(across, inside),
        on_lanes=totals(lane_gaps(trace, bounds), inside),
        stalls=_stall_groups(trace, steps, bounds),
        shown_pass=shown,
        pass_start_us=start,
        zero_us=start,
    )


def _aligned(view: TraceView, anchor: str) -> TraceView:
    if view.shown_pass is None:
        return view
    (moved,) = align([view.shown_pass], anchor)
    shift = moved.bars[0].start_us - view.shown_pass.bars[0].start_us
    return dataclasses.replace(view, shown_pass=moved, zero_us=view.pass_start_us - shift)


def _common_anchor(steps: Sequence[Steps]) -> str | None:
    """The first kernel of a layer that runs once in each layer of every trace."""
    return next((name for name in steps[0].anchors if all(name in other.anchors for other in steps)), None)


def _stall_groups(trace: Trace, steps: Steps, bounds: GapBounds) -> tuple[StallGroup, ...]:
    """Stalls by the kernels on both sides, the costliest first; those of the whole trace where no steps were found."""
    if not steps.steps:
        steps = dataclasses.replace(steps, step=np.zeros_like(steps.step), steps=1)
    groups: dict[tuple[str, str, bool, bool], list[Stall]] = collections.defaultdict(list)
    for stall in stalls(trace, steps, bounds):
        groups[stall.before, stall.after, stall.before_lane != stall.after_lane, stall.layer != OUTSIDE].append(stall)
    made = [
        StallGroup(
            *key,
            count=len(found),
            total_us=sum(stall.gap_us for stall in found),
            longest=found[0],
            host_waits=sum(bool(stall.host_wait) for stall in found),
        )
        for key, found in groups.items()
    ]
    return tuple(sorted(made, key=lambda group: (not group.in_layers, -group.total_us)))
