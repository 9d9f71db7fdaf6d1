"""The recorded dual-stream traces, decomposed once more from the raw JSON; the figures of docs/dual-stream.md."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from validation.discovery import ROOT
from validation.timeline.model import NamedTrace, timeline_of
from validation.traces.gaps import layer_costs, mean_cost, stalls, union_gaps
from validation.traces.reader import Trace, read_trace
from validation.traces.steps import OUTSIDE, find_steps, launch_times

FOLDER = ROOT / "baselines" / "h200" / "dual_stream"
PAGE = " ".join((ROOT / "docs" / "dual-stream.md").read_text("utf-8").split())
FACTS = json.loads((FOLDER / "dual_stream.json").read_text("utf-8"))
FACTS_78 = json.loads((ROOT / "baselines/trace_bench/dual_stream_78_layers.json").read_text("utf-8"))
ARMS = ("single", "dual")
KINDS = ("graph", "eager")
KERNELS = 20
"""In a layer."""


def _path(kind: str, arm: str) -> pathlib.Path:
    return FOLDER / f"dual_stream_{kind}_{arm}.json.gz"


@pytest.fixture(scope="module")
def traces() -> dict[tuple[str, str], Trace]:
    return {(kind, arm): read_trace(_path(kind, arm)) for kind in KINDS for arm in ARMS}


def _marked(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Begin and end of each step on the host."""
    steps = [e for e in events if e.get("cat") == "user_annotation" and "DECODE" in e["name"]]
    return [(e["ts"], e["ts"] + e["dur"]) for e in steps]


def _from_json(path: pathlib.Path) -> dict[str, float]:
    """A mean layer's parts by a sweep over the raw events: busy while any kernel runs, gaps by length."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    calls = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    launched = {e["args"]["correlation"]: e["ts"] for e in calls if "correlation" in e["args"]}
    parts: dict[str, list[float]] = {"busy_us": [], "dispatch_us": [], "fence_us": [], "stall_us": [], "kernel_us": []}
    for begin, end in _marked(events):
        kernels = sorted(
            (e["ts"], e["ts"] + e["dur"])
            for e in events
            if e.get("cat") == "kernel" and begin <= launched[e["args"]["correlation"]] <= end
        )
        reach, sums = kernels[0][0], dict.fromkeys(parts, 0.0)
        for start, stop in kernels:
            gap = max(start - reach, 0.0)
            sums["dispatch_us" if gap < 1 else "fence_us" if gap < 2 else "stall_us"] += gap
            sums["busy_us"] += max(stop - max(start, reach), 0.0)
            sums["kernel_us"] += stop - start
            reach = max(reach, stop)
        for name, value in sums.items():
            parts[name].append(value / (len(kernels) / KERNELS))
    return {name: float(np.mean(values)) for name, values in parts.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", ARMS)
def test_the_decomposition_is_that_of_a_plain_sweep_over_the_json(
    kind: str, arm: str, traces: dict[tuple[str, str], Trace]
) -> None:
    trace = traces[kind, arm]
    mean = mean_cost(layer_costs(trace, find_steps(trace)))
    for name, value in _from_json(_path(kind, arm)).items():
        assert mean[name] == pytest.approx(value, abs=0.002), name


def test_the_table_of_a_layer_is_that_of_the_traces(traces: dict[tuple[str, str], Trace]) -> None:
    means = {key: mean_cost(layer_costs(trace, find_steps(trace))) for key, trace in traces.items()}
    titles = {
        "wall_us": "a layer takes",
        "busy_us": "at least one kernel runs",
        "dispatch_us": "gaps below 1 us: dispatch",
        "fence_us": "gaps of 1 to 2 us: fences",
        "stall_us": "gaps of 2 us and more: stalls",
        "kernel_us": "kernels' durations added up",
    }
    for field, title in titles.items():
        cells = []
        for kind in KINDS:
            single, dual = (means[kind, arm][field] for arm in ARMS)
            cells += [f"{single:.2f}", f"{dual:.2f}", f"{dual - single:+.2f}"]
        assert f"| {title} | {' | '.join(cells)} |" in PAGE
    views = timeline_of([NamedTrace(arm, traces["graph", arm]) for arm in ARMS]).views
    assert f"where the work changes stream cost {views[1].mean['changes_lane_us']:.2f} us a layer" in PAGE
    hidden = {arm: means["graph", arm]["kernel_us"] - means["graph", arm]["busy_us"] for arm in ARMS}
    assert f"hide {hidden['dual'] - hidden['single']:.2f} us of a layer" in PAGE


def _medians(facts: dict[str, Any], kind: str) -> list[float]:
    return [sorted(facts[f"{kind}_step_us"][arm])[1] for arm in ARMS]


def test_the_step_times_without_a_profiler_are_those_recorded() -> None:
    cells = []
    for kind in KINDS:
        single, dual = _medians(FACTS, kind)
        cells += [f"{single:.2f}", f"{dual:.2f}", f"{dual - single:+.2f}"]
        assert FACTS[f"{kind}_outputs_equal"]
        assert "{:.2f} and {:.2f} us".format(*_medians(FACTS_78, kind)) in PAGE
    assert f"| a step without a profiler, in us | {' | '.join(cells)} |" in PAGE


def test_two_sizes_tell_a_layers_gain_from_a_launchs_cost() -> None:
    gains = {facts["layers"]: _medians(facts, "graph")[0] - _medians(facts, "graph")[1] for facts in (FACTS, FACTS_78)}
    per_layer, cost = np.linalg.solve([[8, -1], [78, -1]], [gains[8], gains[78]])
    assert f"8 g - c = {gains[8]:.2f} us and 78 g - c = {gains[78]:.2f} us make" in PAGE
    assert f"make g = {per_layer:.2f} and c = {cost:.1f} us" in PAGE


def test_the_one_stall_of_a_graph_is_behind_its_first_kernel(traces: dict[tuple[str, str], Trace]) -> None:
    assert not stalls(traces["graph", "single"], find_steps(traces["graph", "single"]))
    trace = traces["graph", "dual"]
    steps = find_steps(trace)
    found = stalls(trace, steps)
    assert sorted(stall.step for stall in found) == list(range(6))
    assert all(stall.layer == 0 and not stall.host_wait for stall in found)
    assert {(stall.before_lane, stall.after_lane) for stall in found} == {("0:7", "0:7")}
    assert all("layer_norm" in stall.before and stall.after.startswith("nvjet") for stall in found)
    lengths = [stall.gap_us for stall in found]
    assert f"of {min(lengths):.2f} to {max(lengths):.2f} us, always behind" in PAGE
    for step in range(6):
        rows = np.flatnonzero(steps.step == step)
        assert union_gaps(trace).gap_us[rows[1]] in lengths  # the step's second kernel ends it
        first_fork = np.flatnonzero(trace.kernels.lane[rows] != trace.kernels.lane[rows[0]])[0]
        assert first_fork > 1


def _first_starts(trace: Trace) -> list[float]:
    """When the first kernel of each step starts."""
    step = find_steps(trace).step
    return [float(trace.kernels.start_us[np.flatnonzero(step == i)[0]]) for i in range(6)]


def test_later_layers_and_launches_have_the_gaps_stated(traces: dict[tuple[str, str], Trace]) -> None:
    trace = traces["graph", "dual"]
    steps, gaps = find_steps(trace), union_gaps(trace).gap_us
    behind = [row + 1 for row in range(len(gaps) - 1) if "layer_norm" in trace.names[trace.kernels.name[row]]]
    later = [gaps[row] for row in behind if steps.layer[row] > 0]
    assert len(later) == 42
    assert f"{min(later):.2f} to {max(later):.2f} us apart" in PAGE
    between = {}
    for arm in ARMS:
        t = traces["graph", arm]
        s = find_steps(t).step
        firsts = [np.flatnonzero(s == step)[0] for step in range(1, 6)]
        between[arm] = union_gaps(t).gap_us[firsts]
    for arm, form in (("dual", "after {:.2f} to {:.2f} us"), ("single", "needs {:.2f} to {:.2f} us")):
        assert form.format(between[arm].min(), between[arm].max()) in PAGE
    starts = [_first_starts(traces["graph", arm]) for arm in ARMS]
    gain_us = np.median(np.diff(starts[0])[1:]) - np.median(
        np.diff(starts[1])[1:]
    )  # the first step finds an idle device
    assert f"start to start: {gain_us:.2f} and" in PAGE
    first = [np.flatnonzero(steps.step == step)[0] for step in range(6)]
    ahead_ms = (trace.kernels.start_us - launch_times(trace))[first] / 1000
    assert f"{ahead_ms.min():.2f} to {ahead_ms.max():.2f} ms before its first kernel" in PAGE


def _calls_us(path: pathlib.Path) -> float:
    """Time in the CUDA calls that a second stream needs, a layer."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = ("cudaEventRecordWithFlags", "cudaStreamWaitEvent", "cudaStreamIsCapturing")
    calls = [e for e in events if e["name"] in names and any(a <= e["ts"] <= b for a, b in _marked(events))]
    assert len(calls) == 8 * 48
    return float(sum(e["dur"] for e in calls)) / 48


