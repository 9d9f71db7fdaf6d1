"""Puts a load on a server and gives back one record a request, as it ends.

The processes that talk to the server stamp bytes and nothing else (``hotloop``); this one parses what they hand over,
so that parsing, journalling and the caller's own work never delay a stamp. They share one queue of jobs, so a slow one
takes fewer.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import re
import socket
import struct
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from validation import records
from validation.client import hotloop
from validation.client.backend import Answer, Backend, Prompt, Sampling
from validation.client.redaction import Secret, as_secret
from validation.client.sse import BadStream, Payloads, events_of
from validation.client.workers import MAX_JOBS, ClientError, Frame, Worker, frames, tickets

LOG = logging.getLogger(__name__)
STREAMS_PER_PROCESS = 400
"""One process stamps about 100,000 reads a second (bench/client_bench.py); 400 streams of 20 ms steps are 20,000."""
EXCERPT_BYTES = 300
"""As much of a refusal's body as an error quotes."""
LOG_MOST = 20
"""Lines about errors and retries that one load writes; a server that is down would write one a request."""
_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Job:
    """One request to send, and the place of its record."""

    prompt: Prompt
    sampling: Sampling
    launch_id: str
    arm: str
    block: int
    run: int
    scenario: str
    index: int


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What the client did and what it cost; the requests themselves went to ``on_request``."""

    requests: int
    errors: int
    retries: int
    error_reasons: dict[str, int]
    """How often each kind of error came, numbers in it left out."""
    wall_s: float
    client_cpu_s: float
    """CPU time of all client processes and of this one, from the first request to the last record."""
    stamping_cpu_s: float
    """The client processes' part of it."""
    processes: int
    loop_lag_p50_ms: float
    loop_lag_p99_ms: float
    loop_lag_max_ms: float
    """How long a batch of readable sockets waited for its last stamp; quantiles to a factor of two."""
    queued_max_s: float
    """Longest wait for the concurrency limit."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data, for ``ScenarioRun.client``."""
        return dataclasses.asdict(self)


def remaining(jobs: Sequence[Job], done: Iterable[records.Record]) -> list[Job]:
    """The jobs that no recorded request answers. One that ended in an error has ended: resuming retries nothing."""
    finished = {_place(record) for record in done if isinstance(record, records.Request)}
    return [job for job in jobs if _place(job) not in finished]


