"""The arithmetic of gaps: hand-made timelines with known answers, and identities that hold on the real traces."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.traces.gaps import (
    ACCOUNTING,
    GapBounds,
    GapClass,
    align,
    decompose,
    idle_by_cause,
    lane_gaps,
    layer_costs,
    layer_pass,
    mean_cost,
    stalls,
    timeline,
    totals,
    union_gaps,
)
from validation.traces.reader import Events, Kind, Lane, Profiler, Trace, read_trace
from validation.traces.steps import OUTSIDE, How, Steps, find_steps

WriteKernels = Callable[..., pathlib.Path]


def _trace(kernels: list[tuple[str, float, float, int]], source: str = "made") -> Trace:
    """Kernels given as (name, start_us, duration_us, stream)."""
    kernels = sorted(kernels, key=lambda kernel: kernel[1])
    names = sorted({kernel[0] for kernel in kernels})
    streams = sorted({kernel[3] for kernel in kernels})
    none = np.full(len(kernels), -1)
    events = Events(
        kind=np.zeros(len(kernels), np.uint8),
        name=np.array([names.index(kernel[0]) for kernel in kernels], np.int64),
        start_us=np.array([kernel[1] for kernel in kernels], np.float64),
        duration_us=np.array([kernel[2] for kernel in kernels], np.float64),
        lane=np.array([streams.index(kernel[3]) for kernel in kernels], np.int64),
        correlation=none,
        external_id=none,
    )
    empty = events.take(np.zeros(0, np.int64))
    return Trace(
        source=source,
        rank=0,
        world_size=1,
        profiler=Profiler.CUPTI,
        profiler_how="made by a test",
        names=tuple(names),
        lanes=tuple(Lane(0, stream) for stream in streams),
        kernels=events,
        launches=empty,
        annotations=empty,
        event_count=len(kernels),
        text_bytes=0,
        resolution_us=1e-6,
    )


def _layered(trace: Trace, layer: list[int], layers: int) -> Steps:
    return Steps(
        step=np.zeros(len(layer), np.int64),
        layer=np.array(layer, np.int64),
        steps=1,
        layers=layers,
        steps_how=How.ANNOTATIONS,
        steps_sentence="made by a test",
        layers_how=How.PERIODIC_PATTERN,
        layers_sentence="made by a test",
    )


def test_gaps_are_classed_by_length_and_overlaps_apart() -> None:
    starts = [0.0, 10.5, 20.499, 31.499, 43.4, 55.5, 65.0]  # ends 10 later, but the last starts 0.5 early
    trace = _trace([(f"k{i}", start, 10.0, 1) for i, start in enumerate(starts)])
    found = totals(lane_gaps(trace))
    assert {kind.name: (total.count, round(total.total_us, 3)) for kind, total in found.items()} == {
        "NEGATIVE": (2, -0.501),
        "DISPATCH": (1, 0.5),
        "FENCE": (2, 2.901),
        "STALL": (1, 2.1),
    }
    assert found[GapClass.NEGATIVE].extreme_us == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (0.999, GapClass.DISPATCH),
        (1.0, GapClass.FENCE),
        (1.999, GapClass.FENCE),
        (2.0, GapClass.STALL),
        (0, GapClass.DISPATCH),
    ],
)
def test_a_bound_belongs_to_the_class_above_it(gap: float, expected: GapClass) -> None:
    trace = _trace([("a", 0.0, 4.0, 1), ("b", 4.0 + gap, 1.0, 1)])
    assert lane_gaps(trace).gap_class.tolist() == [GapClass.FIRST, expected]


def test_bounds_are_settings() -> None:
    trace = _trace([("a", 0.0, 4.0, 1), ("b", 7.0, 1.0, 1)])
    assert lane_gaps(trace, GapBounds(5, 10)).gap_class[1] == GapClass.DISPATCH
    with pytest.raises(ValueError, match="expected 0 < fence <= stall"):
        GapBounds(2, 1)


def test_a_gap_of_one_lane_that_another_fills_is_no_gap_of_the_device() -> None:
    trace = _trace([("a", 0, 10, 1), ("fill", 8, 10, 2), ("b", 20, 5, 1)])
    assert lane_gaps(trace).gap_us[[0, 2]].tolist() == pytest.approx([math.nan, 10], nan_ok=True)
    assert union_gaps(trace).gap_us.tolist() == pytest.approx([math.nan, -2, 2], nan_ok=True)
    assert union_gaps(trace).before.tolist() == [-1, 0, 1]


def test_a_kernel_inside_a_longer_one_does_not_end_it() -> None:
    trace = _trace([("long", 0, 100, 1), ("short", 10, 5, 2), ("next", 103, 5, 2)])
    gaps = union_gaps(trace)
    assert gaps.gap_us[2] == pytest.approx(3)
    assert gaps.before[2] == 0


def test_devices_do_not_fill_each_others_gaps() -> None:
    trace = _trace([("a", 0, 10, 1), ("other", 0, 30, 2), ("b", 15, 5, 1)])
    trace = dataclasses.replace(trace, lanes=(Lane(0, 1), Lane(1, 1)))
    assert union_gaps(trace).gap_us[2] == pytest.approx(5)


def test_a_difference_below_the_files_resolution_is_no_gap() -> None:
    trace = dataclasses.replace(_trace([("a", 0, 1, 1), ("b", 0.9998, 1, 1)]), resolution_us=0.001)
    assert lane_gaps(trace).gap_class[1] == GapClass.DISPATCH
    assert lane_gaps(trace).gap_us[1] == 0


def _seed_layer(
    stalls_us: list[float], dispatch_us: list[float], start: float = 0.0
) -> list[tuple[str, float, float, int]]:
    """One layer of twelve kernels of 20 us, with the given gaps before the kernels after the first."""
    gaps = [*stalls_us, *dispatch_us]
    gaps += [0.0] * (11 - len(gaps))
    kernels = []
    at = start
    for i, gap in enumerate([0.0, *gaps]):
        at += gap
        kernels.append((f"kernel_{i}", at, 20.0, 1 + i % 2 if stalls_us else 1))
        at += 20.0
    return kernels


def test_a_timeline_built_to_the_seeds_description_is_decomposed_to_its_figures() -> None:
    """+18 us a layer, 16.5 us (91 %) of it in three stalls. The trace is synthetic: this tests the arithmetic only."""
    single = _trace(_seed_layer([], []))
    dual = _trace(_seed_layer([5.0, 5.5, 6.0], [0.5, 0.5, 0.5]))
    one_layer = [0] * 12
    costs = [layer_costs(trace, _layered(trace, one_layer, 1)) for trace in (single, dual)]
    extra = decompose(*costs)
    assert extra["wall_us"] == pytest.approx(18.0)
    assert extra["stall_us"] == pytest.approx(16.5)
    assert extra["dispatch_us"] == pytest.approx(1.5)
    assert extra["busy_us"] == pytest.approx(0)
    assert extra["stalls"] == 3
    assert round(100 * extra["stall_us"] / extra["wall_us"], 1) == 91.7
    found = stalls(dual, _layered(dual, one_layer, 1))
    assert [round(stall.gap_us, 3) for stall in found] == [6.0, 5.5, 5.0]
    assert (found[0].before, found[0].after) == ("kernel_2", "kernel_3")
    assert (found[0].before_lane, found[0].after_lane) == ("0:1", "0:2")


def test_the_seeds_negative_gaps_and_sub_microsecond_gaps_are_counted_apart() -> None:
    """4296 negative gaps, the smallest -6.66 us, and 23.4 us in gaps below 1 us. Synthetic, as above."""
    gaps = [-0.5] * 4295 + [-6.66] + [0.78] * 30
    kernels, at = [], 0.0
    for gap in [0.0, *gaps]:
        kernels.append(("k", at + gap, 20.0, 1))
        at += gap + 20.0
    found = totals(lane_gaps(_trace(kernels)))
    assert found[GapClass.NEGATIVE].count == 4296
    assert found[GapClass.NEGATIVE].extreme_us == pytest.approx(-6.66)
    assert found[GapClass.DISPATCH].total_us == pytest.approx(23.4)
    assert found[GapClass.FENCE].count == found[GapClass.STALL].count == 0


def test_stalls_say_whether_the_host_was_late(kernels_as_trace: WriteKernels) -> None:
    launches = tuple(
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": at, "dur": 1, "pid": 9, "tid": 9,
         "args": {"correlation": i}}
        for i, at in enumerate([0, 1, 32])
    )  # fmt: skip
    trace = read_trace(kernels_as_trace(("a", 10, 5), ("b", 20, 5), ("c", 40, 5), more=launches))
    found = stalls(trace, _layered(trace, [0, 0, 0], 1))
    assert [(stall.gap_us, stall.after, stall.host_wait) for stall in found] == [(15, "c", True), (5, "b", False)]
    assert stalls(_trace([("a", 0, 1, 1), ("b", 9, 1, 1)]), _layered(trace, [0, 0], 1))[0].host_wait is None


def test_a_layers_parts_add_up_to_its_cost_and_hardly_exceed_its_span(
    arms: tuple[pathlib.Path, pathlib.Path],
) -> None:
    for path in arms:
        trace = read_trace(path)
        steps = find_steps(trace)
        costs = layer_costs(trace, steps)
        assert len(costs) == 48
        spans = []
        for cost in costs:
            parts = cost.busy_us + cost.dispatch_us + cost.fence_us + cost.stall_us
            assert cost.wall_us == pytest.approx(parts)
            rows = (steps.step == cost.step) & (steps.layer == cost.layer)
            assert cost.kernel_us == pytest.approx(trace.kernels.duration_us[rows].sum())
            first, last = trace.kernels.start_us[rows].min(), trace.kernels.end_us[rows].max()
            spans.append(last - first)
            assert cost.wall_us < last - first + 3  # the gap before the first kernel
        # kernels of no step cover a little of some layers
        assert 0.98 < sum(cost.wall_us for cost in costs) / sum(spans) <= 1.005


def test_the_real_traces_cost_what_was_measured(arms: tuple[pathlib.Path, pathlib.Path]) -> None:
    means = []
    for path in arms:
        trace = read_trace(path)
        costs = layer_costs(trace, find_steps(trace))
        means.append(costs)
        assert mean_cost(costs)["stalls"] == 0
    extra = decompose(means[1], means[0])
    assert extra["kernels"] == 1
    assert 2.0 < extra["wall_us"] < 4.5  # the concatenation's 2.06 us, its dispatch, and noise
    with pytest.raises(ValueError, match="no layer costs"):
        mean_cost([])


def test_overlaps_of_one_lane_and_of_lanes_are_counted_apart_in_a_real_trace(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    of_lane, of_all = totals(lane_gaps(trace)), totals(union_gaps(trace))
    assert of_lane[GapClass.NEGATIVE].count == 194
    assert of_all[GapClass.NEGATIVE].count == 756
    assert of_lane[GapClass.NEGATIVE].extreme_us > -1.5
    assert "no bubble" in ACCOUNTING[trace.profiler]
    assert set(ACCOUNTING) == set(Profiler)


def test_the_plain_count_of_overlaps_misses_those_with_an_earlier_kernel(
    arms: tuple[pathlib.Path, pathlib.Path],
) -> None:
    """Start minus the previous kernel's end, in order of start over all streams, against the latest end of all."""
    for path, plain, latest in zip(arms, (684, 680), (756, 763), strict=True):
        trace = read_trace(path)
        gaps = trace.kernels.start_us[1:] - trace.kernels.end_us[:-1]
        assert int((gaps <= -trace.resolution_us).sum()) == plain
        assert totals(union_gaps(trace))[GapClass.NEGATIVE].count == latest


