"""Raw records: what was measured, before anybody judged it.

A run folder holds ``raw/*.jsonl``, one JSON object a line, each with its ``kind``; lines are only ever appended, and
findings and reports are recomputed from them. A line cut short by a crash is ignored where it is the last of its file.
Every record is a frozen dataclass; ``from_json`` ignores no field, so an unknown one is an error with file and line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

SCHEMA = 1


class RecordError(ValueError):
    """A raw record that cannot be read; the message names the file, the line and what was expected."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What was declared before anything was measured, and where."""

    kind: ClassVar[str] = "run"
    run_id: str
    schema: int
    started_utc: str
    profile: str
    tiers: tuple[str, ...]
    seed: int
    command: tuple[str, ...]
    declared: Mapping[str, Any]
    """Thresholds, scenarios, blocks, expected kernel cells: whatever a judge compares the evidence with."""
    provenance: Mapping[str, Any]
    """Packages, commit, hardware, driver."""


@dataclasses.dataclass(frozen=True)
class KernelCheck:
    """One comparison of one tensor, cat against skip."""

    name: str
    equal: bool
    detail: str = ""
    """Empty where equal; else how many elements differ, the first index, both bit patterns and the likely class."""


@dataclasses.dataclass(frozen=True)
class KernelCell:
    """One cell of a case's matrix: its comparisons, or why it does not apply here."""

    kind: ClassVar[str] = "kernel_cell"
    case: str
    cell: str
    applicable: bool
    reason: str
    """Why the cell does not apply; empty where it does."""
    providers: Mapping[str, str]
    """Role (``producer``, ``consumer``) to provider name and version."""
    checks: tuple[KernelCheck, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class PathCount:
    """How often the removed operation ran on one path of one cell."""

    kind: ClassVar[str] = "path_count"
    case: str
    cell: str
    path: str
    """``cat`` or ``skip``."""
    method: str
    """``dispatcher`` (op calls on CPU) or ``profiler`` (kernel launches on a GPU)."""
    calls: int
    removed: int
    """Launches of the operation that the optimisation removes, over all ``calls``."""
    launches: int
    """Every launch between the producer's end and the consumer's start, over all ``calls``."""
    allocated_bytes: int
    same_storage: bool
    """Whether the consumer's query is the producer's output storage."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of one arm."""

    kind: ClassVar[str] = "launch"
    launch_id: str
    arm: str
    block: int
    position: int
    """0 for the arm that ran first in its block."""
    url: str
    ready_s: float
    fresh: bool
    """False for a URL we were given: the launch effect cannot be separated."""
    identity: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """One request and every chunk of its answer. Times are the client's monotonic nanoseconds since it was sent."""

    kind: ClassVar[str] = "request"
    launch_id: str
    arm: str
    block: int
    run: int
    """Repetition of the scenario within the launch, from 0."""
    scenario: str
    index: int
    """Prompt number within the scenario: the pair of the same number in the other arm is its partner."""
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    """As the server counted them."""
    finish_reason: str | None
    text: str
    output_ids: tuple[int, ...] | None
    chunk_ns: tuple[int, ...]
    """Arrival of each content chunk."""
    chunk_tokens: tuple[int, ...] | None
    """The server's cumulative token count at each chunk; None where it does not tell."""
    queued_ns: int
    """Wait for the client's own concurrency limit, before ``sent_ns``."""
    end_ns: int
    error: str | None
    """None, or why the request has no answer; an error is never a wrong answer."""
    retries: int = 0
    started_utc_s: float = 0.0
    """Wall clock at ``sent_ns``, to order requests across processes; never used for a duration."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of an accuracy scenario and its reference answer."""

    kind: ClassVar[str] = "question"
    scenario: str
    index: int
    question: str
    prompt: str
    gold: str


@dataclasses.dataclass(frozen=True)
class ScenarioRun:
    """One pass of one scenario over one launch: what was sent, and the state it was sent in."""

    kind: ClassVar[str] = "scenario_run"
    launch_id: str
    arm: str
    block: int
    run: int
    scenario: str
    concurrency: int
    requests: int
    prompts_sha256: str
    cache_flushed: bool
    wall_s: float
    client: Mapping[str, Any]
    """The client's own error, measured: schedule lag, CPU seconds, retries."""


@dataclasses.dataclass(frozen=True)
class Note:
    """Something a reader must know that is no measurement: an interruption, a resume, a repaired interpreter."""

    kind: ClassVar[str] = "note"
    topic: str
    sentence: str
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Record = Run | KernelCell | PathCount | Launch | Request | Question | ScenarioRun | Note
_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in typing.get_args(Record)}


def to_json(record: Record) -> dict[str, Any]:
    """``record`` as JSON data, its ``kind`` first."""
    return {"kind": record.kind, **dataclasses.asdict(record)}


def from_json(data: Mapping[str, Any]) -> Record:
    """The record that ``to_json`` wrote.

    Raises:
        RecordError: the kind is unknown, or a field is missing, unknown or of another type.
    """
    kind = data.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise RecordError(f"record kind {kind!r} is unknown; expected one of {', '.join(sorted(_KINDS))}")
    fields = {key: value for key, value in data.items() if key != "kind"}
    try:
        return typing.cast(Record, _build(cls, fields))
    except (TypeError, ValueError) as error:
        raise RecordError(f"a {kind} record does not fit its schema: {error}") from error


def _build(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    return cls(**{key: _typed(hints.get(key, Any), value, key) for key, value in fields.items()})


def _typed(hint: Any, value: Any, key: str) -> Any:
    """``value`` as ``hint`` demands: tuples out of lists, dataclasses out of mappings, everything else checked."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key} is {type(value).__name__}, expected a list")
        return tuple(_typed(args[0], item, key) for item in value)
    if type(None) in args:
        return None if value is None else _typed(next(a for a in args if a is not type(None)), value, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {type(value).__name__}, expected an object")
        return _build(typing.cast(type[Any], hint), value)
    expected: Any = origin or hint
    if expected is float and type(value) is int:
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{key} is {value!r:.80}, expected {getattr(expected, '__name__', expected)}")
    return value


class Journal:
    """Appends records to one file. A killed process loses none of them, a failed machine those since ``sync``."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def append(self, record: Record) -> None:
        """Hand one line to the system; it is on disk after the next ``sync``."""
        self._file.write(json.dumps(to_json(record), allow_nan=False) + "\n")

    def sync(self) -> None:
        """Force everything appended so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; closed even where the disk is full."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cut a last line that a crash left without its newline, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read_file(path: pathlib.Path) -> Iterator[Record]:
    """The records of one file, in order; a torn last line is left out.

    Raises:
        RecordError: any other line that is not a record; the message names file and line number.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                data = json.loads(line)
                if not isinstance(data, dict):
                    raise RecordError(f"a JSON {type(data).__name__}, expected an object")
                yield from_json(data)
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{path.name} line {number}: {error}") from error


def read_run(folder: pathlib.Path) -> list[Record]:
    """Every record under ``folder/raw``, file by file in name order."""
    files = sorted((folder / "raw").glob("*.jsonl"))
    if not files:
        raise RecordError(f"{folder} holds no raw/*.jsonl; expected the folder of a run")
    return [record for file in files for record in read_file(file)]
