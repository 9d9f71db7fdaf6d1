"""What a request's stamps say: latency metrics with their definitions. Pure.

Let t0 be the sending of the request, t1 and tN the arrival of its first and last content chunk, N its output tokens and
k1 those in the first chunk, as the server counted them. Chunks are not tokens: a server that packs several tokens into
an event would look faster by formulas that take the first chunk for one token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from validation.judging.tpot import NS_PER_MS, cumulative_tokens, request_tpot, total_tokens, tpot_by_tool_ms
from validation.records import Request


@dataclasses.dataclass(frozen=True)
class Metrics:
    """One request that has an answer. All times in milliseconds."""

    ttft_ms: float
    """t1 - t0; the request's connection is opened at t0."""
    tpot_ms: float | None
    """(tN - t1) / (N - k1); None where the server did not count, or sent everything in one chunk."""
    e2e_ms: float
    """Until the connection ended, its closing events included."""
    chunk_gaps_ms: tuple[float, ...]
    """Between neighbouring chunks: what a reader of the stream waits for."""
    itl_ms: tuple[float, ...]
    """Each gap over the tokens it brought, once for each of them; empty where the server did not count."""
    output_tokens: int | None
    output_tokens_per_s: float | None
    """N over the end-to-end time."""
    tpot_by_peer_ms: Mapping[str, float]
    """The formulas of other tools on the same stamps, under their names."""


def metrics(request: Request) -> Metrics:
    """The metrics of ``request``.

    Raises:
        ValueError: it ended in an error, or has no chunk.
    """
    if request.error is not None or not request.chunk_ns:
        raise ValueError(
            f"request {request.index} has no answer ({request.error or 'no chunk'}); leave it out and count it"
        )
    gaps = [(b - a) / NS_PER_MS for a, b in zip(request.chunk_ns, request.chunk_ns[1:], strict=False)]
    counts, total = cumulative_tokens(request) or (), total_tokens(request)
    itl: list[float] = []
    for gap, before, after in zip(gaps, counts, counts[1:], strict=False):
        itl += [gap / (after - before)] * (after - before)
    decode = request_tpot(request)
    return Metrics(
        ttft_ms=request.chunk_ns[0] / NS_PER_MS,
        tpot_ms=None if isinstance(decode, str) else decode.tpot_ms,
        e2e_ms=request.end_ns / NS_PER_MS,
        chunk_gaps_ms=tuple(gaps),
        itl_ms=tuple(itl),
        output_tokens=total,
        output_tokens_per_s=total / (request.end_ns / 1e9) if total and request.end_ns else None,
        tpot_by_peer_ms=tpot_by_tool_ms(request),
    )


def output_tokens_per_s(requests: Iterable[Request], wall_s: float) -> float:
    """Output throughput of a load: the tokens of every answer over its wall time.

    Raises:
        ValueError: ``wall_s`` is not above 0.
    """
    if wall_s <= 0:
        raise ValueError(f"a wall time of {wall_s} s was given; expected one above 0")
    return sum(request.output_tokens or 0 for request in requests if request.error is None) / wall_s
