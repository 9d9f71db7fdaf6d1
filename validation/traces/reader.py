"""PyTorch profiler traces (Kineto's Chrome JSON) as columns: kernels, their launches, and annotations.

Kineto writes times in microseconds; GPU events carry the device as ``pid``, the stream as ``tid``, and the correlation
id of the runtime call that launched them (all kernels of one graph launch share it).
Format: https://github.com/pytorch/kineto, libkineto/src/output_json.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import itertools
import math
import pathlib
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from validation.traces.scan import EventFile, Limits, Piece, TraceError

__all__ = ["Events", "Kind", "Lane", "Limits", "Profiler", "Trace", "TraceError", "read_ranks", "read_trace"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Kind(enum.IntEnum):
    """What an event is. The first three are work on a GPU."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2
    LAUNCH = 3
    CPU_ANNOTATION = 4
    GPU_ANNOTATION = 5
    CPU_OP = 6


_KIND_OF_CATEGORY: dict[Any, Kind] = {
    "kernel": Kind.KERNEL,
    "Kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.MEMCPY,
    "Memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "Memset": Kind.MEMSET,
    "cuda_runtime": Kind.LAUNCH,
    "cuda_driver": Kind.LAUNCH,
    "hip_runtime": Kind.LAUNCH,
    "hip_driver": Kind.LAUNCH,
    "Runtime": Kind.LAUNCH,
    "user_annotation": Kind.CPU_ANNOTATION,
    "gpu_user_annotation": Kind.GPU_ANNOTATION,
    "cpu_op": Kind.CPU_OP,
    "Operator": Kind.CPU_OP,
}
"""Categories of Kineto since 2022, and those of the releases before."""
_WITHOUT_OPERATORS: dict[Any, Kind] = {
    category: kind for category, kind in _KIND_OF_CATEGORY.items() if kind is not Kind.CPU_OP
}


class Profiler(str, enum.Enum):
    """Who recorded the kernels; their accounting of dispatch differs (see ``gaps.ACCOUNTING``)."""

    CUPTI = "cupti"
    ROCTRACER = "roctracer"
    CPU = "cpu"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Lane:
    """A GPU stream, or a CPU thread."""

    device: int | str
    stream: int | str

    def __str__(self) -> str:
        return f"{self.device}:{self.stream}"


