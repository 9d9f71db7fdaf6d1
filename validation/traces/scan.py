"""The events of a Chrome trace file, piece by piece, in memory that does not grow with the file.

A trace is one JSON object whose ``traceEvents`` array holds nearly all of its bytes. The array is cut between two
events every few megabytes and each piece is parsed on its own. A cut inside a string or a nested value leaves the piece
unbalanced, so that it does not parse: a piece that parses was cut between events, and no event is lost or split.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import orjson

_WHITESPACE = b" \t\r\n"
_BLANK = re.compile(rb"[ \t\r\n]*")
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"?'
"""With or without its end: the braces of a string cut short by the buffer's end are no braces."""
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_NON_FINITE = re.compile(_STRING + rb"|-?\b(?:nan|inf|infinity)\b", re.DOTALL | re.IGNORECASE)
_ARRAY_FOLLOWS = re.compile(rb"\s*:\s*\[")
_SPLIT = re.compile(rb"\}\s*,\s*\Z")

_BLOCK = 1 << 18
"""Bytes read at a time, and bytes of text inflated at a time: a file that expands a thousandfold does so in blocks."""
_TAIL = 1 << 14
"""Bytes kept back from a cut, so that the end of the array is looked for in a small piece."""
_CUT_ATTEMPTS = 2
"""Cheap cuts to try before the exact scan; objects nested in arrays are what makes one fail."""


class TraceError(ValueError):
    """A trace that cannot be read; one sentence with the byte offset (of the decompressed text) where it breaks."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a trace may cost to read. The defaults are ours: above any trace we saw, below a machine's memory."""

    piece_bytes: int = 1 << 18
    """Text parsed at a time; its Python objects take some ten times as much. Larger pieces are slower: these objects
    stay in the processor's cache (49 ms for 256 KiB, 109 ms for 4 MiB on a 6 MB trace)."""
    event_bytes: int = 32 << 20
    """The largest single event, and the largest text before or after the events."""
    file_bytes: int = 16 << 30
    """The largest decompressed file."""
    name_chars: int = 1 << 16
    """The longest name; demangled kernel names reach a few thousand characters."""
    kept_events: int = 50_000_000
    """Kernels, launches, annotations and operators kept, some 40 bytes each."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some consecutive events, parsed, and where their text starts in the file."""

    events: list[Any]
    offset: int
    text: bytes

    def locate(self, index: int) -> int:
        """The byte offset of event ``index``; scans the text, so for error messages only."""
        depth = seen = 0
        for token in _TOKEN.finditer(self.text):
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token.group(), 0)
            if token.group() in (b"{", b"[") and depth == 1:
                if seen == index:
                    return self.offset + token.start()
                seen += 1
        return self.offset


