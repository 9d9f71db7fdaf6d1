"""Which decode step and layer each kernel belongs to, and how that was found.

Steps come from annotations around the launches, else from graph launches, else from the period of the kernel names.
Layers come from the period of the names inside the steps: names that run once a layer interleave in one fixed order.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
import re

import numpy as np
import numpy.typing as npt

from validation.traces.reader import Events, Ints, Kind, Trace

OUTSIDE = -1
"""Step or layer number of a kernel that belongs to none."""

DECODE_ANNOTATIONS = (r"(?i)decode", r"^ProfilerStep#\d+$")
"""Names of decode steps, tried in order: SGLang's ``step[DECODE bs=16]``, then torch.profiler's schedule."""

_GRAPH_SHARE = 0.5
"""Graph launches are the steps only where they hold at least this share of all kernels (ours: else the graphs are parts
of a step, such as a piecewise graph's)."""
_PERIODIC_SHARE = 0.8
"""Windows are steps only where this share of the kernels has a name with one count in all of them (ours)."""
_REPEATS = 1.5
"""Kernels for each name in a window that may be a step (ours: a layer of the recorded GLM-5 has 1.4)."""
_OPENERS = 32
"""Names tried as the one that opens a step."""
_MAX_NAMES = 512
"""Names looked at for a period; decode steps have fewer than a hundred."""


class How(str, enum.Enum):
    """What steps or layers were found by."""

    ANNOTATIONS = "annotations"
    GPU_ANNOTATIONS = "gpu_annotations"
    """By when a kernel ran, not by who launched it: work of the next step that runs early is counted to this one."""
    GRAPH_LAUNCHES = "graph_launches"
    PERIODIC_PATTERN = "periodic_pattern"
    NOT_FOUND = "not_found"


@dataclasses.dataclass(frozen=True)
class Steps:
    """The step and layer of each row of ``Trace.kernels``, numbered from 0 in order of time; ``OUTSIDE`` for none."""

    step: Ints
    layer: Ints
    steps: int
    layers: int
    steps_how: How
    steps_sentence: str
    layers_how: How
    layers_sentence: str
    anchors: tuple[str, ...] = ()
    """Names that ran once in each layer, in order within it."""


def find_steps(
    trace: Trace,
    *,
    annotations: tuple[str, ...] = DECODE_ANNOTATIONS,
    layers: int | None = None,
    ignore: str | None = None,
) -> Steps:
    """Find the decode steps and layers of ``trace``.

    Args:
        annotations: regular expressions, tried in order against the annotations' names.
        layers: the model's number of layers where it is known; else the best supported period.
        ignore: a regular expression of names that must not mark layers: the kernel a claim is about.
    """
    step, count, how, sentence = _find_steps(trace, annotations)
    layer, n_layers, anchors, layers_sentence = _find_layers(trace, step, count, layers, ignore)
    return Steps(
        step=step,
        layer=layer,
        steps=count,
        layers=n_layers,
        steps_how=how,
        steps_sentence=sentence,
        layers_how=How.PERIODIC_PATTERN if n_layers else How.NOT_FOUND,
        layers_sentence=layers_sentence,
        anchors=anchors,
    )


def _find_steps(trace: Trace, annotations: tuple[str, ...]) -> tuple[Ints, int, How, str]:
    for pattern in annotations:
        for kind, how, place in (
            (Kind.CPU_ANNOTATION, How.ANNOTATIONS, _by_launch),
            (Kind.GPU_ANNOTATION, How.GPU_ANNOTATIONS, _by_span),
        ):
            found = _matching(trace, pattern, kind)
            step, count = _renumber(place(trace, found)) if len(found) else (trace.kernels.name, 0)
            if count:
                name = trace.names[int(found.name[0])]
                side = "their launches lie" if how is How.ANNOTATIONS else "they start"
                return step, count, how, f"{count} steps: {side} inside annotations such as {name!r:.80}"
    step, count, sentence = _by_graph(trace)
    if count:
        return step, count, How.GRAPH_LAUNCHES, sentence
    step, count, sentence = _by_period(trace)
    return step, count, How.PERIODIC_PATTERN if count else How.NOT_FOUND, sentence


def _matching(trace: Trace, pattern: str, kind: Kind) -> Events:
    """The outermost annotations whose name matches, in order of start."""
    wanted = np.array([re.search(pattern, name) is not None for name in trace.names], bool)
    rows = trace.annotations.take((trace.annotations.kind == kind) & wanted[trace.annotations.name])
    rows = rows.take(np.lexsort((-rows.duration_us, rows.start_us)))
    if kind is Kind.GPU_ANNOTATION or len(rows) == 0:
        return rows  # one a stream; merged by _by_span
    return rows.take(_starts_new(rows))


def _by_launch(trace: Trace, found: Events) -> Ints:
    """Each kernel's step: the annotation in which its launch starts."""
    on_cpu = bool((trace.kernels.kind == Kind.CPU_OP).any())
    moment = trace.kernels.start_us if on_cpu else launch_times(trace)
    at = np.searchsorted(found.start_us, moment, side="right") - 1
    inside = (at >= 0) & (moment <= found.end_us[np.maximum(at, 0)])
    return np.where(inside, at, OUTSIDE)


def _by_span(trace: Trace, found: Events) -> Ints:
    """Each kernel's step: the span of the annotation's shadows on the GPU, which are one a stream."""
    group = found.external_id if (found.external_id >= 0).all() else np.cumsum(_starts_new(found))
    _, index = np.unique(group, return_inverse=True)
    starts, ends = np.full(index.max() + 1, np.inf), np.full(index.max() + 1, -np.inf)
    np.minimum.at(starts, index, found.start_us)
    np.maximum.at(ends, index, found.end_us)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    at = np.searchsorted(starts, trace.kernels.start_us, side="right") - 1
    inside = (at >= 0) & (trace.kernels.start_us < ends[np.maximum(at, 0)])
    return np.where(inside, at, OUTSIDE)


def rows_of_each(values: Ints) -> dict[int, Ints]:
    """The rows that hold each value, in order."""
    order = np.argsort(values, kind="stable")
    borders = [0, *(np.flatnonzero(np.diff(values[order])) + 1).tolist(), len(order)]
    return {int(values[order[begin]]): order[begin:end] for begin, end in itertools.pairwise(borders) if end > begin}


def _starts_new(found: Events) -> npt.NDArray[np.bool_]:
    new: npt.NDArray[np.bool_] = np.r_[True, found.start_us[1:] >= np.maximum.accumulate(found.end_us)[:-1]]
    return new


def launch_times(trace: Trace) -> npt.NDArray[np.float64]:
    """When each kernel's launch began, in the trace's microseconds; NaN where the trace does not say."""
    launches = trace.launches.take(trace.launches.correlation >= 0)
    if len(launches) == 0:
        return np.full(len(trace.kernels), np.nan)
    order = np.argsort(launches.correlation, kind="stable")
    known, starts = launches.correlation[order], launches.start_us[order]
    at = np.minimum(np.searchsorted(known, trace.kernels.correlation), len(known) - 1)
    return np.where(known[at] == trace.kernels.correlation, starts[at], np.nan)


def _by_graph(trace: Trace) -> tuple[Ints, int, str]:
    """Each graph launch of the commonest sizeable graph is a step."""
    nothing = np.full(len(trace.kernels), OUTSIDE)
    graphs = [i for i, name in enumerate(trace.names) if "GraphLaunch" in name]
    launched = trace.launches.correlation[np.isin(trace.launches.name, graphs)]
    mask = np.isin(trace.kernels.correlation, launched) & (trace.kernels.correlation >= 0)
    if not mask.any():
        return nothing, 0, "no annotation of a decode step and no graph launch was found"
    ids, inverse, counts = np.unique(trace.kernels.correlation[mask], return_inverse=True, return_counts=True)
    share = counts.sum() / len(trace.kernels)
    largest = counts >= counts.max() / 2  # a smaller graph is part of a step or another stage
    if share < _GRAPH_SHARE:
        return nothing, 0, f"graph launches hold only {share:.0%} of the kernels"
    step = nothing.copy()
    step[mask] = np.where(largest, np.arange(len(ids)), OUTSIDE)[inverse]
    step, count = _renumber_by_time(step, trace)
    return step, count, f"{count} steps: the graph launches, {share:.0%} of all kernels"


def _by_period(trace: Trace) -> tuple[Ints, int, str]:
    """The fewest windows, each from one kernel name to its next occurrence, that hold nearly the same kernels."""
    names = trace.kernels.name
    totals = np.bincount(names, minlength=len(trace.names))
    places = rows_of_each(names)
    for count in sorted({int(c) for c in totals if c >= 2}):
        members = np.flatnonzero(totals == count)[:_MAX_NAMES]
        chain = _interleaved({int(n): places[int(n)] for n in members})
        if len(chain) < 2:
            continue
        candidates: list[tuple[int, float, int, int, Ints]] = []
        for name in chain[:_OPENERS]:
            score = _sameness(names, name, count)
            if score >= _PERIODIC_SHARE:
                step = np.searchsorted(np.flatnonzero(names == name), np.arange(len(names)), side="right") - 1
                anchors = _find_layers(trace, step, count, None, None)[2]
                candidates.append((len(anchors), score, -len(candidates), name, step))
        if candidates:  # a window from the middle of one step to that of the next is as even, and cuts a layer in two
            _, score, _, name, step = max(candidates, key=lambda candidate: candidate[:3])
            sentence = (
                f"{count} steps: they open with {trace.names[name]!r:.80}, {len(chain) - 1} more names recur with its "
                f"period, and {score:.0%} of the kernels are the same in each"
            )
            return step, count, sentence
    unknown = "neither annotations nor graph launches nor a period of the kernel names mark the decode steps"
    return np.full(len(names), OUTSIDE), 0, unknown


def _sameness(names: Ints, opener: int, count: int) -> float:
    """The share of kernels that all windows between two ``opener`` have in common; 0 where no name repeats within one.

    A step repeats its kernels, for it has layers; a window that repeats none is a layer or less.
    """
    window = np.searchsorted(np.flatnonzero(names == opener), np.arange(len(names)), side="right") - 1
    whole = (window >= 0) & (window < count - 1)
    table = np.zeros((count - 1, int(names.max()) + 1), np.int64)
    np.add.at(table, (window[whole], names[whole]), 1)
    typical = np.median(table, axis=0)
    if typical.sum() < _REPEATS * np.count_nonzero(typical):
        return 0.0
    return float(np.minimum(table, typical).sum() / np.maximum(table, typical).sum())


def _renumber(step: Ints) -> tuple[Ints, int]:
    """Steps without a kernel dropped."""
    used = np.unique(step[step != OUTSIDE])
    return np.where(step == OUTSIDE, OUTSIDE, np.searchsorted(used, step)), len(used)


def _renumber_by_time(step: Ints, trace: Trace) -> tuple[Ints, int]:
    ids, first = np.unique(step[step != OUTSIDE], return_index=True)
    order = ids[np.argsort(np.flatnonzero(step != OUTSIDE)[first])]
    place = {int(old): new for new, old in enumerate(order)}
    return np.array([place.get(int(s), OUTSIDE) for s in step], np.int64), len(ids)


def _find_layers(
    trace: Trace, step: Ints, steps: int, wanted: int | None, ignore: str | None
) -> tuple[Ints, int, tuple[str, ...], str]:
    layer = np.full(len(step), OUTSIDE)
    if not steps:
        return layer, 0, (), "layers were not looked for: there are no steps"
    names = trace.kernels.name
    table = np.zeros((steps, len(trace.names)), np.int64)
    np.add.at(table, (step[step != OUTSIDE], names[step != OUTSIDE]), 1)
    steady = (table == table[0]).all(axis=0) & (table[0] >= 2)
    if ignore is not None:
        steady &= np.array([re.search(ignore, name) is None for name in trace.names], bool)
    rows = [np.flatnonzero(step == s) for s in range(steps)]
    places = [rows_of_each(names[row]) for row in rows]
    chains: dict[int, list[int]] = {}
    for count in {int(c) for c in table[0][steady]} if wanted is None else {wanted}:
        members = np.flatnonzero(steady & (table[0] == count))[:_MAX_NAMES]
        chains[count] = _interleaved_in_all(places, [int(n) for n in members])
    layers = _best_period(chains, 2 if wanted is None else 1)
    if not layers:
        looked = f" for {wanted} layers" if wanted else ""
        return layer, 0, (), f"no kernel names interleave once a layer in every step{looked}"
    for row in rows:
        layer[row] = _cut_layers(names[row], chains[layers][0])
    anchors = tuple(trace.names[n] for n in chains[layers])
    sentence = f"{layers} layers: {len(anchors)} kernel names run once in each, in one order, in every step"
    return layer, layers, anchors, sentence


def _best_period(chains: dict[int, list[int]], least: int) -> int:
    """The period with the most names; a longer one, below twice it, where some layers lack those (dense ones).

    The longer one needs half as many names: two that happen to alternate are no layer.
    """
    supported = {count: len(chain) for count, chain in chains.items() if len(chain) >= least}
    if not supported:
        return 0
    best = max(supported, key=lambda count: (supported[count], count))
    return max(c for c in supported if best <= c < 2 * best and 2 * supported[c] >= supported[best])


def _interleaved_in_all(places: list[dict[int, Ints]], members: list[int]) -> list[int]:
    """The largest set of ``members`` that interleave in every step, in their order in the first.

    ``places`` maps, for each step, the names to their positions in it.
    """
    common: set[int] | None = None
    first: list[int] = []
    for of_step in places:
        chain = _interleaved({name: of_step[name] for name in members})
        first = first or chain
        common = set(chain) if common is None else common & set(chain)
    return [name for name in first if common and name in common]


def _interleaved(places: dict[int, Ints]) -> list[int]:
    """The names whose occurrences alternate with those of the name that most others alternate with, in order.

    ``places`` maps each name to its positions, all of one length.
    """
    names = list(places)
    if not names:
        return []
    table = np.array([places[name] for name in names])
    best: list[int] = []
    for row in table:
        before = (table < row).all(axis=1) & (table[:, 1:] > row[:-1]).all(axis=1)
        after = (table > row).all(axis=1) & (table[:, :-1] < row[1:]).all(axis=1)
        peers = np.flatnonzero(before | after | (table == row).all(axis=1))
        if len(peers) > len(best):
            best = list(peers)
    return [names[i] for i in sorted(best, key=lambda i: int(table[i, 0]))]


def _cut_layers(names: Ints, anchor: int) -> Ints:
    """Layer of each kernel of one step: from the shared beginning of the layers to that of the next."""
    starts = np.flatnonzero(names == anchor)
    shortest = int(np.diff(starts).min(initial=len(names)))
    lead = 0  # kernels before the anchor that all layers share
    while starts[0] > lead and lead + 1 < shortest and len(np.unique(names[starts - lead - 1])) == 1:
        lead += 1
    starts = starts - lead
    layer = np.searchsorted(starts, np.arange(len(names)), side="right") - 1
    layer[_end_of_last(names, starts) :] = OUTSIDE
    return np.where(layer < 0, OUTSIDE, layer)


def _end_of_last(names: Ints, starts: Ints) -> int:
    """Where the last layer ends: where an earlier layer has the same kernels, after as many; else with the step."""
    last = int(starts[-1])
    for begin, end in zip(starts[-2::-1], starts[:0:-1], strict=True):
        size = int(end - begin)
        if collections.Counter(names[begin:end].tolist()) == collections.Counter(names[last : last + size].tolist()):
            return last + size
    return len(names)