@dataclasses.dataclass(frozen=True)
class Events:
    """Columns of equal length, one row an event."""

    kind: npt.NDArray[np.uint8]
    name: Ints
    """Index into ``Trace.names``."""
    start_us: Floats
    """From the start of the trace's first kept event."""
    duration_us: Floats
    lane: Ints
    """Index into ``Trace.lanes``."""
    correlation: Ints
    """-1 where the event has none."""
    external_id: Ints
    """-1 where the event has none; the events of one annotation share it."""

    def __len__(self) -> int:
        return len(self.name)

    @property
    def end_us(self) -> Floats:
        return self.start_us + self.duration_us

    def take(self, rows: Mask | Ints) -> Events:
        """The given rows: a mask, or indices in the wanted order."""
        return Events(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Trace:
    """One rank's trace."""

    source: str
    rank: int
    world_size: int | None
    profiler: Profiler
    profiler_how: str
    names: tuple[str, ...]
    lanes: tuple[Lane, ...]
    kernels: Events
    """Kernels, copies and fills in order of start; the CPU operators where nothing ran on a GPU."""
    launches: Events
    annotations: Events
    event_count: int
    text_bytes: int
    resolution_us: float
    """What one unit in the last place of the file's times is worth: a gap below it is no gap."""
    notes: tuple[str, ...] = ()


_RANK_IN_NAME = re.compile(r"(?:rank|TP)[-_]?(\d+)", re.IGNORECASE)
"""SGLang writes ``<time>-TP-0-DECODE.trace.json.gz``, others ``rank_0.json``."""
_STAGE_IN_NAME = re.compile(r"-(DECODE|EXTEND|PREFILL)\b", re.IGNORECASE)
_SUFFIXES = (".json", ".json.gz")


def read_trace(path: pathlib.Path, limits: Limits = Limits()) -> Trace:  # noqa: B008 - frozen
    """Read one file.

    Raises:
        TraceError: the file is broken, cut short, over a limit, or holds a time that is no time.
    """
    stream, table = _read(path, limits, _WITHOUT_OPERATORS)
    events, base_us = table.events()
    on_gpu = events.kind <= Kind.MEMSET
    if not on_gpu.any():  # seldom, so the operators, half of a trace's events, are read for it alone
        stream, table = _read(path, limits, _KIND_OF_CATEGORY)
        events, base_us = table.events()
        on_gpu = np.zeros(len(events), bool)
    kernels = events.take(on_gpu if on_gpu.any() else events.kind == Kind.CPU_OP)
    launches = events.take(events.kind == Kind.LAUNCH)
    names = tuple(table.names)
    profiler, how = _profiler(bool(on_gpu.any()), launches, names, stream.header)
    rank, world_size = _rank(path, stream.header)
    return Trace(
        source=path.name,
        rank=rank,
        world_size=world_size,
        profiler=profiler,
        profiler_how=how,
        names=names,
        lanes=tuple(Lane(*lane) for lane in table.lanes),
        kernels=kernels.take(np.argsort(kernels.start_us, kind="stable")),
        launches=launches.take(np.argsort(launches.start_us, kind="stable")),
        annotations=events.take((events.kind == Kind.CPU_ANNOTATION) | (events.kind == Kind.GPU_ANNOTATION)),
        event_count=table.seen,
        text_bytes=stream.bytes_read,
        resolution_us=float(np.spacing(max(abs(base_us), 1.0))),
        notes=tuple(sorted(stream.notes)),
    )


def read_ranks(path: pathlib.Path, limits: Limits = Limits()) -> tuple[Trace, ...]:  # noqa: B008 - frozen
    """Read a file, or a folder with one file a rank, in order of rank.

    Where the profiler wrote a file a stage (SGLang's ``profile_by_stage``), only the decode files are read.

    Raises:
        TraceError: as ``read_trace``; or a folder without traces, or with two files of one rank.
    """
    if not path.is_dir():
        return (read_trace(path, limits),)
    files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
    if not files:
        raise TraceError(f"{path} holds no *.json or *.json.gz; expected one trace a rank")
    if any(_stage(file) == "DECODE" for file in files):
        files = [file for file in files if _stage(file) == "DECODE"]
    traces = sorted((read_trace(file, limits) for file in files), key=lambda trace: trace.rank)
    for before, after in itertools.pairwise(traces):
        if before.rank == after.rank:
            raise TraceError(
                f"{path} holds two traces of rank {after.rank}, {before.source} and {after.source}; expected one a rank"
            )
    return tuple(traces)


def _read(path: pathlib.Path, limits: Limits, kind_of: dict[Any, Kind]) -> tuple[EventFile, _Table]:
    """The events of the categories in ``kind_of``, and the file, whose header is complete."""
    stream = EventFile(path, limits)
    table = _Table(stream, limits, kind_of)
    with _no_cycle_collection():
        for piece in stream:
            table.add(piece)
    return stream, table


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Parsed JSON holds no cycles, and looking for some among its many objects takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _stage(path: pathlib.Path) -> str | None:
    found = _STAGE_IN_NAME.search(path.name)
    return found.group(1).upper() if found else None


class _Numbers(dict[Any, int]):
    """Numbers its keys from 0 as they are looked up."""

    def __missing__(self, key: Any) -> int:
        self[key] = number = len(self)
        return number


class _Table:
    """Rows of the wanted events, piece by piece turned into columns."""

    def __init__(self, stream: EventFile, limits: Limits, kind_of: dict[Any, Kind]) -> None:
        self.names = _Numbers()
        self.lanes = _Numbers()
        self.seen = 0
        self._kept = 0
        self._stream = stream
        self._limits = limits
        self._kind_of = kind_of
        self._parts: list[Events] = []

    def add(self, piece: Piece) -> None:
        """Keep the wanted events of ``piece``: a loop a column, because that is the reader's hot path."""
        self.seen += len(piece.events)
        kind_of = self._kind_of
        try:
            kept = [event for event in piece.events if event.get("cat") in kind_of and event.get("ph") == "X"]
        except (AttributeError, TypeError):
            raise self._broken(piece, _first_malformed(piece.events), "is no object with a text cat") from None
        self._kept += len(kept)
        if self._kept > self._limits.kept_events:
            raise TraceError(
                f"{self._stream.name} holds more than {self._limits.kept_events} events to keep; raise the limit"
            )
        names, lanes = self._number(piece, kept)
        starts, durations = self._times(piece, kept)
        args = [found if type(found := event.get("args")) is dict else {} for event in kept]
        correlations = [_identifier(found.get("correlation")) for found in args]
        external_ids = [_identifier(found.get("External id", found.get("external id"))) for found in args]
        self._parts.append(
            Events(
                kind=np.array([kind_of[event["cat"]] for event in kept], np.uint8),
                name=np.array(names, np.int64),
                start_us=starts,
                duration_us=durations,
                lane=np.array(lanes, np.int64),
                correlation=np.array(correlations, np.int64),
                external_id=np.array(external_ids, np.int64),
            )
        )

    def _number(self, piece: Piece, kept: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        """The number of each event's name and of its lane."""
        known_names, known_lanes = len(self.names), len(self.lanes)
        try:
            names = [self.names[event.get("name")] for event in kept]
            lanes = [self.lanes[event.get("pid"), event.get("tid")] for event in kept]
        except TypeError:
            nested = next(e for e in kept if {type(e.get(key)) for key in ("name", "pid", "tid")} & {list, dict})
            raise self._broken(piece, nested, "has a list or object as name, pid or tid") from None
        for name in itertools.islice(self.names, known_names, None):
            if type(name) is not str or len(name) > self._limits.name_chars:
                event = next(event for event in kept if event.get("name") is name)
                raise self._broken(piece, event, f"has no name, or one over {self._limits.name_chars} characters")
        for pid, tid in itertools.islice(self.lanes, known_lanes, None):
            if not _is_lane(pid) or not _is_lane(tid):
                event = next(event for event in kept if (event.get("pid"), event.get("tid")) == (pid, tid))
                problem = f"has pid {pid!r:.40} and tid {tid!r:.40}, expected numbers or texts"
                raise self._broken(piece, event, problem)
        return names, lanes

    def events(self) -> tuple[Events, float]:
        """All rows, times counted from the first, and the first's time in the file."""
        fields = [field.name for field in dataclasses.fields(Events)]
        if not self._parts:
            self.add(Piece([], 0, b""))
        whole = Events(**{name: np.concatenate([getattr(part, name) for part in self._parts]) for name in fields})
        base_us = float(whole.start_us.min()) if len(whole) else 0.0
        return dataclasses.replace(whole, start_us=whole.start_us - base_us), base_us

    def _times(self, piece: Piece, kept: list[dict[str, Any]]) -> tuple[Floats, Floats]:
        """The start and duration of each event, in the file's microseconds."""
        starts = [event.get("ts") for event in kept]
        durations = [event.get("dur", 0) for event in kept]
        if {*map(type, starts), *map(type, durations)} <= {int, float}:
            start_us, duration_us = np.array(starts, np.float64), np.array(durations, np.float64)
            with np.errstate(over="ignore"):
                end_us = start_us + duration_us
            if np.isfinite(end_us).all() and (duration_us >= 0).all():
                return start_us, duration_us
        for event, start, duration in zip(kept, starts, durations, strict=True):
            if not _is_time(start) or not _is_time(duration) or duration < 0:
                problem = f"has ts {start!r:.40} and dur {duration!r:.40}; expected finite microseconds, dur at least 0"
                raise self._broken(piece, event, problem)
        raise self._broken(piece, kept[0], "or one after it has ts and dur whose sum is not finite")

    def _broken(self, piece: Piece, event: Any, problem: str) -> TraceError:
        index = next((i for i, candidate in enumerate(piece.events) if candidate is event), 0)
        label = event.get("name") if isinstance(event, dict) else event
        where = f"the event {label!r:.80} at byte {piece.locate(index)}"
        return TraceError(f"{self._stream.name}: {where} {problem}; the trace is not to be trusted, record it again")


def _first_malformed(events: Sequence[Any]) -> Any:
    return next(e for e in events if not isinstance(e, dict) or not isinstance(e.get("cat"), Hashable))


def _is_lane(value: Any) -> bool:
    return type(value) in (int, str)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _identifier(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else -1


def _profiler(on_gpu: bool, launches: Events, names: Sequence[str], header: dict[str, Any]) -> tuple[Profiler, str]:
    if not on_gpu:
        return Profiler.CPU, "no kernel, copy or fill on a GPU; its CPU operators stand in for kernels"
    called = [names[i] for i in np.unique(launches.name)]
    hip = [name for name in called if name.startswith("hip")]
    cuda = [name for name in called if name.startswith("cu")]
    if hip and cuda:
        return Profiler.UNKNOWN, f"both {hip[0]} and {cuda[0]} are among its launches"
    if hip:
        return Profiler.ROCTRACER, f"its launches are HIP calls ({hip[0]})"
    if "cupti_version" in header:
        return Profiler.CUPTI, f"its header names CUPTI {header['cupti_version']}"
    if cuda:
        return Profiler.CUPTI, f"its launches are CUDA calls ({cuda[0]})"
    return Profiler.UNKNOWN, "neither its header nor its launches name a profiler"


def _rank(path: pathlib.Path, header: dict[str, Any]) -> tuple[int, int | None]:
    info = header.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    world = info.get("world_size")
    rank = info.get("rank")
    if type(rank) is not int or rank < 0:
        found = _RANK_IN_NAME.search(path.name)
        rank = int(found.group(1)[:9]) if found else 0
    return rank, world if type(world) is int and world > 0 else None
