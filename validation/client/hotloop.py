"""Sends requests and stamps every byte that comes back; parses nothing while a stream runs.

This file is also the program that a client process runs (``python -I -S hotloop.py ...``), so it needs the standard
library only and starts in some ten milliseconds. One process is one epoll loop: for a readable socket it does one
``read``, takes one time stamp and appends both to a list. Everything else (chunked coding, SSE, JSON) happens later and
in another process, so that parsing one answer never delays the stamps of the others.

Each request has its own connection, ended by the server (``Connection: close``), as in ``sglang.bench_serving``.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import errno
import gc
import heapq
import json
import mmap
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

READ_BYTES = 65536
"""One read; a token's event is some hundred bytes, so this is a whole decode step of backlog and more."""
MAX_EVENTS = 64
"""Sockets served between two polls: bounds how stale the oldest readiness in a batch can be."""
# TCP_QUICKACK off would make a read four times cheaper (the kernel sends an ACK inside each), but a server without
# TCP_NODELAY would then hold its next token back until the delayed ACK, and we would measure that.
OPEN_AT_ONCE = 2
"""Connections opened between two polls: opening a thousand at once would leave the first answers without stamps."""
SCAN_S = 0.2
"""How often silence is looked for, and the wait after which a whole answer on an open connection counts as ended."""
RETRY_AFTER_MAX_S = 60.0
"""A server may ask for any delay; a run does not wait longer than this for one request."""
SEND_BUFFERS = 256
"""Buffers handed to the parent between two polls; its socket takes some 200 KiB, so that even a large answer on its way
out does not delay a stamp by more than the copying of so much."""
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
"""Statuses that say *later*; every other status but 200 is final."""

HEAP_BYTES = 16 << 20
"""Memory touched before the start: a page fault in the loop takes microseconds and makes the stamps after it late."""

