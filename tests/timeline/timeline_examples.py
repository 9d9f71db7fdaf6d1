"""Traces to draw: written ones whose every gap is known, and hostile ones."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from validation.timeline import NamedTrace
from validation.traces.reader import read_trace

DATA = pathlib.Path(__file__).parent.parent / "traces" / "data"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e`|[x](javascript:alert(3))"


def recorded(query_path: str) -> NamedTrace:
    """The H200 trace of ``cat`` or ``skip``."""
    return NamedTrace(query_path, read_trace(DATA / f"sglang0512_h200_{query_path}_decode.json.gz"))


def cpu() -> NamedTrace:
    """A trace without kernels."""
    return NamedTrace("cpu", read_trace(DATA / "torch_cpu_decode.json.gz"))


def written(
    folder: pathlib.Path,
    name: str,
    layer: Sequence[tuple[str, int, float, float]],
    *,
    steps: int = 2,
    layers: int = 3,
    layer_us: float = 40.0,
) -> NamedTrace:
    """A trace whose every layer is ``layer``: kernel, stream, start and duration in microseconds from its beginning."""
    step_us = layers * layer_us + 100.0
    events: list[dict[str, Any]] = []
    for step in range(steps):
        launch = {"ph": "X", "pid": 1, "tid": 1, "ts": step * step_us, "dur": 1.0}
        events.append({**launch, "cat": "user_annotation", "name": "step[DECODE bs=1]", "dur": 5.0})
        events.append({**launch, "cat": "cuda_runtime", "name": "cudaGraphLaunch", "args": {"correlation": step + 1}})
        for number in range(layers):
            for kernel, stream, start, duration in layer:
                event = {"ph": "X", "cat": "kernel", "name": kernel, "pid": 0, "tid": stream, "dur": duration}
                event["ts"] = step * step_us + 10.0 + number * layer_us + start
                events.append({**event, "args": {"correlation": step + 1}})
    path = folder / f"{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    return NamedTrace(name, read_trace(path))


def single_and_dual(folder: pathlib.Path) -> list[NamedTrace]:
    """One stream without a stall; two streams that hide 6 us and stall for 5 us where they join, in every layer."""
    single = [("norm", 7, 0.0, 10.0), ("index", 7, 10.5, 6.0), ("query", 7, 17.0, 10.0), ("attention", 7, 27.5, 12.0)]
    dual = [("norm", 7, 0.0, 10.0), ("index", 9, 11.5, 6.0), ("query", 7, 11.5, 10.0), ("attention", 7, 26.5, 13.0)]
    return [written(folder, "single", single), written(folder, "dual", dual)]


def many(folder: pathlib.Path, kernels: int) -> NamedTrace:
    """``kernels`` kernels of 3 us on four streams."""
    layer = [(f"void ns::kernel_{i}<{i}>(int)", 7 + i % 4, 4.0 * i, 3.0) for i in range(50)]
    return written(folder, "many", layer, steps=10, layers=kernels // 500, layer_us=201.0)
