"""Our numbers against those of HTA 0.5.0, recorded once: equal where the definitions are (docs/traces.md)."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from validation.discovery import ROOT
from validation.judging.trace import difference
from validation.traces.counts import count_kernels
from validation.traces.gaps import idle_by_cause, totals, union_gaps
from validation.traces.reader import Trace, read_trace
from validation.traces.steps import find_steps

Answers = dict[str, Any]
RECORDED = json.loads((pathlib.Path(__file__).parent / "data" / "hta_0.5.0_answers.json").read_text("utf-8"))
RESULTS = [json.loads(line) for line in (ROOT / "baselines/trace_bench/results.jsonl").read_text("utf-8").splitlines()]
LARGE = [json.loads(line) for line in (ROOT / "baselines/trace_bench/large.jsonl").read_text("utf-8").splitlines()]
PAGE = (ROOT / "docs" / "traces.md").read_text("utf-8")
CAUSES = ("host_wait", "kernel_wait", "other")


@pytest.fixture(params=sorted(RECORDED["pairs"]))
def pair(request: pytest.FixtureRequest) -> tuple[Answers, Trace, Trace]:
    """HTA's answers about two traces, and the traces."""
    recorded = RECORDED["pairs"][request.param]
    a, b = (read_trace(ROOT / path) for path in recorded["files"])
    return recorded, a, b


def _counts(trace: Trace) -> dict[str, int]:
    return {kernel.name: kernel.total for kernel in count_kernels(trace, find_steps(trace)).kernels}


def _idle(trace: Trace) -> dict[str, list[float]]:
    idle = idle_by_cause(trace)
    return {one.lane.partition(":")[2]: [getattr(one, f"{cause}_us") for cause in CAUSES] for one in idle}


def _device_idle_us(trace: Trace) -> float:
    return sum(total.total_us for total in totals(union_gaps(trace)).values() if total.extreme_us > 0)


def test_every_kernel_count_is_htas(pair: tuple[Answers, Trace, Trace]) -> None:
    recorded, a, _ = pair
    assert _counts(a) == recorded["hta"]["counts"]


def test_the_difference_of_two_traces_is_htas(pair: tuple[Answers, Trace, Trace]) -> None:
    recorded, *traces = pair
    changes = difference(*(count_kernels(trace, find_steps(trace)) for trace in traces))
    assert {change.name: change.b - change.a for change in changes if change.a != change.b} == recorded["hta"][
        "difference"
    ]


def test_every_streams_idle_time_goes_to_htas_causes(pair: tuple[Answers, Trace, Trace]) -> None:
    recorded, a, _ = pair
    mine, hta = _idle(a), recorded["hta"]["idle"]
    assert mine.keys() == hta.keys()
    for stream, causes in hta.items():
        assert mine[stream] == pytest.approx(causes, abs=0.01)  # HTA's own rounding


def test_the_devices_idle_time_is_htas(pair: tuple[Answers, Trace, Trace]) -> None:
    recorded, a, _ = pair
    assert _device_idle_us(a) == pytest.approx(recorded["hta"]["union_idle_us"], abs=0.01)


def test_a_lost_kernel_is_seen_in_every_number(pair: tuple[Answers, Trace, Trace]) -> None:
    """The planted defect: without one kernel nothing above agrees any more."""
    recorded, a, _ = pair
    rows = np.ones(len(a.kernels), bool)
    rows[np.argmax(a.kernels.duration_us)] = False
    short = dataclasses.replace(a, kernels=a.kernels.take(rows))
    assert _counts(short) != recorded["hta"]["counts"]
    assert abs(_device_idle_us(short) - recorded["hta"]["union_idle_us"]) > 0.5
    mine = _idle(short)
    assert any(mine.get(name) != pytest.approx(causes, abs=0.01) for name, causes in recorded["hta"]["idle"].items())


def test_htas_rounding_and_not_its_definition_makes_its_default_numbers_differ(
    load: Callable[[pathlib.Path], Answers],
) -> None:
    """HTA moves each start up and each end down to a whole microsecond, so every gap grows by about one."""
    recorded = RECORDED["pairs"]["graph"]
    path = ROOT / recorded["files"][0]
    kernels = sorted((e["ts"], e["dur"]) for e in load(path)["traceEvents"] if e.get("cat") == "kernel")
    starts, ends = [math.ceil(ts) for ts, _ in kernels], [math.floor(ts + dur) for ts, dur in kernels]
    rounded = recorded["hta_documented"]["rounded"]["temporal_breakdown"]["idle_time(us)"]
    assert sum(starts[1:]) - sum(ends[:-1]) == rounded  # one stream, no overlap
    assert rounded > 2 * _device_idle_us(read_trace(path))


def test_htas_calls_stop_where_the_page_says() -> None:
    sglang = RECORDED["pairs"]["sglang"]["hta_documented"]
    assert sglang["rounded"]["temporal_breakdown"] == "AssertionError"
    for recorded in RECORDED["pairs"].values():
        assert recorded["hta_documented"]["nanoseconds"]["temporal_breakdown"]["idle_time(us)"] == pytest.approx(
            recorded["hta"]["union_idle_us"]
        )
        for way in recorded["hta_documented"].values():
            assert "doesn't have any iteration" in way["compare_traces"]


def _ratio(result: Answers, one: str, other: str, key: str) -> float:
    return float(result["tools"][one][key] / result["tools"][other][key])


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result['traces'][0]}-{result['events']}")
def test_the_pages_ratios_are_those_recorded(result: Answers) -> None:
    columns = [
        *(f"{_ratio(result, tool, 'ours', 'processor_s'):.1f}" for tool in ("hta", "hta_lean")),
        *(f"{_ratio(result, tool, 'ours', 'bytes'):.1f}" for tool in ("hta", "hta_lean")),
        *(f"{_ratio(result, tool, 'ours', 'peak'):.1f}" for tool in ("hta", "hta_lean")),
        f"{_ratio(result, 'read', 'loads', 'processor_s'):.2f}",
    ]
    assert f"| {result['events']} | {' | '.join(columns)} |" in PAGE
    assert result["differences"] == {"hta": [], "hta_lean": []}


def test_the_pages_gigabyte_is_the_one_recorded() -> None:
    for case in LARGE:
        assert f"| {case['case']} | {case['processor_s']:.1f} | {case['peak'] / 1e6:.0f} |" in PAGE
        assert case["peak"] < 2e9
        assert ("error" in case) == (case["breaks_at"] is not None)
        assert "byte" in case.get("error", "byte")