def run_load(
    url: str,
    backend: Backend,
    jobs: Sequence[Job],
    concurrency: int,
    on_request: Callable[[records.Request], None],
    *,
    api_key: str | Secret | None = None,
    timeout_s: float = 3600.0,
    stall_s: float | None = None,
    max_retries: int = 2,
    backoff_s: float = 0.5,
    processes: int | None = None,
    stream: bool = True,
) -> LoadReport:
    """Send ``jobs`` to ``url``, at most ``concurrency`` at a time, and call ``on_request`` once for each as it ends.

    A request starts (``sent_ns`` = 0) just before its connection is opened. It may take ``timeout_s``, and be silent
    for ``stall_s`` (default: ``timeout_s``). Refused and broken connections and the statuses 429 and 5xx are tried
    again, at most ``max_retries`` times, after what ``Retry-After`` says or a doubling ``backoff_s``; every retry is
    counted and logged. Redirects are never followed, so the API key goes to ``url`` and nowhere else.

    Raises:
        ValueError: a bad URL, concurrency or job list.
        ClientError: a client process died.
    """
    secret = as_secret(api_key)
    host, port, base = _address(url)
    if concurrency < 1 or not 0 < len(jobs) <= MAX_JOBS:
        raise ValueError(
            f"{len(jobs)} jobs at concurrency {concurrency}; expected 1 to {MAX_JOBS} jobs, 1 or more at a time"
        )
    if len({_place(job) for job in jobs}) < len(jobs):
        raise ValueError("two jobs have the same launch, run, scenario and index; expected one record a job")
    count = min(processes or _processes(concurrency), concurrency)
    with contextlib.ExitStack() as stack:
        bodies = stack.enter_context(tempfile.TemporaryFile())
        spans = _write_bodies(bodies, backend, jobs, stream)
        family, address = _resolve(host, port)
        plan = hotloop.Plan(
            family=family,
            address=address,
            head=_head(host, port, base + backend.path, secret, stream),
            jobs=spans,
            concurrency=0,
            timeout_s=timeout_s,
            stall_s=stall_s or timeout_s,
            max_retries=max_retries,
            backoff_s=backoff_s,
        )
        tickets_fd = stack.enter_context(tickets(len(jobs)))
        shares = [concurrency // count + (i < concurrency % count) for i in range(count)]
        workers = [
            stack.enter_context(Worker.start(dataclasses.replace(plan, concurrency=share), tickets_fd, bodies.fileno()))
            for share in shares
        ]
        for worker in workers:
            worker.ready()
        cpu_s, start_ns = time.process_time(), time.perf_counter_ns()
        for worker in workers:
            worker.control.sendall(struct.pack("<q", start_ns))
        outcome, recorder = _Outcome(), _Recorder(jobs, backend, secret)
        for frame in frames(workers):
            if "job" in frame.meta:
                request = recorder.record(frame)
                outcome.add(request, frame.meta["reasons"])
                on_request(request)
            else:
                outcome.finished(frame.meta)
        wall_s, cpu_s = (time.perf_counter_ns() - start_ns) / 1e9, time.process_time() - cpu_s
        if outcome.requests != len(jobs):
            raise ClientError(f"{outcome.requests} of {len(jobs)} requests came back; the rest was lost by the client")
    return outcome.report(wall_s, cpu_s, count)


# -- before the start ------------------------------------------------------------------------------------------------


def _place(job: Job | records.Request) -> tuple[str, int, str, int]:
    return job.launch_id, job.run, job.scenario, job.index


def _processes(concurrency: int) -> int:
    return max(1, min(os.cpu_count() or 1, -(-concurrency // STREAMS_PER_PROCESS)))


def _address(url: str) -> tuple[str, int, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.username or parts.password or parts.query:
        shown = f"{parts.scheme}://{parts.hostname}"
        raise ValueError(f"server URL {shown!r} was given; expected http://HOST:PORT without user, password or query")
    return parts.hostname, parts.port or 80, parts.path.rstrip("/")


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ClientError(f"host {host!r} cannot be resolved: {error}; check the server's URL") from None
    return int(family), tuple(address)


def _head(host: str, port: int, path: str, secret: Secret | None, stream: bool) -> str:
    shown = f"[{host}]" if ":" in host else host
    return (
        f"POST {path} HTTP/1.1\r\nHost: {shown}:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: {'text/event-stream' if stream else 'application/json'}\r\nConnection: close\r\n"
        + (secret.header() if secret else "")
    )


def _write_bodies(file: IO[bytes], backend: Backend, jobs: Sequence[Job], stream: bool) -> tuple[tuple[int, int], ...]:
    spans, offset = [], 0
    for job in jobs:
        body = backend.body(job.prompt, job.sampling, stream)
        file.write(body)
        spans.append((offset, len(body)))
        offset += len(body)
    file.flush()
    return tuple(spans)


# -- after the end ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Outcome:
    """Counts over the requests that have ended."""

    requests: int = 0
    errors: int = 0
    retries: int = 0
    logged: int = 0
    queued_max_ns: int = 0
    stamping_cpu_s: float = 0.0
    lag_max_ns: int = 0
    lag_log2: list[int] = dataclasses.field(default_factory=lambda: [0] * 64)
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, request: records.Request, retried_after: Sequence[str]) -> None:
        name = f"{request.scenario} request {request.index}"
        if retried_after:
            self._log(f"{name} was sent again, {len(retried_after)} times: {'; '.join(retried_after)}")
        if request.error is not None:
            self._log(f"{name} has no answer: {request.error}")
            self.errors += 1
            self.reasons[_NUMBER.sub("N", request.error)[:80]] += 1
        self.requests += 1
        self.retries += len(retried_after)
        self.queued_max_ns = max(self.queued_max_ns, request.queued_ns)

    def _log(self, sentence: str) -> None:
        self.logged += 1
        if self.logged <= LOG_MOST:
            LOG.warning("%s", sentence)
        elif self.logged == LOG_MOST + 1:
            LOG.warning("more errors and retries than %d: from here on they are only counted", LOG_MOST)

    def finished(self, meta: dict[str, Any]) -> None:
        self.stamping_cpu_s += meta["cpu_s"]
        self.lag_max_ns = max(self.lag_max_ns, meta["lag_max_ns"])
        self.lag_log2 = [a + b for a, b in zip(self.lag_log2, meta["lag_log2"], strict=True)]

    def lag_ms(self, quantile: float) -> float:
        rank, seen = quantile * sum(self.lag_log2), 0
        for power, batches in enumerate(self.lag_log2):
            seen += batches
            if seen and seen >= rank:
                return float(2**power / 1e6)
        return 0.0

    def report(self, wall_s: float, own_cpu_s: float, processes: int) -> LoadReport:
        return LoadReport(
            requests=self.requests,
            errors=self.errors,
            retries=self.retries,
            error_reasons=dict(self.reasons),
            wall_s=wall_s,
            client_cpu_s=self.stamping_cpu_s + own_cpu_s,
            stamping_cpu_s=self.stamping_cpu_s,
            processes=processes,
            loop_lag_p50_ms=self.lag_ms(0.5),
            loop_lag_p99_ms=self.lag_ms(0.99),
            loop_lag_max_ms=self.lag_max_ns / 1e6,
            queued_max_s=self.queued_max_ns / 1e9,
        )


class _Recorder:
    """Turns what came back into records. The first answer's model is the one that every answer must come from."""

    def __init__(self, jobs: Sequence[Job], backend: Backend, secret: Secret | None) -> None:
        self._jobs, self._backend, self._secret = jobs, backend, secret
        self._model: str | None = None

    def record(self, frame: Frame) -> records.Request:
        meta = frame.meta
        job, sent = self._jobs[meta["job"]], meta["sent_ns"]
        answer, arrived = self._answer(frame)
        error = answer.error or self._disappointment(job, answer)
        hide = self._secret.redact if self._secret else str
        return records.Request(
            launch_id=job.launch_id,
            arm=job.arm,
            block=job.block,
            run=job.run,
            scenario=job.scenario,
            index=job.index,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=None if answer.finish_reason is None else hide(answer.finish_reason),
            text=hide(answer.text),
            output_ids=answer.output_ids,
            chunk_ns=tuple([arrived[i] - sent for i in answer.chunk_events]),
            chunk_tokens=answer.chunk_tokens,
            queued_ns=meta["queued_ns"],
            end_ns=meta["end_ns"] - sent,
            error=None if error is None else hide(error),
            retries=len(meta["reasons"]),
            started_utc_s=meta["utc_s"],
        )

    def _answer(self, frame: Frame) -> tuple[Answer, Sequence[int]]:
        """What was said, and when each event of it had arrived."""
        error = frame.meta["error"]
        try:
            if not frame.raw:
                raise BadStream(error or "no bytes came back")
            events = events_of(frame.raw, frame.received, frame.stamps_ns)
        except BadStream as reason:
            return Answer(error=error or str(reason)), ()
        status, data = events.head.status, events.data
        if self._secret is not None and self._secret.value.encode() in data.raw:
            data = Payloads.of([self._secret.redact_bytes(item) for item in data])
        if status != 200:
            target = urllib.parse.urlsplit(events.head.fields.get("location", "")).netloc
            where = f", a redirect to {target or 'another path'}, which is not followed" if 300 <= status < 400 else ""
            return Answer(
                error=f"HTTP status {status}{where}: {b''.join(data)[:EXCERPT_BYTES].decode('utf-8', 'replace')}"
            ), ()
        if error is not None:
            return Answer(error=error), ()
        return self._backend.parse(data), events.stamps_ns

    def _disappointment(self, job: Job, answer: Answer) -> str | None:
        """Why a well-formed answer is none to this job."""
        if answer.model is not None:
            self._model = self._model or answer.model
            if answer.model != self._model:
                return f"answered by model {answer.model!r}, but the load began with {self._model!r}"
        wanted, got = job.sampling.max_new_tokens, answer.output_tokens
        if job.sampling.ignore_eos and got is not None and got < wanted:
            return f"early end after {got} of {wanted} tokens ({answer.finish_reason}) in spite of ignore_eos"
        return None
