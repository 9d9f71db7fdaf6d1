"""An SSE server with known step times and faults to order, to test the client on.

Answers come in decode steps that all streams share, as a batching server's do; a new request joins at the next step.
Without a step time every answer is sent as fast as the socket takes it. The server stamps the first and last content
of every stream just before it sends them, so that a client is compared with what happened, not with what was planned.

As a program (``python -I -S fake_server.py '{"tokens": 64, ...}'``) it prints its port, and its ``/report`` tells the
stamps; it ends when its standard input does. It needs the standard library only.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

FAULTS = (
    "reset",
    "close",
    "stall",
    "busy",
    "failure",
    "truncated",
    "cut_event",
    "invalid_json",
    "invalid_utf8",
    "long_line",
    "out_of_order",
    "backwards",
    "no_usage",
    "zero_tokens",
    "early_eos",
    "other_model",
    "redirect",
    "unauthorized",
    "keep_open",
    "no_http",
    "crlf",
    "server_error_event",
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LONG_LINE_BYTES = 10_000_000
BACKLOG = 4096
_STREAM_NUMBER = b"987654321"
"""Stands for the request's number, from 1, in ``prompt_tokens``: by it a record is matched with the server's stamps."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What every answer looks like. ``step_ms`` 0: no waiting at all."""

    tokens: int = 16
    step_ms: float = 0.0
    tokens_per_event: int = 1
    first_tokens: int = 1
    """Tokens in the first event."""
    prefill_steps: int = 0
    """Steps that pass between a request's arrival and its first event."""
    model: str = "fake"
    redirect_to: str = ""
    cumulative: bool = True
    """Whether ``/generate`` repeats text and ids in every event, as SGLang does by default."""


@dataclasses.dataclass
class StreamTimes:
    """When an answer was asked for, its first and last content sent, and when those were due (monotonic ns)."""

    number: int
    tokens: int
    first_tokens: int
    asked_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    first_due_ns: int = 0
    last_due_ns: int = 0


