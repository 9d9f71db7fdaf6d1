"""Kernels counted by name, decode step and layer."""

from __future__ import annotations

import pathlib

import numpy as np

from validation.judging.trace import KernelCount, RankCounts, TraceClaim
from validation.traces.reader import Limits, Trace, TraceError, read_ranks
from validation.traces.steps import OUTSIDE, How, Steps, find_steps

_MAX_CELLS = 50_000_000
"""Counts in one table (ours): a hundred names in six thousand steps of 80 layers."""


def count_kernels(trace: Trace, steps: Steps) -> RankCounts:
    """The launches of every kernel of ``trace``, by step and layer.

    Raises:
        TraceError: there are too many names, steps and layers to be a model's.
    """
    names, cells = trace.kernels.name, steps.steps * steps.layers
    used, row = np.unique(names, return_inverse=True)
    in_layer = steps.layer != OUTSIDE
    in_step = (steps.step != OUTSIDE) & ~in_layer
    if len(used) * cells > _MAX_CELLS:
        raise TraceError(
            f"{trace.source} has {len(used)} kernel names in {cells} layer passes, over {_MAX_CELLS} counts; "
            "record fewer steps"
        )
    table = np.zeros((len(used), cells), np.int64)
    np.add.at(table, (row[in_layer], steps.step[in_layer] * steps.layers + steps.layer[in_layer]), 1)
    edges = np.bincount(row[in_step], minlength=len(used))
    outside = np.bincount(row[~in_layer & ~in_step], minlength=len(used))
    total_us = np.bincount(row, weights=trace.kernels.duration_us, minlength=len(used))
    kernels = []
    for i, name in enumerate(used.tolist()):
        grid = table[i].reshape(steps.steps, steps.layers).tolist() if table[i].any() else []
        kernels.append(
            KernelCount(
                name=trace.names[name],
                cells=tuple(tuple(cell) for cell in grid),
                edges=int(edges[i]),
                outside=int(outside[i]),
                total_us=float(total_us[i]),
            )
        )
    return RankCounts(
        source=trace.source,
        rank=trace.rank,
        world_size=trace.world_size,
        profiler=trace.profiler.value,
        steps=steps.steps,
        layers=steps.layers,
        exact=steps.steps_how in (How.ANNOTATIONS, How.GRAPH_LAUNCHES),
        how=f"{steps.steps_sentence}; {steps.layers_sentence}",
        kernels=tuple(kernels),
    )


def count_ranks(path: pathlib.Path, claim: TraceClaim, limits: Limits = Limits()) -> list[RankCounts]:  # noqa: B008 - frozen
    """Read and count a trace file, or a folder of one file a rank.

    Raises:
        TraceError: as ``reader.read_ranks``.
    """
    traces = read_ranks(path, limits)
    return [count_kernels(t, find_steps(t, layers=claim.layers, ignore=claim.removed)) for t in traces]
