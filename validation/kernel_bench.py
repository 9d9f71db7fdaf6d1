"""What the concatenation costs: graph-replayed medians of the fused kernel, of the concatenation and of the skip.

Timing is no evidence for a verdict. It says what a step can save at most, and whether the concatenation is bound by its
bytes or by its launch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from validation.kernel_cell import DTYPES, Cell, default_setting
from validation.operations import Q_CAT_DIM, FusedInputs, Producer, concatenated_query, viewed_query

LAYERS = 78
"""GLM-5's layers (its published config.json): each concatenates once a decode step."""
TOKENS = (1, 4, 16, 64)
HEADS = (8, 16, 64)
SETS = 16
"""Sets of inputs used in turn, so that no call finds its own last query; small ones stay in L2, as in serving."""
ROUNDS = 8
"""Calls of each set in a graph: 128 in all, so that launching the graph is a small part of each."""
REPLAYS = 25
COPY_BYTES = 1 << 30
"""Far more than any L2 cache holds."""


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One size, all times in microseconds a call."""

    dtype: str
    tokens: int
    heads: int
    fused_us: float
    cat_us: float
    """The concatenation alone."""
    fused_cat_us: float
    fused_skip_us: float
    """The fused kernel and the view: what is left of the step."""
    bytes_us: float
    """Reading and writing the query once, at the device's measured copy bandwidth."""

    @property
    def saving_per_step_us(self) -> float:
        """The most a decode step can save: layers times the concatenation."""
        return LAYERS * self.cat_us

    @property
    def measured_saving_per_step_us(self) -> float:
        """The same from both ways run behind the fused kernel, where launches may overlap with it."""
        return LAYERS * (self.fused_cat_us - self.fused_skip_us)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON data, both savings included."""
        savings = {
            "saving_per_step_us": self.saving_per_step_us,
            "measured_saving_per_step_us": self.measured_saving_per_step_us,
        }
        return dataclasses.asdict(self) | savings


NEEDS_GPU = "kernel_bench times CUDA or HIP graphs and needs a GPU; this machine has none"


def require_gpu() -> None:
    """Raises ``RuntimeError`` where there is no GPU to time."""
    if not torch.cuda.is_available():
        raise RuntimeError(NEEDS_GPU)


def bench(producer: Producer, dtype: str, bandwidth_gb_s: float) -> list[BenchRow]:
    """Every size of ``TOKENS`` x ``HEADS``.

    Args:
        producer: the fused kernel.
        dtype: of the query, a name of ``validation.kernel_cell.DTYPES``.
        bandwidth_gb_s: from ``copy_bandwidth_gb_s``.

    Raises:
        RuntimeError: there is no GPU.
    """
    require_gpu()
    return [_row(producer, dtype, tokens, heads, bandwidth_gb_s) for tokens, heads in itertools.product(TOKENS, HEADS)]


def _row(producer: Producer, dtype: str, tokens: int, heads: int, bandwidth_gb_s: float) -> BenchRow:
    sets = _rotated(default_setting(Cell("bench", "", "", tokens, heads, dtype, dtype), torch.device("cuda")).inputs)
    queries = [producer.fused_qk_rope_cat_and_cache_mla(inputs).q_cat for inputs in sets]

    def fused(inputs: FusedInputs) -> torch.Tensor:
        return producer.fused_qk_rope_cat_and_cache_mla(inputs).q_cat

    def median(calls: list[Callable[[], object]]) -> float:
        return graph_median_us(calls * ROUNDS)

    moved = 2 * tokens * heads * Q_CAT_DIM * DTYPES[dtype].itemsize
    return BenchRow(
        dtype,
        tokens,
        heads,
        fused_us=median([functools.partial(fused, inputs) for inputs in sets]),
        cat_us=median([functools.partial(concatenated_query, q_cat) for q_cat in queries]),
        fused_cat_us=median([functools.partial(lambda i: concatenated_query(fused(i)), inputs) for inputs in sets]),
        fused_skip_us=median([functools.partial(lambda i: viewed_query(fused(i)), inputs) for inputs in sets]),
        bytes_us=moved / bandwidth_gb_s / 1e3,
    )


def _rotated(inputs: FusedInputs) -> list[FusedInputs]:
    names = ("q_nope", "q_pe", "k_nope", "k_pe")
    sets = []
    for turn in range(SETS):
        changed: dict[str, Any] = {name: getattr(inputs, name).roll(turn, -1).contiguous() for name in names}
        sets.append(dataclasses.replace(inputs, kv_cache=inputs.kv_cache.clone(), **changed))
    return sets


def copy_bandwidth_gb_s() -> float:
    """Gigabytes (1e9) a second, read and written, of copying ``COPY_BYTES`` within the device; a median."""
    require_gpu()
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    us = graph_median_us([lambda: target.copy_(source)])
    return 2 * COPY_BYTES / us / 1e3


def graph_median_us(calls: Sequence[Callable[[], object]]) -> float:
    """Median microseconds a call, over ``REPLAYS`` replays of one CUDA or HIP graph that holds all ``calls``.

    Raises:
        RuntimeError: there is no GPU.
    """
    require_gpu()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()  # compiled and loaded before it is captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times_us: list[float] = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_us.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times_us)


def table(rows: Sequence[BenchRow]) -> str:
    """The rows as a short text table."""
    head = "dtype          M    H   fused     cat   fused+cat  fused+skip   bytes  saving/step (us)"
    return "\n".join(
        [
            head,
            *(
                f"{row.dtype:<12}{row.tokens:>4}{row.heads:>5}{row.fused_us:>8.2f}{row.cat_us:>8.2f}"
                f"{row.fused_cat_us:>12.2f}{row.fused_skip_us:>12.2f}{row.bytes_us:>8.2f}"
                f"{row.saving_per_step_us:>9.1f} ({row.measured_saving_per_step_us:.1f} behind the fused kernel)"
                for row in rows
            ),
        ]
    )