def test_the_most_typical_pass_has_the_commonest_kernels_and_the_median_cost(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    steps = find_steps(trace)
    found = layer_pass(trace, steps)
    assert len(found.bars) == 43  # a layer of experts: five of eight
    walls = sorted(cost.wall_us for cost in layer_costs(trace, steps) if cost.kernels == 43)
    assert found.cost.wall_us == walls[(len(walls) - 1) // 2]
    assert found.bars[0].start_us == 0
    assert sum(bar.duration_us for bar in found.bars) == pytest.approx(found.cost.kernel_us)


def test_a_pass_may_be_named_and_must_exist(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    steps = find_steps(trace)
    chosen = layer_pass(trace, steps, step=2, layer=0)
    assert (chosen.cost.step, chosen.cost.layer, len(chosen.bars)) == (2, 0, 33)
    with pytest.raises(ValueError, match="no layer 9 in step 2; it has 8 layers"):
        layer_pass(trace, steps, step=2, layer=9)


def test_passes_of_two_traces_are_aligned_to_one_kernel(arms: tuple[pathlib.Path, pathlib.Path]) -> None:
    passes = [layer_pass(trace, find_steps(trace)) for trace in map(read_trace, arms)]
    aligned = align(passes, "main_kernel")
    for one in aligned:
        assert next(bar for bar in one.bars if bar.name == "main_kernel").start_us == 0
        assert one.bars[0].start_us < 0
    with pytest.raises(ValueError, match="no kernel named 'concat_mla'"):
        align(passes, "concat_mla")


def test_a_bar_carries_what_a_viewer_draws() -> None:
    trace = _trace([("a", 100, 10, 1), ("b", 113, 4, 2), ("c", 118.5, 4, 2)])
    bars = timeline(trace, _layered(trace, [0, 0, OUTSIDE], 1), np.arange(3))
    drawn = [(b.name, b.lane, b.start_us, b.duration_us, b.layer, b.lane_gap_class, b.gap_class) for b in bars]
    assert drawn == [
        ("a", "0:1", 0, 10, 0, GapClass.FIRST, GapClass.FIRST),
        ("b", "0:2", 13, 4, 0, GapClass.FIRST, GapClass.STALL),
        ("c", "0:2", 18.5, 4, OUTSIDE, GapClass.FENCE, GapClass.FENCE),
    ]
    assert (bars[0].gap_us, bars[1].gap_us, bars[1].lane_gap_us) == (None, 3, None)


def test_nested_cpu_operators_are_no_overlap(cpu_path: pathlib.Path) -> None:
    trace = read_trace(cpu_path)
    assert totals(lane_gaps(trace))[GapClass.NEGATIVE].count == 0
    costs = layer_costs(trace, find_steps(trace))
    assert all(cost.busy_us < cost.kernel_us for cost in costs)


def test_idle_time_goes_to_its_cause(kernels_as_trace: WriteKernels) -> None:
    launches = tuple(
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": at, "dur": 1, "pid": 9, "tid": 9,
         "args": {"correlation": i}}
        for i, at in enumerate([0, 1, 32, 33])
    )  # fmt: skip
    trace = read_trace(kernels_as_trace(("a", 10, 5), ("b", 20, 5), ("c", 40, 5), ("d", 100, 5), more=launches))
    (idle,) = idle_by_cause(trace)
    assert (idle.lane, idle.host_wait_us, idle.kernel_wait_us, idle.other_us) == ("0:7", 15, 5, 55)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.just("k"), st.integers(0, 400), st.integers(0, 60), st.integers(1, 3)), min_size=1, max_size=30
    )
)
def test_busy_time_and_gaps_are_those_of_the_union_of_intervals(kernels: list[tuple[Any, ...]]) -> None:
    trace = _trace(kernels)
    ticks = np.zeros(500, bool)
    for _, start, duration, _ in kernels:
        ticks[start : start + duration] = True
    begin, end = min(k[1] for k in kernels), max(k[1] + k[2] for k in kernels)
    cost = layer_costs(trace, _layered(trace, [0] * len(kernels), 1))[0]
    assert cost.busy_us == pytest.approx(ticks.sum())
    assert cost.wall_us == pytest.approx(end - begin)
    gaps = union_gaps(trace).gap_us
    assert gaps[gaps > 0].sum() == pytest.approx((~ticks[begin:end]).sum())


def test_every_kernel_but_the_first_of_its_lane_has_a_gap(cat_path: pathlib.Path) -> None:
    trace = read_trace(cat_path)
    gaps = lane_gaps(trace)
    lanes = len(np.unique(trace.kernels.lane))
    assert int((gaps.gap_class == GapClass.FIRST).sum()) == lanes == int((gaps.before == -1).sum())
    assert (trace.kernels.kind <= Kind.MEMSET).all()