def render(path: str, schedule: Schedule, fault: str = "") -> list[bytes]:
    """The data of every event of one answer, as the three endpoints shape them."""
    counts = [min(schedule.first_tokens, schedule.tokens)]
    while counts[-1] < schedule.tokens:
        counts.append(min(counts[-1] + schedule.tokens_per_event, schedule.tokens))
    if fault == "zero_tokens":
        counts = [0]
    if fault == "early_eos":
        counts = counts[: len(counts) // 2]
    model = "another" if fault == "other_model" else schedule.model
    reason = "stop" if fault in ("early_eos", "zero_tokens") else "length"
    events = [
        _event(path, schedule, model, before, now, reason if now == counts[-1] else None, fault == "no_usage")
        for before, now in zip([0, *counts], counts, strict=False)
    ]
    if path != "/generate" and fault != "no_usage":
        usage = _usage(counts[-1])
        events.append({"model": model, "choices": [], "usage": usage})
    data = [json.dumps(event).encode() for event in events]
    middle = len(data) // 2
    if fault == "truncated":
        data = data[:middle]
    elif fault == "invalid_json":
        data[middle] = data[middle][:-3]
    elif fault == "invalid_utf8":
        data[middle] = data[middle].replace(b"a", b"\xff\xfe", 1)
    elif fault == "long_line":
        data[middle] = data[middle][:-1] + b', "padding": "' + b"x" * LONG_LINE_BYTES + b'"}'
    elif fault == "out_of_order":
        data[-1], data[middle] = data[middle], data[-1]
    elif fault == "backwards":
        data[middle], data[middle + 1] = data[middle + 1], data[middle]
    elif fault == "server_error_event":
        data[middle] = b'{"error": {"message": "out of memory", "code": 500}}'
    return [item.replace(b'"prompt_tokens": 0', b'"prompt_tokens": ' + _STREAM_NUMBER) for item in [*data, b"[DONE]"]]


def _usage(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": None}


def _event(
    path: str, schedule: Schedule, model: str, before: int, now: int, reason: str | None, silent: bool
) -> dict[str, Any]:
    start = 0 if path == "/generate" and schedule.cumulative else before
    text = "a " * (now - start)
    if path == "/generate":
        meta: dict[str, Any] = {
            "id": "0123456789abcdef",
            "finish_reason": None if reason is None else {"type": reason, "length": now},
            "prompt_tokens": 0,
            "weight_version": "default",
            "cached_tokens": 0,
        }
        if not silent:
            meta["completion_tokens"] = now
        return {"text": text, "output_ids": list(range(start, now)), "meta_info": meta}
    chat = "chat" in path
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
    choice |= {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
    event = {
        "id": "cmpl-0123456789abcdef",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1700000000,
        "model": model,
        "choices": [choice],
    }
    return event if silent else {**event, "usage": _usage(now)}


@dataclasses.dataclass
class _Connection:
    sock: socket.socket
    received: bytes = b""
    out: memoryview = dataclasses.field(default_factory=lambda: memoryview(b""))
    steps: list[bytes] = dataclasses.field(default_factory=list)
    """What is still to be sent, one element a decode step."""
    next_step: int = 0
    prefill_steps: int = 0
    content_steps: int = 0
    times: StreamTimes | None = None
    after: str = "close"
    """What follows the last byte: ``close``, ``reset`` or nothing at all (``stall``)."""
    slot: int | None = None
    """Its place in the decode batch while it has steps to go."""


class FakeServer:
    """Serves on a loopback port of its own, in a thread, until closed.

    ``faults`` maps the number of a request, from 0 in order of arrival, to one of ``FAULTS``.
    """

    def __init__(self, schedule: Schedule = Schedule(), faults: Mapping[int, str] | None = None, port: int = 0) -> None:
        unknown = set((faults or {}).values()) - set(FAULTS)
        if unknown:
            raise ValueError(f"faults {sorted(unknown)} are unknown; expected some of {', '.join(FAULTS)}")
        self.schedule = schedule
        self.faults = dict(faults or {})
        self.seen: list[bytes] = []
        """The head and body of every POST."""
        self.times: list[StreamTimes] = []
        self._rendered: dict[tuple[str, str], list[bytes]] = {}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._wake, self._woken = socket.socketpair()
        self._epoll.register(self._woken.fileno(), select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        # a stream keeps its slot, so that it is served at the same moment of its first step and of its last
        self._slots: list[_Connection | None] = []
        self._free_slots: collections.deque[int] = collections.deque()
        self._ended: list[_Connection] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FakeServer:
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        if self._thread is not None:
            self._thread.join()

    def serve(self, stop_fd: int | None = None) -> None:
        """Serve until the context ends, or until ``stop_fd`` reads as ended."""
        if stop_fd is not None:
            self._epoll.register(stop_fd, select.EPOLLIN)
        stops = {self._woken.fileno(), stop_fd}
        step_ns = int(self.schedule.step_ms * 1e6)
        due = 0
        while True:
            wait_s = -1.0
            if self._busy():
                left = due - time.perf_counter_ns()
                wait_s = max(0, left // 1_000_000) / 1e3  # epoll counts in milliseconds, rounded up
            for fd, mask in self._epoll.poll(wait_s):
                if fd in stops:
                    self._close_all()
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._ready(self._connections[fd], mask)
            if not self._busy():
                due = 0
                continue
            now = time.perf_counter_ns()
            due = due or now + step_ns
            if due - now < 1_000_000:
                if due > now:
                    time.sleep((due - now) / 1e9)
                self._step(due)
                due += step_ns

    def _busy(self) -> bool:
        return len(self._slots) > len(self._free_slots) or bool(self._ended)

    def _join(self, connection: _Connection) -> None:
        if not self._free_slots:
            self._free_slots.append(len(self._slots))
            self._slots.append(None)
        connection.slot = self._free_slots.popleft()
        self._slots[connection.slot] = connection

    def _leave(self, connection: _Connection) -> None:
        if connection.slot is not None:
            self._slots[connection.slot] = None
            self._free_slots.append(connection.slot)
            connection.slot = None

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = _Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _ready(self, connection: _Connection, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._flush(connection)
            return
        try:
            data = connection.sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received += data
        head, blank, body = connection.received.partition(b"\r\n\r\n")
        if not blank or connection.steps or connection.out:
            return
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
        )
        if len(body) >= length:
            self._answer(connection, head, connection.received)

    def _answer(self, connection: _Connection, head: bytes, request: bytes) -> None:
        method, path = head.split(b" ", 2)[:2]
        if method == b"GET":
            self._get(connection, path.decode())
            return
        number = len(self.seen)
        self.seen.append(request)
        fault = self.faults.get(number, "")
        refusal = _refusal(fault, self.schedule, head)
        if refusal:
            connection.out = memoryview(refusal)
            self._flush(connection)
            return
        times = StreamTimes(number + 1, self.schedule.tokens, min(self.schedule.first_tokens, self.schedule.tokens))
        times.asked_ns = time.perf_counter_ns()
        steps = self._framed(path.decode(), fault)
        last = len(steps) - 1
        steps = [*steps[:-1], steps[last].replace(_STREAM_NUMBER, b"%9d" % (number + 1))]
        connection.times, connection.content_steps, connection.after = times, len(steps), _AFTER.get(fault, "close")
        self.times.append(times)
        if self.schedule.step_ms:
            connection.steps, connection.prefill_steps = steps, self.schedule.prefill_steps
            self._join(connection)
            return
        times.first_ns = times.first_due_ns = time.perf_counter_ns()
        connection.out = memoryview(b"".join(steps))
        self._flush(connection)

    def _get(self, connection: _Connection, path: str) -> None:
        pages: dict[str, Any] = {
            "/get_model_info": {"model_path": self.schedule.model, "tokenizer_path": self.schedule.model},
            "/v1/models": {"object": "list", "data": [{"id": self.schedule.model, "object": "model"}]},
            "/health": {},
            "/report": {"requests": len(self.seen), "streams": [dataclasses.asdict(times) for times in self.times]},
        }
        status = "200 OK" if path in pages else "404 Not Found"
        connection.out = memoryview(_response(status, json.dumps(pages.get(path)).encode()))
        self._flush(connection)

    def _framed(self, path: str, fault: str) -> list[bytes]:
        """The answer as bytes on the wire, one element a step; the closing events go with the last content."""
        key = (path, fault)
        if key not in self._rendered:
            data = render(path, self.schedule, fault)
            # the server's own number stands once, in the event that ends the answer
            data = [item.replace(_STREAM_NUMBER, b"        0") for item in data[:-3]] + data[-3:]
            ending = b"\r\n\r\n" if fault == "crlf" else b"\n\n"
            chunks = [_chunk(b"data: " + item + ending) for item in data]
            closing = 1 if path == "/generate" or fault == "no_usage" else 2
            steps = [*chunks[: -1 - closing], b"".join(chunks[-1 - closing :]) + b"0\r\n\r\n"]
            steps[0] = _STREAM_HEAD + steps[0]
            if fault in ("reset", "close", "stall"):
                steps = steps[: len(steps) // 2]
            if fault == "cut_event":
                steps = [*steps[: len(steps) // 2], _chunk(b'data: {"text": "a') + b"0\r\n\r\n"]
            self._rendered[key] = steps
        return self._rendered[key]

    def _step(self, due: int) -> None:
        """One decode step: the next event of every stream; the streams that the step before ended are closed after it.

        Closing at once would take the processor from a client on this machine while it stamps the last event.
        """
        closing, self._ended = self._ended, []
        for connection in self._slots:
            if connection is None:
                continue
            if connection.prefill_steps:
                connection.prefill_steps -= 1
                continue
            times = connection.times
            step = connection.next_step
            connection.next_step = step + 1
            if times is not None and step in (0, connection.content_steps - 1):
                now = time.perf_counter_ns()
                if step == 0:
                    times.first_ns, times.first_due_ns = now, due
                times.last_ns, times.last_due_ns = now, due
            data = connection.steps[step]
            connection.out = memoryview(bytes(connection.out) + data if connection.out else data)
            self._send(connection)
            if connection.next_step >= len(connection.steps):
                self._leave(connection)
                self._ended.append(connection)
        for connection in closing:
            self._flush(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            while connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
        except BlockingIOError:
            return
        except OSError:
            connection.out, connection.after = memoryview(b""), "close"
            connection.next_step = len(connection.steps)

    def _flush(self, connection: _Connection) -> None:
        """Send what can be sent; end the connection after the last byte."""
        if connection.sock.fileno() < 0:
            return
        self._send(connection)
        if connection.out:
            self._epoll.modify(connection.sock.fileno(), select.EPOLLOUT | select.EPOLLIN)
            return
        if connection.next_step < len(connection.steps):
            return
        if connection.times is not None and not connection.times.last_ns:
            connection.times.last_ns = connection.times.last_due_ns = time.perf_counter_ns()
        if connection.after == "stall":
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN)
        else:
            if connection.after == "reset":
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        if self._connections.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            connection.sock.close()
            self._leave(connection)

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.sock.close()
        for sock in (self._listener, self._wake, self._woken):
            sock.close()
        self._epoll.close()


_AFTER = {"reset": "reset", "stall": "stall", "keep_open": "stall"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _response(status: str, body: bytes, *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def _refusal(fault: str, schedule: Schedule, head: bytes) -> bytes:
    """The answer to a request that gets no stream; empty where it gets one."""
    if fault == "busy":
        return _response("429 Too Many Requests", b'{"detail": "busy"}', "Retry-After: 0")
    if fault == "failure":
        return _response("500 Internal Server Error", b'{"detail": "CUDA error"}')
    if fault == "redirect":
        return _response("307 Temporary Redirect", b"", f"Location: {schedule.redirect_to}")
    if fault == "unauthorized":  # quotes the key back, as careless servers do
        return _response("401 Unauthorized", b'{"detail": "refused: %s"}' % head.replace(b"\r\n", b" "))
    if fault == "no_http":
        return b"SSH-2.0-OpenSSH_9.6\r\n\r\n"
    return b""


@dataclasses.dataclass
class FakeServerProcess:
    """A fake server in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, schedule: Schedule) -> FakeServerProcess:
        """Start it and wait for its port."""
        command = [sys.executable, "-I", "-S", str(pathlib.Path(__file__)), json.dumps(dataclasses.asdict(schedule))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        line = process.stdout.readline() if process.stdout else b""
        if not line.strip().isdigit():
            raise RuntimeError(f"the fake server did not start; it said {line!r:.80}")
        return cls(f"http://127.0.0.1:{int(line)}", process)

    def __enter__(self) -> FakeServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(timeout=10)


def main(settings: str) -> None:
    """Serve until standard input ends."""
    server = FakeServer(Schedule(**json.loads(settings)))
    print(server.port, flush=True)
    server.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1])
