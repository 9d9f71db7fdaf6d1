"""Everything that a server or a network can do wrong, over a real socket: an error, counted, and never an answer."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from validation.client import Backend, Job, LoadReport, Prompt, Sampling, run_load
from validation.client.fake_server import LONG_LINE_BYTES, FakeServer, Schedule
from validation.client.hotloop import HotLoop, Plan, retry_delay_s
from validation.client.identity import Watch
from validation.discovery import load_all
from validation.records import Journal, Request, read_file

BACKENDS: dict[str, Backend] = load_all("scenarios/backends", "BACKEND")
NATIVE = BACKENDS["sglang_native"]
TOKENS = 8


def jobs(count: int = 1, tokens: int = TOKENS, ignore_eos: bool = True) -> list[Job]:
    sampling = Sampling(tokens, ignore_eos=ignore_eos)
    return [Job(Prompt(text="one and one"), sampling, "launch", "baseline", 0, 0, "s", i) for i in range(count)]


def load(
    server: FakeServer | str,
    backend: Backend = NATIVE,
    count: int = 1,
    concurrency: int = 1,
    max_retries: int = 1,
    timeout_s: float = 20.0,
    stall_s: float | None = None,
    ignore_eos: bool = True,
) -> tuple[LoadReport, list[Request]]:
    found: list[Request] = []
    url = server if isinstance(server, str) else server.url
    report = run_load(
        url,
        backend,
        jobs(count, ignore_eos=ignore_eos),
        concurrency,
        found.append,
        max_retries=max_retries,
        backoff_s=0.001,
        timeout_s=timeout_s,
        stall_s=stall_s,
    )
    return report, sorted(found, key=lambda request: request.index)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: bound, and nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


PASSING = ["busy", "failure", "reset", "close", "no_http"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_retried_and_counted(fault: str) -> None:
    with FakeServer(Schedule(TOKENS), {0: fault}) as server:
        report, [request] = load(server)
    assert request.error is None
    assert request.output_tokens == TOKENS
    assert (request.retries, report.retries, report.errors) == (1, 1, 0)
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("busy", "429"),
        ("failure", "500"),
        ("reset", "reset"),
        ("close", "closed inside the answer"),
        ("no_http", "before the end of the answer's headers"),
    ],
)
def test_retries_are_bounded(fault: str, says: str) -> None:
    with FakeServer(Schedule(TOKENS), dict.fromkeys(range(9), fault)) as server:
        report, [request] = load(server, max_retries=2)
    assert request.error is not None
    assert says in request.error.lower()
    assert (request.retries, report.errors, len(server.seen)) == (2, 1, 3)
    assert request.output_tokens is None


def test_refused_connection(closed_port: int) -> None:
    report, [request] = load(f"http://127.0.0.1:{closed_port}", max_retries=2)
    assert request.error is not None
    assert "refused while connecting" in request.error
    assert (request.retries, report.errors) == (2, 1)


def test_the_answer_after_a_retry_is_timed_from_its_own_start() -> None:
    with FakeServer(Schedule(TOKENS), {0: "busy"}) as server:
        _, [request] = load(server)
    assert 0 < request.chunk_ns[0] <= request.chunk_ns[-1] <= request.end_ns


FINAL = [
    ("truncated", "without a finish reason"),
    ("cut_event", "inside an event"),
    ("invalid_json", "not valid json"),
    ("invalid_utf8", "not valid json"),
    ("out_of_order", "out of order|backwards"),
    ("zero_tokens", "zero tokens"),
    ("early_eos", "in spite of ignore_eos"),
    ("redirect", "307"),
    ("unauthorized", "401"),
    ("server_error_event", "out of memory"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("fault", "says"), FINAL, ids=[name for name, _ in FINAL])
def test_a_bad_answer_is_an_error_and_is_not_asked_for_again(fault: str, says: str, backend: str) -> None:
    with FakeServer(Schedule(TOKENS, redirect_to="http://127.0.0.2:9/"), {0: fault}) as server:
        report, [request, healthy] = load(server, BACKENDS[backend], count=2)
    assert request.error is not None
    assert any(word in request.error.lower() for word in says.split("|"))
    assert (report.errors, report.retries, len(server.seen)) == (1, 0, 2)
    assert report.error_reasons
    assert healthy.error is None


def test_counts_that_go_backwards() -> None:
    with FakeServer(Schedule(TOKENS), {0: "backwards"}) as server:
        _, [request] = load(server)
    assert request.error is not None
    assert "went backwards" in request.error


def test_an_early_end_is_an_answer_where_it_is_allowed() -> None:
    with FakeServer(Schedule(TOKENS), {0: "early_eos"}) as server:
        _, [request] = load(server, ignore_eos=False)
    assert (request.error, request.output_tokens, request.finish_reason) == (None, TOKENS // 2, "stop")


def test_a_stall_ends_at_the_limit_and_is_not_retried() -> None:
    with FakeServer(Schedule(TOKENS), {0: "stall"}) as server:
        report, [request] = load(server, stall_s=0.3)
    assert request.error is not None
    assert "silent for 0.3 s" in request.error
    assert (report.retries, len(server.seen)) == (0, 1)


def test_a_slow_request_ends_at_the_timeout() -> None:
    with FakeServer(Schedule(tokens=100, step_ms=50)) as server:
        _, [request] = load(server, timeout_s=0.3)
    assert request.error == "no end after 0.3 s"


def test_a_server_that_keeps_the_connection_open_is_not_waited_for() -> None:
    with FakeServer(Schedule(TOKENS), {0: "keep_open"}) as server:
        _, [request] = load(server, stall_s=10)
    assert request.error is None
    assert request.end_ns < 2e9


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_usage_is_unknown_and_no_guess(backend: str) -> None:
    with FakeServer(Schedule(TOKENS), {0: "no_usage"}) as server:
        _, [request] = load(server, BACKENDS[backend])
    assert request.error is None
    assert (request.output_tokens, request.chunk_tokens) == (None, None)
    assert len(request.chunk_ns) == TOKENS
    assert request.text == "a " * TOKENS


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_line_of_ten_megabytes_is_read(backend: str) -> None:
    with FakeServer(Schedule(TOKENS), {0: "long_line"}) as server:
        _, [request] = load(server, BACKENDS[backend])
    assert request.error is None
    assert request.output_tokens == TOKENS
    assert LONG_LINE_BYTES >= 10_000_000


def test_carriage_returns_end_lines_too() -> None:
    with FakeServer(Schedule(TOKENS), {0: "crlf"}) as server:
        _, [request] = load(server)
    assert (request.error, request.output_tokens) == (None, TOKENS)


@pytest.mark.parametrize("backend", ["openai_completions", "openai_chat"])
def test_another_model_in_the_middle_of_a_load_is_seen_in_each_answer(backend: str) -> None:
    with FakeServer(Schedule(TOKENS), {1: "other_model", 2: "other_model"}) as server:
        report, found = load(server, BACKENDS[backend], count=4)
    assert [request.error is None for request in found] == [True, False, False, True]
    assert "model 'another'" in str(found[1].error)
    assert report.errors == 2


def test_a_server_restarted_as_another_model_is_seen_at_the_end() -> None:
    first = FakeServer(Schedule(TOKENS, model="one"))
    second = []

    def restart(request: Request) -> None:
        if request.index == 0:
            first.__exit__()
            second.append(FakeServer(Schedule(TOKENS, model="two"), port=first.port).__enter__())

    first.__enter__()
    watch = Watch(first.url)
    try:
        run_load(first.url, NATIVE, jobs(3), 1, restart, max_retries=50, backoff_s=0.01)
        assert "model_path was 'one' and is 'two'" in watch.changed()
    finally:
        for server in second:
            server.__exit__()
    assert watch.changed() == "", "a server that is gone has not become another one"


def test_an_unchanged_server_is_not_called_changed() -> None:
    with FakeServer(Schedule(TOKENS)) as server:
        watch = Watch(server.url)
        load(server)
        assert watch.changed() == ""


def test_steps_of_the_wall_clock_change_no_duration() -> None:
    body = NATIVE.body(Prompt(text="x"), Sampling(TOKENS), stream=True)
    todo, said = [0, 1], iter([1e9, -5e9, 3e9])
    found: list[list[bytes]] = []
    with FakeServer(Schedule(TOKENS, step_ms=5)) as server:
        head = f"POST {NATIVE.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        plan = Plan(socket.AF_INET, ("127.0.0.1", server.port), head, ((0, len(body)),) * 2, 1, 20, 20, 0, 0.0)
        loop = HotLoop(plan, body, lambda: todo.pop() if todo else None, found.append, wall_s=lambda: next(said))
        began = time.perf_counter_ns()
        loop.run(began)
    for buffers in found:
        count = len(buffers[2]) // 8
        stamps = struct.unpack(f"={count}q", buffers[2])
        assert began < stamps[0] <= stamps[-1] <= time.perf_counter_ns()
        assert stamps[-1] - stamps[0] >= (TOKENS - 2) * 5_000_000


def test_a_full_disk_stops_the_load_and_keeps_what_was_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    path = tmp_path / "raw" / "requests.jsonl"
    journal = Journal(path)

    def keep(request: Request) -> None:
        journal.append(request)
        journal.sync()

    with FakeServer(Schedule(TOKENS)) as server:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            run_load(server.url, NATIVE, jobs(20), 2, keep)
    monkeypatch.undo()
    journal.close()
    assert 3 <= len(list(read_file(path))) < 20


@pytest.mark.parametrize(
    ("tries", "asked", "delay_s"),
    [(1, None, 0.5), (3, None, 2.0), (1, "7", 7.0), (1, "0", 0.0), (1, "86400", 60.0), (1, "Fri, 31 Dec 1999", 0.5)],
)
def test_the_wait_before_a_retry(tries: int, asked: str | None, delay_s: float) -> None:
    assert retry_delay_s(tries, 0.5, asked) == delay_s


def test_an_error_is_recorded_with_every_field_of_its_job() -> None:
    with FakeServer(Schedule(TOKENS), {0: "zero_tokens"}) as server:
        _, [request] = load(server)
    empty = dataclasses.replace(request, error=None)
    assert request.error is not None
    assert (empty.text, empty.output_tokens, empty.scenario) == ("", None, "s")
