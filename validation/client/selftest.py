"""The client measures its own error, before it measures a server.

It puts the load that is about to come (same concurrency, same number of processes) on a fake server on this machine
and compares each request's TPOT and TTFT with what the server did. Judging decides what error is too large.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from validation.client.backend import Backend, Prompt, Sampling
from validation.client.fake_server import FakeServerProcess, Schedule, StreamTimes
from validation.client.identity import get_json
from validation.client.load import Job, LoadReport, run_load
from validation.client.metrics import metrics
from validation.client.workers import ClientError
from validation.records import Request

STEP_MS = 20.0
"""A decode step of a large model at moderate concurrency (the shape of the seed's table)."""
PREFILL_STEPS = 5
"""The fake server's answers begin at least this many steps after the request; a real server's prefill takes longer."""
PREFILL_MS_PER_STREAM = 0.25
"""And not before the client has opened its connections: client and server take 0.2 ms for one on a busy machine."""
SERVER_EVENTS_PER_S = 10_000
"""What one process of the fake server sends and keeps 64 steps to 0.1 % of its plan; a fake server that is late itself
says nothing about the client. It reaches 50,000 on an idle machine of two cores, but a thousand first events of cold
connections take some 5 ms longer to send than those that follow."""


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """The client's error at one concurrency. Percentages are of the fake server's own figures."""

    concurrency: int
    processes: int
    step_ms: float
    requests: int
    errors: int
    tpot_bias_percent: float
    """Mean TPOT as the client saw it against the mean that the server kept, minus one: what a comparison is off by."""
    tpot_error_p95_percent: float
    """95th percentile over requests of the absolute TPOT error."""
    first_chunk_delay_ms: float
    """Mean delay from sending to stamping the first chunk."""
    server_schedule_error_percent: float
    """How far the fake server's mean TPOT was off its own plan; the biases above do not contain it."""
    client_cpu_us_per_token: float
    loop_lag_p99_ms: float

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return dataclasses.asdict(self)


def prefill_steps(concurrency: int, step_ms: float) -> int:
    """Steps between a request and its first event that let ``concurrency`` connections be opened before."""
    return max(PREFILL_STEPS, math.ceil(concurrency * PREFILL_MS_PER_STREAM / step_ms))


def self_test(
    backend: Backend,
    concurrency: int,
    *,
    step_ms: float | None = None,
    tokens: int = 64,
    tokens_per_event: int = 1,
    rounds: int = 2,
    processes: int | None = None,
) -> SelfTest:
    """Measure the client against a fake server that ``concurrency`` requests stream from at a time.

    ``step_ms`` None: 20 ms, or as long as the fake server needs to keep its own schedule. Takes about
    ``rounds * (tokens + 5) * step_ms``, plus half a second.

    Raises:
        ClientError: a request failed; nothing can be said about the client then.
    """
    step_ms = step_ms or max(STEP_MS, concurrency / SERVER_EVENTS_PER_S * 1e3)
    prefill = prefill_steps(concurrency, step_ms)
    schedule = Schedule(tokens, step_ms, tokens_per_event, prefill_steps=prefill)
    sampling = Sampling(max_new_tokens=tokens, ignore_eos=True)
    count = rounds * concurrency
    jobs = [Job(Prompt(text="a"), sampling, "self-test", "self-test", 0, 0, "self-test", i) for i in range(count)]
    found: list[Request] = []
    with FakeServerProcess.start(schedule) as server:
        limit_s = 30 + 10 * (tokens + prefill) * step_ms / 1e3
        report = run_load(
            server.url, backend, jobs, concurrency, found.append, processes=processes, max_retries=0, timeout_s=limit_s
        )
        told = get_json(server.url, "/report")
    if report.errors or not isinstance(told, Mapping):
        raise ClientError(
            f"the client's self-test failed: {json.dumps(report.error_reasons) or 'no report'}; fix it first"
        )
    times = [StreamTimes(**stream) for stream in told["streams"]]
    return compare(found, times, schedule, report, concurrency)


def compare(
    found: Sequence[Request], times: Iterable[StreamTimes], schedule: Schedule, report: LoadReport, concurrency: int
) -> SelfTest:
    """The client's stamps in ``found`` against the server's ``times``; a request's ``prompt_tokens`` is its stream."""
    by_number = {stream.number: stream for stream in times}
    client_ms, server_ms, planned_ms, errors, delays = [], [], [], [], []
    for request in found:
        stream = by_number[request.prompt_tokens or 0]
        measured = metrics(request)
        if measured.tpot_ms is None or stream.tokens <= stream.first_tokens:
            raise ClientError("the self-test's answers have one chunk; give it more tokens than fit the first event")
        after_first = stream.tokens - stream.first_tokens
        true_ms = (stream.last_ns - stream.first_ns) / after_first / 1e6
        client_ms.append(measured.tpot_ms)
        server_ms.append(true_ms)
        planned_ms.append((stream.last_due_ns - stream.first_due_ns) / after_first / 1e6)
        errors.append(abs(measured.tpot_ms / true_ms - 1))
        delays.append(measured.ttft_ms)
    tokens = sum(request.output_tokens or 0 for request in found)
    return SelfTest(
        concurrency=concurrency,
        processes=report.processes,
        step_ms=schedule.step_ms,
        requests=len(found),
        errors=report.errors,
        tpot_bias_percent=100 * (statistics.fmean(client_ms) / statistics.fmean(server_ms) - 1),
        tpot_error_p95_percent=100 * sorted(errors)[math.ceil(0.95 * len(errors)) - 1],
        first_chunk_delay_ms=statistics.fmean(delays),
        server_schedule_error_percent=100 * (statistics.fmean(server_ms) / statistics.fmean(planned_ms) - 1),
        client_cpu_us_per_token=report.client_cpu_s / tokens * 1e6,
        loop_lag_p99_ms=report.loop_lag_p99_ms,
    )