FRAME = struct.Struct("<III")
"""Bytes of metadata (JSON), number of segments, bytes of the segments."""

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one client process is to do. ``jobs`` holds the offset and length of each body in the bodies file."""

    family: int
    address: tuple[Any, ...]
    head: str = dataclasses.field(repr=False)  # it carries the API key
    """Request line and headers, without ``Content-Length`` and the empty line."""
    jobs: tuple[tuple[int, int], ...]
    concurrency: int
    timeout_s: float
    stall_s: float
    max_retries: int
    backoff_s: float


@dataclasses.dataclass(frozen=True)
class Head:
    """Status line and headers of an answer."""

    status: int
    fields: dict[str, str]
    size: int
    """Bytes up to and with the empty line."""

    @property
    def chunked(self) -> bool:
        """Whether the body has chunked transfer coding."""
        return "chunked" in self.fields.get("transfer-encoding", "").lower()


def read_head(raw: bytes) -> Head | None:
    """The head of the answer ``raw`` begins with; None where it is cut short or not HTTP/1."""
    end = raw.find(_HEAD_END)
    match = _STATUS.match(raw)
    if end < 0 or match is None:
        return None
    fields = {}
    for line in raw[:end].decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return Head(int(match.group(1)), fields, end + len(_HEAD_END))


def retry_delay_s(tries: int, backoff_s: float, retry_after: str | None) -> float:
    """Seconds before try number ``tries`` + 1: what the server asked for, else doubling from ``backoff_s``."""
    try:
        asked = float(retry_after) if retry_after is not None else None
    except ValueError:  # an HTTP date; the server's wall clock is not ours
        asked = None
    delay = asked if asked is not None and asked >= 0 else backoff_s * 2 ** (tries - 1)
    return min(delay, RETRY_AFTER_MAX_S)


class _Attempt:
    """One job on its way: its connection, and what came back, as time, bytes, time, bytes ..."""

    __slots__ = ("index", "queued_ns", "reasons", "sent_ns", "sock", "stream", "unsent", "utc_s")

    def __init__(self, index: int, queued_ns: int) -> None:
        self.index = index
        self.queued_ns = queued_ns
        self.reasons: list[str] = []
        self.stream: list[Any] = []
        self.sock: socket.socket | None = None
        self.unsent = memoryview(b"")
        self.sent_ns = 0
        self.utc_s = 0.0


class HotLoop:
    """One process's share of a load.

    ``take`` gives the next job's number or None; ``deliver`` takes the buffers of one finished request (see ``FRAME``).
    ``wall_s`` is only ever written down, never used for a duration.
    """

    def __init__(
        self,
        plan: Plan,
        bodies: mmap.mmap | bytes,
        take: Callable[[], int | None],
        deliver: Callable[[list[bytes]], None],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._plan, self._bodies, self._take, self._deliver, self._wall_s = plan, bodies, take, deliver, wall_s
        self._epoll = select.epoll()
        self._streams: dict[int, list[Any]] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._waiting: list[tuple[int, int, _Attempt]] = []
        self._over: collections.deque[tuple[_Attempt, int]] = collections.deque()
        self._exhausted = False
        self._others: dict[int, Callable[[int], None]] = {}
        self.lag_log2 = [0] * 64
        """How many batches of two or more readable sockets took 2^(i-1) to 2^i ns to stamp."""
        self.lag_max_ns = 0

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready(mask)`` whenever ``fd`` has one of ``events``."""
        if fd in self._others:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._others[fd] = ready

    def run(self, start_ns: int, pending: Callable[[], bool] = lambda: False) -> None:
        """Work until every job is delivered and nothing is ``pending``; the jobs have waited since ``start_ns``."""
        now, read, poll, streams = time.perf_counter_ns, os.read, self._epoll.poll, self._streams
        scan_ns = int(SCAN_S * 1e9)
        next_scan = now() + scan_ns
        while True:
            more = self._open_some(start_ns) if self._waiting or not self._exhausted else False
            if self._exhausted and not (self._attempts or self._waiting or self._over or pending()):
                return
            events = poll(0 if more or self._over else self._patience_s() if self._waiting else SCAN_S, MAX_EVENTS)
            woke = now()
            for fd, mask in events:
                stream = streams.get(fd)
                if stream is None:
                    self._other(fd, mask)
                    continue
                try:
                    data = read(fd, READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._lost(fd, error)
                    continue
                if data:
                    stream.append(now())
                    stream.append(data)
                else:
                    self._over.append((self._release(fd), now()))
            done = now()
            if len(events) > 1:
                lag = done - woke
                self.lag_log2[lag.bit_length()] += 1
                if lag > self.lag_max_ns:
                    self.lag_max_ns = lag
            if self._over and (len(events) < MAX_EVENTS or len(self._over) > MAX_EVENTS):
                self._ended(*self._over.popleft())  # one at a time: other streams have stamps to take
            if done >= next_scan:
                self._scan(done)
                next_scan = done + scan_ns

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open_some(self, start_ns: int) -> bool:
        """Fill free places, a few at a time; whether places are left that could be filled at once."""
        for _ in range(OPEN_AT_ONCE):
            if self._waiting and self._waiting[0][0] <= time.perf_counter_ns():
                attempt = heapq.heappop(self._waiting)[2]
            elif self._exhausted or len(self._attempts) + len(self._waiting) >= self._plan.concurrency:
                return False
            else:
                index = self._take()
                if index is None:
                    self._exhausted = True
                    return False
                attempt = _Attempt(index, time.perf_counter_ns() - start_ns)
            self._open(attempt)
        return True

    def _open(self, attempt: _Attempt) -> None:
        offset, length = self._plan.jobs[attempt.index]
        head = f"{self._plan.head}Content-Length: {length}\r\n\r\n".encode("latin-1")
        attempt.unsent = memoryview(head + self._bodies[offset : offset + length])
        attempt.stream = []
        attempt.utc_s = self._wall_s()
        attempt.sent_ns = time.perf_counter_ns()
        try:
            attempt.sock = sock = socket.socket(self._plan.family, socket.SOCK_STREAM)
        except OSError as error:
            self._retry(attempt, f"no socket: {error.strerror}", None)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._attempts[sock.fileno()] = attempt
        code = sock.connect_ex(self._plan.address)
        if code not in (0, errno.EINPROGRESS):
            self._lost(sock.fileno(), OSError(code, os.strerror(code)), registered=False)
            return
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _other(self, fd: int, mask: int) -> None:
        """A socket that is not streaming yet, or the parent's."""
        ready = self._others.get(fd)
        if ready is not None:
            ready(mask)
            return
        attempt = self._attempts.get(fd)
        if attempt is None or attempt.sock is None:
            return
        code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lost(fd, OSError(code, os.strerror(code)))
            return
        try:
            attempt.unsent = attempt.unsent[attempt.sock.send(attempt.unsent) :]
        except BlockingIOError:
            return
        except OSError:  # the server may have answered before it hung up: read what there is
            attempt.unsent = memoryview(b"")
        if not attempt.unsent:
            self._epoll.modify(fd, select.EPOLLIN)
            self._streams[fd] = attempt.stream

    # -- ending ------------------------------------------------------------------------------------------------------

    def _release(self, fd: int, registered: bool = True) -> _Attempt:
        attempt = self._attempts.pop(fd)
        self._streams.pop(fd, None)
        if registered:
            self._epoll.unregister(fd)
        if attempt.sock is not None:
            attempt.sock.close()
            attempt.sock = None
        return attempt

    def _lost(self, fd: int, error: OSError, registered: bool = True) -> None:
        during = "while connecting" if fd not in self._streams else f"after {len(self._attempts[fd].stream) // 2} reads"
        self._retry(self._release(fd, registered), f"{error.strerror or error} {during}", None)

    def _ended(self, attempt: _Attempt, end_ns: int) -> None:
        """The server closed the connection: a whole answer, a refusal, or too little."""
        head = read_head(_beginning(attempt.stream))
        if head is None:
            self._retry(attempt, "connection closed before the end of the answer's headers", None)
        elif head.status in RETRIED_STATUS:
            self._retry(attempt, f"HTTP status {head.status}", head.fields.get("retry-after"), end_ns)
        elif not _whole(attempt.stream, head):
            self._retry(attempt, f"connection closed inside the answer after {len(attempt.stream) // 2} reads", None)
        else:
            self._finish(attempt, None, end_ns)

    def _retry(self, attempt: _Attempt, reason: str, retry_after: str | None, end_ns: int = 0) -> None:
        if len(attempt.reasons) >= self._plan.max_retries:
            self._finish(attempt, reason, end_ns or time.perf_counter_ns())
            return
        attempt.reasons.append(reason)
        delay_s = retry_delay_s(len(attempt.reasons), self._plan.backoff_s, retry_after)
        heapq.heappush(self._waiting, (time.perf_counter_ns() + int(delay_s * 1e9), attempt.index, attempt))

    def _finish(self, attempt: _Attempt, error: str | None, end_ns: int) -> None:
        stamps, segments = array.array("q", attempt.stream[0::2]), attempt.stream[1::2]
        lengths = array.array("I", map(len, segments))
        meta = {
            "job": attempt.index,
            "queued_ns": attempt.queued_ns,
            "sent_ns": attempt.sent_ns,
            "utc_s": attempt.utc_s,
            "end_ns": end_ns,
            "reasons": attempt.reasons,
            "error": error,
        }
        self._deliver(frame(meta, [stamps.tobytes(), lengths.tobytes(), *segments], len(segments), sum(lengths)))

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _patience_s(self) -> float:
        return min(SCAN_S, max(0.0, (self._waiting[0][0] - time.perf_counter_ns()) / 1e9))

    def _scan(self, now: int) -> None:
        """End requests that are over time or silent, and answers whose server keeps the connection open."""
        timeout_ns, stall_ns = int(self._plan.timeout_s * 1e9), int(self._plan.stall_s * 1e9)
        for fd, attempt in list(self._attempts.items()):
            heard = attempt.stream[-2] if attempt.stream else attempt.sent_ns
            if now - heard > int(SCAN_S * 1e9) and attempt.stream:
                head = read_head(_beginning(attempt.stream))
                if (
                    head is not None
                    and (head.chunked or "content-length" in head.fields)
                    and _whole(attempt.stream, head)
                ):
                    self._ended(self._release(fd), heard)
                    continue
            # a retry would hide a slow server from the latency it is measured for
            if now - attempt.sent_ns > timeout_ns:
                self._finish(self._release(fd), f"no end after {self._plan.timeout_s:g} s", now)
            elif now - heard > stall_ns:
                silence = f"silent for {self._plan.stall_s:g} s after {len(attempt.stream) // 2} reads"
                self._finish(self._release(fd), silence, now)


def frame(meta: dict[str, Any], buffers: list[bytes], segments: int = 0, size: int = 0) -> list[bytes]:
    """The buffers of one message to the parent."""
    text = json.dumps(meta).encode()
    return [FRAME.pack(len(text), segments, size), text, *buffers]


def _beginning(stream: list[Any]) -> bytes:
    """The first segments of a stream, as many as its headers take."""
    raw = b""
    for data in stream[1::2]:
        raw += data
        if _HEAD_END in raw or len(raw) > READ_BYTES:
            break
    return raw


def _whole(stream: list[Any], head: Head) -> bool:
    """Whether everything that the headers promise has come."""
    if head.chunked:
        tail = b""
        for data in reversed(stream[1::2]):
            tail = data[-len(_LAST_CHUNK) :] + tail
            if len(tail) >= len(_LAST_CHUNK):
                break
        return tail.endswith(_LAST_CHUNK)
    length = head.fields.get("content-length", "")
    return not length.isdigit() or sum(map(len, stream[1::2])) >= head.size + int(length)


class _Outbox:
    """Frames on their way to the parent, written whenever its socket takes them, never more than a slice at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffers: collections.deque[bytes | memoryview] = collections.deque()
        self.loop: HotLoop | None = None

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def put(self, buffers: list[bytes]) -> None:
        self._buffers.extend(b for b in buffers if b)
        if self.loop is not None:
            self.loop.watch(self._control.fileno(), select.EPOLLIN | select.EPOLLOUT, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            raise SystemExit(1)  # the parent says nothing after the start: it is gone, and nobody wants the answers
        self.write(SEND_BUFFERS)
        if not self._buffers and self.loop is not None:
            self.loop.watch(self._control.fileno(), select.EPOLLIN, self._ready)

    def write(self, most: int) -> None:
        """Hand over up to ``most`` buffers."""
        buffers = [self._buffers[i] for i in range(min(most, len(self._buffers)))]
        try:
            sent = self._control.sendmsg(buffers)
        except BlockingIOError:
            return
        except OSError:
            raise SystemExit(1) from None  # the parent is gone
        while sent:
            first = self._buffers.popleft()
            if sent < len(first):
                self._buffers.appendleft(memoryview(first)[sent:])
                return
            sent -= len(first)


def _receive(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            raise SystemExit(1)
        data += part
    return data


def main(control_fd: int, tickets_fd: int, bodies_fd: int) -> None:
    """Run as a client process: read the plan, say ready, wait for the start, work, report."""
    control = socket.socket(fileno=control_fd)
    (size,) = struct.unpack("<I", _receive(control, 4))
    fields = json.loads(_receive(control, size))
    plan = Plan(**{**fields, "address": tuple(fields["address"]), "jobs": tuple(map(tuple, fields["jobs"]))})
    bodies = mmap.mmap(bodies_fd, 0, prot=mmap.PROT_READ)
    # the last block, kept, stands at the heap's end, so that the allocator cannot give the others back to the kernel
    _heap_end = [b"x" * READ_BYTES for _ in range(HEAP_BYTES // READ_BYTES)][-1]
    control.sendall(b"r")
    (start_ns,) = struct.unpack("<q", _receive(control, 8))
    control.setblocking(False)
    outbox = _Outbox(control)

    def take() -> int | None:
        ticket = os.read(tickets_fd, 4)
        return struct.unpack("<I", ticket)[0] if ticket else None

    loop = outbox.loop = HotLoop(plan, bodies, take, outbox.put)
    outbox.put([])
    gc.disable()  # nothing here makes cycles, and a collection in the middle of a step would be a late stamp
    began_s = time.process_time()
    loop.run(start_ns, lambda: bool(outbox))
    control.setblocking(True)
    outbox.put(
        frame({"cpu_s": time.process_time() - began_s, "lag_log2": loop.lag_log2, "lag_max_ns": loop.lag_max_ns}, [])
    )
    while outbox:
        outbox.write(SEND_BUFFERS)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