def test_launched_one_by_one_the_device_waits_for_the_host(traces: dict[tuple[str, str], Trace]) -> None:
    intervals = {}
    for arm in ARMS:
        trace = traces["eager", arm]
        steps = find_steps(trace)
        found = stalls(trace, steps)
        late = sum(stall.gap_us for stall in found if stall.host_wait) / sum(stall.gap_us for stall in found)
        assert round(100 * late) == 97
        inside = steps.step != OUTSIDE
        launched = np.sort(launch_times(trace)[inside]).reshape(6, -1)
        between = np.diff(launched, axis=1)
        place = np.arange(between.shape[1]) % KERNELS
        intervals[arm] = np.array([between[:, place == i].mean() for i in range(KERNELS)])
    assert f"needs {intervals['single'].sum():.0f} us to launch a layer" in PAGE
    assert _calls_us(_path("eager", "dual")) == pytest.approx(4.1, abs=0.05)
    assert "last 4.1 us together" in PAGE
    rows = {
        "at the fork: first GEMM to the indexer's first kernel": [1],
        "at the join: last kernel of the query to the attention's first": [10],
        "the other 18": [i for i in range(KERNELS) if i not in (1, 10)],
    }
    for title, places in rows.items():
        single, dual = (float(intervals[arm][places].sum()) for arm in ARMS)
        assert f"| {title} | {single:.1f} | {dual:.1f} | {dual - single:+.1f} |" in PAGE


def test_a_planted_stall_changes_the_decomposition(traces: dict[tuple[str, str], Trace]) -> None:
    """The sweep's teeth: a kernel shortened by 3 us shows as a stall and not as busy time."""
    trace = traces["graph", "single"]
    steps = find_steps(trace)
    before = mean_cost(layer_costs(trace, steps))
    row = int(np.flatnonzero((steps.step == 2) & (trace.kernels.duration_us > 10))[0])
    trace.kernels.duration_us[row] -= 3.0
    after = mean_cost(layer_costs(trace, steps))
    trace.kernels.duration_us[row] += 3.0
    assert after["stalls"] == pytest.approx(1 / 48)
    assert after["busy_us"] == pytest.approx(before["busy_us"] - 3 / 48)
    assert after["wall_us"] == pytest.approx(before["wall_us"])
