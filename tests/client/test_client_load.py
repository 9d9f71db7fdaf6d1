"""A load over a real socket: records, concurrency, several processes, and what survives an interruption."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from unittest import mock

import pytest

import validation
from validation import records
from validation.client import Backend, ClientError, Job, Prompt, Sampling, hotloop, remaining, run_load, workers
from validation.client.fake_server import FakeServer, FakeServerProcess, Schedule
from validation.client.metrics import metrics
from validation.discovery import load_all

BACKENDS: dict[str, Backend] = load_all("scenarios/backends", "BACKEND")
NATIVE = BACKENDS["sglang_native"]
ROOT = pathlib.Path(validation.__file__).parent.parent


def jobs(count: int, tokens: int = 8, scenario: str = "s") -> list[Job]:
    return [Job(Prompt(text="x"), Sampling(tokens, ignore_eos=True), "l", "a", 0, 0, scenario, i) for i in range(count)]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_job_becomes_one_record(backend: str, processes: int) -> None:
    found: list[records.Request] = []
    with FakeServer(Schedule(tokens=8)) as server:
        report = run_load(server.url, BACKENDS[backend], jobs(20), 6, found.append, processes=processes)
    assert sorted(request.index for request in found) == list(range(20))
    assert (report.requests, report.errors, report.retries, report.processes) == (20, 0, 0, processes)
    for request in found:
        assert records.from_json(records.to_json(request) | {"chunk_ns": list(request.chunk_ns)} | _lists(request))
        assert request.text == "a " * 8
        assert request.chunk_tokens == tuple(range(1, 9))
        assert (request.output_tokens, request.finish_reason) == (8, "length")


def _lists(request: records.Request) -> dict[str, object]:
    fields = ("output_ids", "chunk_tokens")
    return {name: list(value) if (value := getattr(request, name)) is not None else None for name in fields}


@pytest.mark.parametrize("cumulative", [True, False], ids=["cumulative", "incremental"])
@pytest.mark.parametrize("packed", [1, 3])
def test_token_ids_and_counts_of_both_streaming_modes(packed: int, cumulative: bool) -> None:
    found: list[records.Request] = []
    schedule = Schedule(tokens=11, tokens_per_event=packed, first_tokens=2, cumulative=cumulative)
    with FakeServer(schedule) as server:
        run_load(server.url, NATIVE, jobs(1, 11), 1, found.append)
    [request] = found
    assert request.error is None
    assert request.output_ids == tuple(range(11))
    assert request.text == "a " * 11
    assert request.chunk_tokens == (*range(2, 11, packed), 11)


def test_no_more_than_the_limit_are_in_flight_and_the_wait_is_told() -> None:
    found: list[records.Request] = []
    with FakeServer(Schedule(tokens=4, step_ms=10)) as server:
        report = run_load(server.url, NATIVE, jobs(6, 4), 2, found.append)
    starts = sorted((request.queued_ns, request.queued_ns + request.end_ns) for request in found)
    for start, _ in starts:
        assert sum(begin <= start < end for begin, end in starts) <= 2
    assert starts[0][0] < 25e6 < starts[-1][0]
    assert report.queued_max_s == starts[-1][0] / 1e9


def test_stamps_follow_the_steps_of_the_server() -> None:
    found: list[records.Request] = []
    with FakeServer(Schedule(tokens=6, step_ms=20)) as server:
        run_load(server.url, NATIVE, jobs(1, 6), 1, found.append)
    tpot_ms = metrics(found[0]).tpot_ms
    assert tpot_ms is not None
    assert 15 < tpot_ms < 40


def test_a_whole_body_is_an_answer_without_chunk_times() -> None:
    answer = NATIVE.parse(
        [b'{"text": "four", "meta_info": {"completion_tokens": 1, "finish_reason": {"type": "stop"}}}']
    )
    assert (answer.text, answer.output_tokens, answer.chunk_events) == ("four", 1, (0,))


def test_resuming_sends_what_is_not_recorded_and_no_error_twice() -> None:
    found: list[records.Request] = []
    with FakeServer(Schedule(tokens=8), {1: "zero_tokens"}) as server:
        run_load(server.url, NATIVE, jobs(3), 1, found.append)
        left = remaining(jobs(5), found)
        run_load(server.url, NATIVE, left, 1, found.append)
    assert [job.index for job in left] == [3, 4]
    assert sorted(request.index for request in found) == [0, 1, 2, 3, 4]
    assert remaining(jobs(5, scenario="other"), found) == jobs(5, scenario="other")


PROGRAM = """
import pathlib, sys
from validation.client import *
from validation.discovery import load_all
from validation.records import Journal, read_file