class EventFile:
    """One ``.json`` or ``.json.gz`` trace: iterate it once; ``header`` is complete when the iteration ends."""

    def __init__(self, path: pathlib.Path, limits: Limits) -> None:
        self.name = path.name
        self.header: dict[str, Any] = {}
        self.bytes_read = 0
        self.notes: set[str] = set()
        self._path = path
        self._limits = limits
        self._block = min(_BLOCK, limits.piece_bytes)
        self._buffer = b""
        self._offset = 0  # of the buffer's first byte
        self._at_end = False

    def __iter__(self) -> Iterator[Piece]:
        """The events in file order.

        Raises:
            TraceError: the file cannot be opened, decompressed or parsed, or is over a limit.
        """
        self._source = self._decompressed()
        self._fill(self._limits.piece_bytes)
        in_object = self._open_array()
        first = True
        while True:
            self._fill(self._limits.piece_bytes + _TAIL)
            piece, ended = self._next_piece(first)
            first = first and not piece.events
            if piece.events:
                yield piece
            if ended:
                break
        self._close(in_object)

    def _decompressed(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                magic = file.read(2)
                file.seek(0)
                if magic != b"\x1f\x8b":
                    while block := file.read(self._block):
                        yield block
                    return
                inflater = zlib.decompressobj(wbits=31)
                while block := file.read(_BLOCK):
                    while block:
                        if inflater.eof:  # gzip files may be joined end to end
                            inflater = zlib.decompressobj(wbits=31)
                        yield inflater.decompress(block, self._block)
                        block = inflater.unconsumed_tail or inflater.unused_data
                if not inflater.eof:
                    raise TraceError(
                        f"{self.name} is cut short: its gzip data ends without a trailer after byte {file.tell()} "
                        f"(byte {self.bytes_read} of the text); copy or record it again"
                    )
        except zlib.error as error:
            raise TraceError(
                f"{self.name} is damaged: its gzip data breaks after byte {self.bytes_read} of the text ({error}); "
                "copy or record it again"
            ) from error
        except OSError as error:
            raise TraceError(f"{self._path} cannot be read ({error.strerror}); expected a .json[.gz] trace") from error

    def _fill(self, size: int) -> None:
        """Let the buffer hold at least ``size`` bytes, or the rest of the file."""
        blocks, held = [self._buffer], len(self._buffer)
        while held < size and not self._at_end:
            block = next(self._source, None)
            if block is None:
                self._at_end = True
                break
            blocks.append(block)
            held += len(block)
            self.bytes_read += len(block)
            if self.bytes_read > self._limits.file_bytes:
                raise TraceError(
                    f"{self.name} holds more than {self._limits.file_bytes} bytes of text; raise the limit or record "
                    "fewer steps"
                )
        self._buffer = b"".join(blocks) if len(blocks) > 1 else blocks[0]

    def _drop(self, count: int) -> None:
        self._buffer = self._buffer[count:]
        self._offset += count

    def _open_array(self) -> bool:
        """Move to the first event; True where the events are a member of an object."""
        start = len(self._buffer) - len(self._buffer.lstrip(_WHITESPACE))
        opening = self._buffer[start : start + 1]
        if opening == b"[":
            self._drop(start + 1)
            return False
        if opening != b"{":
            raise TraceError(f"{self.name} is no trace: byte {start} is {opening!r}; expected '{{' or '['")
        while True:
            found = _find_events(self._buffer)
            if found is not None:
                break
            if self._at_end:
                raise TraceError(
                    f"{self.name} has no traceEvents array in its {self.bytes_read} bytes; expected a profiler's trace"
                )
            if len(self._buffer) > self._limits.event_bytes:
                raise TraceError(f"{self.name} has no traceEvents array in its first {len(self._buffer)} bytes")
            self._fill(2 * len(self._buffer))
        key, body = found
        head = self._buffer[:key].rstrip(_WHITESPACE).removesuffix(b",")
        self.header.update(self._parse(head + b"}", 0, 0))
        self._drop(body)
        return True

    def _next_piece(self, first: bool) -> tuple[Piece, bool]:
        """The next events, and whether the array ends with them."""
        buffer, limit = self._buffer, len(self._buffer) - _TAIL
        for _ in range(_CUT_ATTEMPTS if limit > 0 else 0):
            limit = _cut_before(buffer, limit)
            if limit <= 0:
                break
            try:
                return self._take(limit, first, repair=False), False
            except orjson.JSONDecodeError:
                continue
        while True:
            cut, ended = _exact_cut(self._buffer)
            if ended or cut > 0:
                return self._take(cut, first, repair=True), ended
            if self._at_end:
                start = self._offset + len(self._buffer) - len(self._buffer.lstrip(_WHITESPACE + b","))
                raise TraceError(
                    f"{self.name} is cut short: it ends at byte {self.bytes_read}, inside the event or array that "
                    f"starts at byte {start}; copy or record it again"
                )
            if len(self._buffer) > self._limits.event_bytes:
                raise TraceError(
                    f"{self.name} has an event of more than {self._limits.event_bytes} bytes at byte {self._offset}, "
                    "or one broken there; copy or record it again, or raise the limit if it is meant"
                )
            self._fill(2 * len(self._buffer))

    def _take(self, cut: int, first: bool, repair: bool) -> Piece:
        text = self._buffer[:cut]
        skip = _end_of_blank(text)
        if not first and text[skip : skip + 1] == b",":
            skip += 1
        elif not first and text[skip:]:
            raise TraceError(f"{self.name} is broken at byte {self._offset + skip}: expected ',' between two events")
        array = b"".join((b"[", memoryview(text)[skip:], b"]"))
        offset = self._offset
        events = self._parse(array, offset + skip, 1) if repair else orjson.loads(array)
        self._drop(cut)
        return Piece(events, offset, text)

    def _parse(self, text: bytes, offset: int, added: int) -> Any:
        """``text`` parsed, after the two repairs that real traces need; ``added`` bytes before it are ours."""
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            decoded = text.decode("utf-8", "replace")
        if "\ufffd" in decoded:
            self.notes.add("names hold bytes that are not UTF-8; each was replaced by U+FFFD")
        repaired = _NON_FINITE.sub(_null_for_bare_word, decoded.encode())
        try:
            return orjson.loads(repaired)
        except orjson.JSONDecodeError as error:
            at = offset - added + len(error.doc[: error.pos].encode())
            raise TraceError(f"{self.name} is broken near byte {at}: {error.msg}; copy or record it again") from error

    def _close(self, in_object: bool) -> None:
        """Read what follows the array: more header, or nothing."""
        end = self._buffer.find(b"]")
        if end < 0:
            raise TraceError(
                f"{self.name} is cut short: it ends at byte {self.bytes_read} inside its events; copy it again"
            )
        self._drop(end + 1)
        self._fill(self._limits.event_bytes)
        if not self._at_end:
            raise TraceError(f"{self.name} has over {self._limits.event_bytes} bytes after its events; expected few")
        if not in_object:
            if self._buffer.strip(_WHITESPACE):
                raise TraceError(f"{self.name} goes on after its event array at byte {self._offset}; expected its end")
            return
        tail = self._buffer.lstrip(_WHITESPACE)
        if not tail:
            raise TraceError(f"{self.name} is cut short: it ends at byte {self.bytes_read} without a closing '}}'")
        rest = self._parse(b'{"":0' + tail, self._offset + len(self._buffer) - len(tail), 5)
        if "traceEvents" in rest:
            raise TraceError(f"{self.name} has a second traceEvents array after byte {self._offset}; expected one")
        self.header.update({key: value for key, value in rest.items() if key})
        self._buffer = b""


def _end_of_blank(text: bytes) -> int:
    found = _BLANK.match(text)
    return found.end() if found else 0


def _null_for_bare_word(match: re.Match[bytes]) -> bytes:
    return match.group() if match.group().startswith(b'"') else b"null"


def _find_events(buffer: bytes) -> tuple[int, int] | None:
    """Where the key ``traceEvents`` of the outermost object starts, and where its first event may start."""
    depth = 0
    for token in _TOKEN.finditer(buffer):
        word = token.group()
        if word in (b"{", b"["):
            depth += 1
        elif word in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and word == b'"traceEvents"':
            opening = _ARRAY_FOLLOWS.match(buffer, token.end())
            if opening is not None:
                return token.start(), opening.end()
    return None


def _cut_before(buffer: bytes, limit: int) -> int:
    """Where the last object that another follows ends, before ``limit``; 0 where there is none nearby."""
    for _ in range(4096):  # braces to look at; between two events of a real trace stand fewer than ten
        brace = buffer.rfind(b"{", 0, limit)
        if brace < 0:
            return 0
        found = _SPLIT.search(buffer, max(0, brace - 64), brace)
        if found is not None:
            return found.start() + 1
        limit = brace
    return 0


def _exact_cut(buffer: bytes) -> tuple[int, bool]:
    """The end of the last whole event, or the position of the array's ``]`` and True."""
    depth = cut = 0
    for token in _TOKEN.finditer(buffer):
        word = token.group()
        if word in (b"{", b"["):
            depth += 1
        elif word in (b"}", b"]"):
            depth -= 1
            if depth < 0:
                return token.start(), True
            if depth == 0:
                cut = token.end()
    return cut, False
