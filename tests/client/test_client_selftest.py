"""The client's self-test: it runs, and it sees a client that is wrong."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from validation.client import Backend, ClientError, LoadReport
from validation.client.fake_server import FakeServer, Schedule, StreamTimes, _Connection
from validation.client.selftest import compare, prefill_steps, self_test
from validation.discovery import load_all
from validation.records import Request

NATIVE: Backend = load_all("scenarios/backends", "BACKEND")["sglang_native"]
MS = 1_000_000
REPORT = LoadReport(2, 0, 0, {}, 1.0, 0.002, 0.001, 1, 0.1, 0.2, 0.3, 0.0)


def test_it_runs_at_the_concurrency_asked_for() -> None:
    found = self_test(NATIVE, 8, step_ms=10, tokens=12, rounds=1)
    assert (found.concurrency, found.requests, found.errors, found.processes) == (8, 8, 0, 1)
    assert abs(found.tpot_bias_percent) < 20
    assert found.client_cpu_us_per_token > 0


def test_packed_tokens_are_counted_by_the_server() -> None:
    found = self_test(NATIVE, 2, step_ms=10, tokens=13, tokens_per_event=4, rounds=1)
    assert abs(found.tpot_bias_percent) < 20


def _case(stretch: float, late_ms: float) -> tuple[list[Request], list[StreamTimes]]:
    """Two streams of 11 tokens at 20 ms, as a client saw them whose clock runs ``stretch`` and that stamps late."""
    times = [StreamTimes(n, 11, 1, 0, n * MS, n * MS + 200 * MS, 0, 200 * MS) for n in (1, 2)]
    stamps = tuple(int((5 * MS + i * 20 * MS) * stretch + late_ms * MS) for i in range(11))
    request = Request(
        "l", "a", 0, 0, "s", 0, 1, 0, 11, "length", "", None, stamps, tuple(range(1, 12)), 0, stamps[-1], None
    )
    return [request, dataclasses.replace(request, index=1, prompt_tokens=2)], times


@pytest.mark.parametrize(("stretch", "bias_percent"), [(1.0, 0.0), (1.01, 1.0), (0.995, -0.5)])
def test_a_client_whose_steps_are_wrong_is_seen(stretch: float, bias_percent: float) -> None:
    found, times = _case(stretch, 0)
    result = compare(found, times, Schedule(11, 20), REPORT, 2)
    assert result.tpot_bias_percent == pytest.approx(bias_percent, abs=1e-6)
    assert result.tpot_error_p95_percent == pytest.approx(abs(bias_percent), abs=1e-6)
    assert result.server_schedule_error_percent == pytest.approx(0)


def test_errors_of_opposite_sign_show_in_the_spread() -> None:
    (early, _), times = _case(0.99, 0)
    (_, late), _ = _case(1.01, 0)
    result = compare([early, late], times, Schedule(11, 20), REPORT, 2)
    assert result.tpot_bias_percent == pytest.approx(0, abs=1e-6)
    assert result.tpot_error_p95_percent == pytest.approx(1)


def test_a_constant_delay_is_no_bias_of_the_step() -> None:
    found, times = _case(1.0, 7)
    result = compare(found, times, Schedule(11, 20), REPORT, 2)
    assert result.tpot_bias_percent == pytest.approx(0, abs=1e-6)
    assert result.first_chunk_delay_ms == pytest.approx(12)


def test_a_server_off_its_plan_is_told_apart_from_the_client() -> None:
    found, times = _case(1.0, 0)
    times = [dataclasses.replace(stream, last_due_ns=100 * MS) for stream in times]
    result = compare(found, times, Schedule(11, 20), REPORT, 2)
    assert result.server_schedule_error_percent == pytest.approx(100)
    assert result.tpot_bias_percent == pytest.approx(0, abs=1e-6)


def test_one_chunk_says_nothing() -> None:
    with pytest.raises(ClientError, match="one chunk"):
        self_test(NATIVE, 1, step_ms=1, tokens=1, rounds=1)


@pytest.mark.parametrize(("concurrency", "step_ms", "steps"), [(64, 20, 5), (1200, 20, 15), (1200, 120, 5)])
def test_answers_begin_when_the_connections_are_open(concurrency: int, step_ms: float, steps: int) -> None:
    assert prefill_steps(concurrency, step_ms) == steps


def test_a_stream_of_the_fake_server_keeps_its_place_in_the_step() -> None:
    """Else the streams behind one that ends would be served earlier in their last step than in their first."""
    with FakeServer(Schedule(4, 20)) as server, socket.socket() as sock:
        first, second, third, fourth = (_Connection(sock) for _ in range(4))
        for stream in (first, second, third):
            server._join(stream)
        server._leave(first)
        server._leave(second)
        server._join(fourth)
        assert (fourth.slot, third.slot) == (0, 2)
        server._join(second)
        assert (fourth.slot, second.slot, third.slot) == (0, 1, 2)
        for stream in (second, third, fourth):
            server._leave(stream)
        assert not server._busy()
