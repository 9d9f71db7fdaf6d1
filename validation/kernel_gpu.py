"""What only a GPU can show of a path: its launches under torch's profiler, and its replay from a CUDA or HIP graph."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping

import torch

CALLS = 3
"""Calls of each path in a profile: more than one, so that "once per call" is not "once"."""
MARKER = "spin_kernel"
"""torch's own spinning kernel, launched around each path: it tells them apart and shows that the profiler lives."""


@dataclasses.dataclass(frozen=True)
class LaunchCount:
    """How often a path was called, and what that launched."""

    calls: int
    removed: int
    launches: int
    """Every launch, the removed operation's included; copies and fills by the driver count."""


def count_launches(paths: Mapping[str, Callable[[], object]], removed_kernel: str) -> dict[str, LaunchCount]:
    """What each of ``paths`` launches in ``CALLS`` calls, in one session of torch's profiler.

    Args:
        paths: name and call, already run once, so that nothing is compiled or loaded here.
        removed_kernel: a regular expression for the kernels that count as ``removed``.

    Raises:
        RuntimeError: the profiler lost the markers between the paths, so its silence would mean nothing.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # some releases warn that a second cycle would clear the events; there is one
        warnings.simplefilter("ignore", UserWarning)
        profile = torch.profiler.profile(activities=activities)
        profile.start()
    try:
        for path in paths.values():
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
            for _ in range(CALLS):
                path()
        torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    finally:
        profile.stop()
    recorded = profile.events() or []  # type: ignore[no-untyped-call]
    events = [event for event in recorded if event.device_type.name == "CUDA"]
    ordered = sorted(events, key=lambda event: event.time_range.start)
    names = [event.name for event in ordered if not getattr(event, "is_user_annotation", False)]
    return attribute(names, list(paths), removed_kernel)


def attribute(names: list[str], paths: list[str], removed_kernel: str) -> dict[str, LaunchCount]:
    """The launches ``names``, in order of time, given to the path after whose marker they stand.

    Raises:
        RuntimeError: there is not one marker before each path and one at the end.
    """
    places = [place for place, name in enumerate(names) if MARKER in name]
    if len(places) != len(paths) + 1:
        raise RuntimeError(
            f"torch's profiler recorded {len(places)} of {len(paths) + 1} markers ({len(names)} launches in all); "
            "expected every one, check that no other profiler holds the GPU"
        )
    counts = {}
    for path, start, end in zip(paths, places, places[1:], strict=False):
        own = names[start + 1 : end]
        counts[path] = LaunchCount(CALLS, sum(bool(re.search(removed_kernel, name)) for name in own), len(own))
    return counts


def replayed(
    step: Callable[[], Mapping[str, torch.Tensor]], change_inputs: Callable[[], None]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What ``step`` gives when replayed from a graph, before and after ``change_inputs``; copies of its outputs.

    Args:
        step: reads tensors that stay in place, and allocates its outputs.
        change_inputs: writes other values into those tensors.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # what is compiled, loaded or chosen on first use must not be captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    graph.replay()
    before = {name: tensor.clone() for name, tensor in outputs.items()}
    change_inputs()
    graph.replay()
    torch.cuda.synchronize()
    return before, {name: tensor.clone() for name, tensor in outputs.items()}