if __name__ == "__main__":
    url, path = sys.argv[1], pathlib.Path(sys.argv[2])
    backend = load_all("scenarios/backends", "BACKEND")["sglang_native"]
    jobs = [Job(Prompt(text="x"), Sampling(8), "l", "a", 0, 0, "s", i) for i in range(400)]
    done = list(read_file(path)) if path.exists() else []
    with Journal(path) as journal:
        def keep(request):
            journal.append(request)
            journal.sync()
            print(request.index, flush=True)
        run_load(url, backend, remaining(jobs, done), 4, keep, processes=2)
"""


def _children(pid: int) -> list[int]:
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _gone(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_an_interrupted_load_goes_on_where_it_stopped(kill: signal.Signals, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "requests.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with FakeServerProcess.start(Schedule(tokens=8, step_ms=2)) as server:
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), server.url, str(path)]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        assert first.stdout is not None
        for _ in range(20):
            first.stdout.readline()
        workers = _children(first.pid)
        first.send_signal(kill)
        first.communicate(timeout=20)
        assert len(workers) == 2
        kept = [r for r in records.read_file(path) if isinstance(r, records.Request)]
        assert 20 <= len(kept) < 400
        second = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True)
    assert all(_gone(worker) for worker in workers)
    again = [int(line) for line in second.stdout.split()]
    whole = [r.index for r in records.read_file(path) if isinstance(r, records.Request)]
    assert sorted(whole) == list(range(400))
    assert not set(again) & {request.index for request in kept}


def test_a_client_process_that_dies_is_said_and_not_waited_for() -> None:
    def murder(_: records.Request) -> None:
        for child in _children(os.getpid()):
            if b"hotloop" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)

    with FakeServer(Schedule(tokens=50, step_ms=5)) as server, pytest.raises(ClientError, match="ended early"):
        run_load(server.url, NATIVE, jobs(9, 50), 1, murder)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://127.0.0.1:1", "expected http://"),
        ("http://user:pass@127.0.0.1:1", "without user"),
        ("127.0.0.1:1", "expected http://"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        run_load(url, NATIVE, jobs(1), 1, lambda request: None)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("size", [16, 64, 100, 1 << 20])
def test_frames_do_not_depend_on_the_size_of_the_buffer(size: int) -> None:
    bodies = [b"", b"one", b"x" * 500, b"y" * 20, b"z" * 2000]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for job, body in enumerate(bodies):
            buffers = [struct.pack("<qqII", 5, 6 + job, 0, len(body)), body]
            theirs.sendall(b"".join(hotloop.frame({"job": job}, buffers, 2, len(body))))
        theirs.shutdown(socket.SHUT_WR)
        worker = workers.Worker(mock.Mock(), ours, io.BytesIO(), received=bytearray(size), done=True)
        found = list(workers.frames([worker]))
    assert [(frame.meta, frame.raw) for frame in found] == [({"job": job}, body) for job, body in enumerate(bodies)]
    assert [frame.stamps_ns.tolist() for frame in found] == [[5, 6 + job] for job in range(len(bodies))]
    assert [frame.received.tolist() for frame in found] == [[0, len(body)] for body in bodies]


def test_two_jobs_of_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="same launch"):
        run_load("http://127.0.0.1:1", NATIVE, jobs(1) * 2, 1, lambda request: None)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_no_concurrency_is_refused(concurrency: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to"):
        run_load("http://127.0.0.1:1", NATIVE, jobs(1), concurrency, lambda request: None)
