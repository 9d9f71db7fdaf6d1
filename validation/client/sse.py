"""From stamped bytes to stamped events, after the request has ended.

An event's time is that of the read that brought its last byte: only then could anybody have used it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from validation.client import hotloop

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")
Places = npt.NDArray[np.int64]


class BadStream(ValueError):  # noqa: N818 - a stream, not an exception, is bad
    """The bytes are no HTTP answer with server-sent events; the message says where it breaks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Payloads(Sequence[bytes]):
    """The data of each event, left where it came: ``raw[starts[i]:ends[i]]``, with a newline behind it."""

    raw: bytes
    starts: Places
    ends: Places

    @classmethod
    def of(cls, data: Sequence[bytes]) -> Payloads:
        """``data`` in this form."""
        if isinstance(data, Payloads):
            return data
        sizes = np.fromiter(map(len, data), "i8", len(data))
        ends = (sizes + 1).cumsum() - 1
        return cls(b"\n".join([*data, b""]), ends - sizes, ends)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Payloads: ...
    def __getitem__(self, place: int | slice) -> bytes | Payloads:
        if isinstance(place, slice):
            return Payloads(self.raw, self.starts[place], self.ends[place])
        return self.raw[self.starts[place] : self.ends[place]]

    def __iter__(self) -> Iterator[bytes]:
        return (self.raw[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Events:
    """The data of each event, and when its last byte arrived (ns, the clock of the stamps)."""

    head: hotloop.Head
    data: Payloads
    stamps_ns: list[int]


def windows(raw: bytes, starts: Places, size: int) -> npt.NDArray[np.void]:
    """The ``size`` bytes of ``raw`` from each of ``starts`` on, copied out."""
    every: npt.NDArray[np.void] = np.ndarray((len(raw) - size + 1,), f"V{size}", raw, strides=(1,))
    return every[starts]


def read_events(segments: Sequence[bytes], stamps_ns: Sequence[int]) -> Events:
    """``events_of`` for bytes that are still apart: ``segments[i]`` arrived at ``stamps_ns[i]``."""
    return events_of(b"".join(segments), list(itertools.accumulate(map(len, segments))), stamps_ns)


def events_of(raw: bytes, received: npt.ArrayLike, stamps_ns: npt.ArrayLike) -> Events:
    """The events in what a socket gave: ``raw``, of which ``received[i]`` bytes had come at ``stamps_ns[i]``.

    A body that is no event stream is one event. Comments and other fields than ``data`` are dropped.

    Raises:
        BadStream: no HTTP head, broken chunked coding, or a stream that stops inside an event.
    """
    head = hotloop.read_head(raw)
    if head is None:
        raise BadStream(f"no HTTP/1 answer in {len(raw)} bytes")
    stream = head.status == 200 and head.fields.get("content-type", "").startswith("text/event-stream")
    data = _one_event_a_chunk(raw, head.size) if stream and head.chunked else None
    if data is not None:
        ends = data.ends + 2
    else:
        pieces, body_ends, raw_ends = _unchunk(raw, head.size) if head.chunked else _identity(raw, head.size)
        body = b"".join(pieces)
        found, places = _split(body) if stream else ([body], [len(body)])
        data = Payloads.of(found)
        chunks = np.searchsorted(body_ends, places)
        ends = np.array(raw_ends)[chunks] - np.array(body_ends)[chunks] + places
    reads = np.asarray(received).searchsorted(ends)
    return Events(head, data, np.asarray(stamps_ns)[reads].tolist())


def _one_event_a_chunk(raw: bytes, start: int) -> Payloads | None:
    """The data of each event where every chunk is one event of one line; None for any other stream.

    That is how servers send them. Nothing is done once an event: some hundred nanoseconds of each token are saved.
    """
    # six line ends an event, and no other: CR LF, data, LF LF CR LF, and the next size; at the end 0 CR LF CR LF
    (breaks,) = (np.frombuffer(raw, "u1", offset=start) < 14).nonzero()
    if len(breaks) < 10 or len(breaks) % 6 != 4:
        return None
    size_ends, ends = breaks[:-4:6] + start, breaks[2:-4:6] + start
    starts = size_ends + len(b"\r\ndata: ")
    sizes = tuple((ends - size_ends).tolist())
    between = b"".join([raw[a:b] for a, b in zip([start, *ends.tolist()], [*starts.tolist(), len(raw)], strict=True)])
    if between != b"%x\r\ndata: \n\n\r\n" * len(sizes) % sizes + b"0\r\n\r\n":
        return None
    return Payloads(raw, starts, ends)


def _identity(raw: bytes, start: int) -> tuple[list[bytes], list[int], list[int]]:
    return [raw[start:]], [len(raw) - start], [len(raw)]


def _unchunk(raw: bytes, position: int) -> tuple[list[bytes], list[int], list[int]]:
    """The chunks from ``position`` on, where each ends in the body, and where in ``raw``."""
    pieces: list[bytes] = []
    body_ends: list[int] = []
    raw_ends: list[int] = []
    size = 0
    while True:
        line_end = raw.find(b"\r\n", position)
        try:
            length = int(raw[position:line_end].partition(b";")[0], 16) if line_end > 0 else -1
        except ValueError:
            length = -1
        start = line_end + 2
        end = start + length
        if length < 0 or raw[end : end + 2] != b"\r\n":
            if length == 0:  # trailers follow the last chunk; nobody reads them
                return pieces, body_ends, raw_ends
            raise BadStream(f"chunked coding breaks at byte {position} of {len(raw)}")
        if length == 0:
            return pieces, body_ends, raw_ends
        pieces.append(raw[start:end])
        size += length
        body_ends.append(size)
        raw_ends.append(end)
        position = end + 2


def _split(body: bytes) -> tuple[list[bytes], list[int]]:
    """The data of each event in ``body``, and where the event ends."""
    parts: list[bytes]
    if b"\r" in body:
        cuts = [match.span() for match in _BLANK_LINE.finditer(body)]
        starts = [0, *(end for _, end in cuts)]
        parts = [body[start:cut] for start, (cut, _) in zip(starts, cuts, strict=False)]
        offsets = [end for _, end in cuts]
        rest = body[starts[-1] :]
    else:
        *parts, rest = body.split(b"\n\n")
        offsets = list(itertools.accumulate(len(part) + 2 for part in parts))
    if rest.strip():
        raise BadStream(f"the stream stops inside an event, {len(rest)} bytes into it, after {len(parts)} whole ones")
    found = [(value, end) for part, end in zip(parts, offsets, strict=True) if (value := _data(part)) is not None]
    return [value for value, _ in found], [end for _, end in found]


def _data(part: bytes) -> bytes | None:
    """The joined ``data`` fields of one event, None where it has none."""
    lines = []
    for line in _LINE.split(part):
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None
