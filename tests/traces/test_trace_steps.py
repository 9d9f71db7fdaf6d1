"""Steps and layers: found four ways in one real trace, and not invented where there are none."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from validation.traces.counts import count_kernels
from validation.traces.gaps import layer_costs
from validation.traces.reader import Kind, Trace, read_trace
from validation.traces.steps import OUTSIDE, How, find_steps

LAYER_SIZES_CAT = [33, 33, 33, 43, 43, 43, 43, 43]
"""Three dense layers and five of experts, as the model is built (counted by hand from the kernel list of one step)."""


def _without(trace: Trace, *kinds: Kind, launches: bool = True) -> Trace:
    keep = ~np.isin(trace.annotations.kind, kinds)
    none = np.zeros(0, np.int64)
    return dataclasses.replace(
        trace,
        annotations=trace.annotations.take(keep),
        launches=trace.launches if launches else trace.launches.take(none),
    )


def test_annotations_mark_the_steps_of_a_real_trace(arms: tuple[pathlib.Path, pathlib.Path]) -> None:
    for path, sizes in zip(arms, (LAYER_SIZES_CAT, [n - 1 for n in LAYER_SIZES_CAT]), strict=True):
        trace = read_trace(path)
        steps = find_steps(trace, ignore="concat_mla")
        assert (steps.steps, steps.layers, steps.steps_how, steps.layers_how) == (
            6, 8, How.ANNOTATIONS, How.PERIODIC_PATTERN,
        )  # fmt: skip
        assert "step[DECODE bs=16]" in steps.steps_sentence
        for step in range(6):
            found = [int(((steps.step == step) & (steps.layer == layer)).sum()) for layer in range(8)]
            assert found == sizes
        assert len(steps.anchors) == 13
        assert int((steps.step == OUTSIDE).sum()) == 252


def test_graph_launches_mark_the_steps_where_annotations_are_missing(cat_path: pathlib.Path) -> None:
    trace = _without(read_trace(cat_path), Kind.CPU_ANNOTATION, Kind.GPU_ANNOTATION)
    steps = find_steps(trace)
    assert (steps.steps, steps.layers, steps.steps_how) == (6, 8, How.GRAPH_LAUNCHES)
    sizes = [int(((steps.step == 5) & (steps.layer == layer)).sum()) for layer in range(8)]
    assert sizes == LAYER_SIZES_CAT


def test_the_shadows_of_annotations_mark_the_steps_where_launches_are_missing(cat_path: pathlib.Path) -> None:
    steps = find_steps(_without(read_trace(cat_path), launches=False))
    assert (steps.steps, steps.layers, steps.steps_how) == (6, 8, How.GPU_ANNOTATIONS)


def test_the_period_of_the_names_marks_the_steps_where_all_else_is_missing(cat_path: pathlib.Path) -> None:
    trace = _without(read_trace(cat_path), Kind.CPU_ANNOTATION, Kind.GPU_ANNOTATION, launches=False)
    steps = find_steps(trace)
    assert (steps.steps, steps.layers, steps.steps_how) == (6, 8, How.PERIODIC_PATTERN)


def test_a_cpu_trace_has_steps_and_layers(cpu_path: pathlib.Path) -> None:
    steps = find_steps(read_trace(cpu_path), ignore="aten::cat")
    assert (steps.steps, steps.layers) == (3, 4)


def _model(steps: int, layers: int, dense: int) -> list[tuple[str, float, float]]:
    """Kernels of a decoder: ``dense`` layers, then experts; a symmetric norm and GEMM twice in each layer."""
    kernels: list[str] = []
    for _ in range(steps):
        kernels.append("embedding")
        for layer in range(layers):
            kernels += ["norm", "gemm_qkv", "rope_cat", "concat", "attention", "gemm_out", "norm"]
            kernels += ["gate_up", "down"] if layer < dense else ["route", "sort", "experts", "combine", "shared"]
        kernels += ["final_norm", "lm_head", "argmax"]
    return [(name, 10.0 * i, 9.0) for i, name in enumerate(kernels)]


@pytest.mark.parametrize(
    ("steps", "layers", "dense"), [(5, 78, 3), (3, 2, 0), (2, 61, 3), (7, 32, 32)], ids=["glm5", "two", "v3", "dense"]
)
def test_a_synthetic_decoder_has_the_steps_and_layers_it_was_built_with(
    steps: int, layers: int, dense: int, kernels_as_trace: Callable[..., pathlib.Path]
) -> None:
    trace = read_trace(kernels_as_trace(*_model(steps, layers, dense)))
    found = find_steps(trace, ignore="concat")
    assert (found.steps, found.layers, found.steps_how) == (steps, layers, How.PERIODIC_PATTERN)
    assert "concat" not in found.anchors


def test_a_known_number_of_layers_is_looked_for(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    assert find_steps(trace, layers=8).layers == 8
    other = find_steps(trace, layers=7)
    assert (other.layers, other.layers_how) == (0, How.NOT_FOUND)
    assert "7 layers" in other.layers_sentence


def test_a_prefill_annotation_is_no_decode_step(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    names = tuple(name.replace("DECODE", "EXTEND") for name in trace.names)
    steps = find_steps(dataclasses.replace(trace, names=names))
    assert steps.steps_how is How.GRAPH_LAUNCHES


def test_kernels_without_a_period_have_no_steps(kernels_as_trace: Callable[..., pathlib.Path]) -> None:
    names = [f"k{i * i % 97}" for i in range(60)]
    steps = find_steps(read_trace(kernels_as_trace(*[(name, 10.0 * i, 9.0) for i, name in enumerate(names)])))
    assert (steps.steps, steps.layers, steps.steps_how) == (0, 0, How.NOT_FOUND)
    assert (steps.step == OUTSIDE).all()
    assert "neither annotations" in steps.steps_sentence


@pytest.mark.parametrize("cat", ["user_annotation", "gpu_user_annotation"])
def test_a_trace_without_kernels_has_no_steps(cat: str, kernels_as_trace: Callable[..., pathlib.Path]) -> None:
    step = {"ph": "X", "cat": cat, "name": "step[DECODE]", "ts": 1, "dur": 5, "pid": 0, "tid": 1}
    trace = read_trace(kernels_as_trace(more=(step,)))
    steps = find_steps(trace)
    assert (steps.steps, steps.layers) == (0, 0)
    assert layer_costs(trace, steps) == []
    assert count_kernels(trace, steps).kernels == ()
