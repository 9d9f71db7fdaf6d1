"""The processes that put a load on a server: how they are started, fed, listened to and ended.

Each runs ``hotloop`` in a session of its own, so that Ctrl-C reaches the caller only, and ends with its connection to
the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from validation.client import hotloop

MAX_JOBS = 16384
"""The queue of jobs is a pipe of 64 KiB (Linux's default) with four bytes a job."""
RECEIVE_BYTES = 1 << 20
"""At first, for what one client process sends; its socket holds some 200 KiB, and a frame may hold more."""
READY_S = 30.0
"""A client process starts in some 50 ms; this long only on a machine that has stopped working."""


class ClientError(RuntimeError):
    """The client itself cannot go on. What a server does wrong is ``Request.error``, never an exception."""


@contextlib.contextmanager
def tickets(count: int) -> Iterator[int]:
    """The reading end of a pipe that holds each job's number once: the next goes to the first process with a place."""
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, struct.pack(f"<{count}I", *range(count)))
    finally:
        os.close(write_fd)
    try:
        yield read_fd
    finally:
        os.close(read_fd)


def _message(plan: hotloop.Plan) -> bytes:
    text = json.dumps(dataclasses.asdict(plan)).encode()
    return struct.pack("<I", len(text)) + text


@dataclasses.dataclass
class Worker:
    """One client process and the frames that it has sent so far."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    log: IO[bytes]
    received: bytearray = dataclasses.field(default_factory=lambda: bytearray(RECEIVE_BYTES))
    filled: int = 0
    """So much of ``received`` holds what came. It is used again and again: fresh memory is paid for page by page."""
    done: bool = False

    @classmethod
    @contextlib.contextmanager
    def start(cls, plan: hotloop.Plan, tickets_fd: int, bodies_fd: int) -> Iterator[Worker]:
        """Start a process and give it its plan; it ends with the context, its work done or not."""
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        fds = (theirs.fileno(), tickets_fd, bodies_fd)
        command = [sys.executable, "-I", "-S", str(pathlib.Path(hotloop.__file__)), *map(str, fds)]
        try:
            # a session of its own: Ctrl-C in the terminal is the caller's to handle
            process = subprocess.Popen(
                command, pass_fds=fds, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        except BaseException:
            ours.close()
            log.close()
            raise
        finally:
            theirs.close()
        try:
            ours.settimeout(READY_S)
            ours.sendall(_message(plan))  # in no local variable: it carries the API key, and tracebacks show locals
            yield cls(process, ours, log)
        except (BrokenPipeError, ConnectionResetError):
            raise ClientError(f"a client process ended early with status {process.wait()}: {_tail(log)}") from None
        finally:
            ours.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()

    def ready(self) -> None:
        """Wait until it has its plan; raises ``ClientError`` where it ends instead."""
        try:
            said = self.control.recv(1)
        except TimeoutError:
            raise ClientError(
                f"a client process was not ready after {READY_S:g} s; is the machine overloaded?"
            ) from None
        if said != b"r":
            raise self.died()

    def died(self) -> ClientError:
        """Why it ended, from its last line."""
        return ClientError(f"a client process ended early with status {self.process.wait()}: {_tail(self.log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a process says: metadata, and for a finished request the bytes that came back."""

    meta: dict[str, Any]
    raw: bytes
    received: npt.NDArray[np.int64]
    """How many of the bytes had come with each read."""
    stamps_ns: npt.NDArray[np.int64]
    """The time of each read."""


def frames(workers: Sequence[Worker]) -> Iterator[Frame]:
    """Every frame of every worker, as it comes, until all have ended."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            worker.control.setblocking(False)
            selector.register(worker.control, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                worker = key.data
                try:
                    size = worker.control.recv_into(memoryview(worker.received)[worker.filled :])
                except BlockingIOError:
                    continue
                except ConnectionError:
                    size = 0
                if not size:
                    selector.unregister(worker.control)
                    if not worker.done:
                        raise worker.died()
                    continue
                worker.filled += size
                for frame in _whole_frames(worker):
                    worker.done = worker.done or "job" not in frame.meta
                    yield frame


def _whole_frames(worker: Worker) -> Iterator[Frame]:
    """Take whole frames off the front of what ``worker`` sent, and make room for what follows."""
    view, start = memoryview(worker.received), 0
    while worker.filled - start >= hotloop.FRAME.size:
        meta_size, count, body_size = hotloop.FRAME.unpack_from(view, start)
        meta = start + hotloop.FRAME.size
        stamps = meta + meta_size
        body = stamps + 12 * count
        end = body + body_size
        if worker.filled < end:
            if end - start > len(view):
                worker.received = bytearray(2 * (end - start))
            break
        yield Frame(
            meta=orjson.loads(view[meta:stamps]),
            raw=bytes(view[body:end]),
            received=np.frombuffer(view, "u4", count, stamps + 8 * count).cumsum(dtype="i8"),
            stamps_ns=np.frombuffer(view, "i8", count, stamps).copy(),
        )
        start = end
    worker.filled -= start
    memoryview(worker.received)[: worker.filled] = view[start : start + worker.filled]
