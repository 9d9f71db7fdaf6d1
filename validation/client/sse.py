"""From stamped bytes to stamped events, after the request has ended.

An event's time is that of the read that brought its last byte: only then could anybody have used it.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import operator
import re
from collections.abc import Sequence

from validation.client import hotloop

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")


class BadStream(ValueError):  # noqa: N818 - a stream, not an exception, is bad
    """The bytes are no HTTP answer with server-sent events; the message says where it breaks."""


@dataclasses.dataclass(frozen=True)
class Events:
    """The data of each event, and when its last byte arrived (ns, the clock of the stamps)."""

    head: hotloop.Head
    data: list[bytes]
    stamps_ns: list[int]


def read_events(segments: Sequence[bytes], stamps_ns: Sequence[int]) -> Events:
    """``events_of`` for bytes that are still apart: ``segments[i]`` arrived at ``stamps_ns[i]``."""
    return events_of(b"".join(segments), list(itertools.accumulate(map(len, segments))), stamps_ns)


def events_of(raw: bytes, received: Sequence[int], stamps_ns: Sequence[int]) -> Events:
    """The events in what a socket gave: ``raw``, of which ``received[i]`` bytes had come at ``stamps_ns[i]``.

    A body that is no event stream is one event. Comments and other fields than ``data`` are dropped.

    Raises:
        BadStream: no HTTP head, broken chunked coding, or a stream that stops inside an event.
    """
    head = hotloop.read_head(raw)
    if head is None:
        raise BadStream(f"no HTTP/1 answer in {len(raw)} bytes")
    stream = head.status == 200 and head.fields.get("content-type", "").startswith("text/event-stream")
    usual = _one_event_a_chunk(raw, head.size) if stream and head.chunked else None
    if usual is not None:
        data, ends = usual
    else:
        pieces, body_ends, raw_ends = _unchunk(raw, head.size) if head.chunked else _identity(raw, head.size)
        body = b"".join(pieces)
        if not stream:
            return Events(head, [body], [stamps_ns[-1]])
        data, places = _split(body)
        chunks = [bisect.bisect_left(body_ends, place) for place in places]
        ends = [raw_ends[chunk] - body_ends[chunk] + place for chunk, place in zip(chunks, places, strict=True)]
    reads = map(bisect.bisect_left, itertools.repeat(received), ends)
    return Events(head, data, [stamps_ns[read] for read in reads])


def _one_event_a_chunk(raw: bytes, start: int) -> tuple[list[bytes], list[int]] | None:
    """The data of each event, and where it ends in ``raw``, where every chunk is one event of one line.

    That is how servers send them, and it saves most of the work. None for any other stream.
    """
    # size line, data line, the event's blank line, the chunk's end; and again
    lines = raw.split(b"\n")[raw.count(b"\n", 0, start) :]
    sizes, fields, blanks, chunk_ends = (lines[place:-3:4] for place in range(4))
    data = [field[6:] for field in fields]
    count = len(data)
    if (
        len(lines) != 4 * count + 3
        or lines[-3:] != [b"0\r", b"\r", b""]
        or [field[:6] for field in fields].count(b"data: ") != count
        or blanks.count(b"") != count
        or chunk_ends.count(b"\r") != count
        or b"\n".join(sizes).lower() != b"\n".join([b"%x\r" % (len(field) + 2) for field in fields])
        or any(map(operator.contains, data, itertools.repeat(ord("\r"))))
    ):
        return None
    after = itertools.accumulate([len(size) + len(field) + 5 for size, field in zip(sizes, fields, strict=True)])
    return data, [start - 2 + place for place in after]


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
