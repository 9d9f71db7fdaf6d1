"""From raw requests to block data: one log-ratio of the arms' mean TPOT a block and scenario.

TPOT of a request is ``(tN - t1) / (N - k1)``: the time from the first to the last content chunk, over the tokens that
came after the first chunk. ``N`` and ``k1`` (tokens in the first chunk) are the server's own counts, so that a server
that packs several tokens into one chunk is not flattered; without counts there is no TPOT. A block's datum is the log
of the ratio of the arms' means of that; requests are never treated as independent, they only make up the mean.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from validation.records import Launch, Record, Request, ScenarioRun

NS_PER_MS = 1e6


@dataclasses.dataclass(frozen=True)
class RequestTpot:
    """The decode part of one request: ``span_ms`` for ``tokens`` tokens after the first chunk."""

    index: int
    started_utc_s: float
    span_ms: float
    tokens: int
    output_tokens: int
    k1_from_total: bool
    """The server counted the total only, and it equals the chunks: none of them is empty, so each brought one token."""
    by_tool_ms: Mapping[str, float]
    """See ``tpot_by_tool_ms``."""
    ttft_ms: float
    e2e_ms: float

    @property
    def tpot_ms(self) -> float:
        """Milliseconds for each token after the first chunk."""
        return self.span_ms / self.tokens


@dataclasses.dataclass(frozen=True)
class RunTpot:
    """One pass of one scenario over one launch; the means are over the requests that a partner answered alike."""

    scenario: str
    arm: str
    block: int
    launch_id: str
    position: int
    fresh: bool
    run: int
    requests: int
    tpot_ms: float
    """Mean of the requests' TPOT."""
    ratio_of_sums_ms: float
    """All decode time over all decoded tokens: long answers weigh more."""
    steady_ms: float | None
    """Mean TPOT without the first and the last ``concurrency`` requests to start (ramp-up and drain); None where fewer
    than ``concurrency`` are left."""
    request_sd_ms: float
    """Spread over requests, to look at; requests share steps, so it gives no standard error."""
    k1_from_total: int
    by_tool_ms: Mapping[str, float]
    """Means of the formulas of other tools, under their names."""
    ttft_ms: float | None = None
    """Mean time to the first chunk."""
    e2e_ms: float | None = None
    """Mean time to the end of the answer."""


@dataclasses.dataclass(frozen=True)
class BlockRatio:
    """The datum of one block and scenario. Below zero the candidate is faster.

    ``order`` names the launches of the block in the order they ran, ``B`` for the baseline and ``C`` for the
    candidate: ``"BC"``, ``"CB"`` or a quadruple such as ``"BCCB"``.

    Raises:
        ValueError: ``log_ratio`` is not a finite number.
    """

    block: int
    scenario: str
    log_ratio: float
    order: str
    baseline_launches: tuple[str, ...]
    candidate_launches: tuple[str, ...]
    fresh: bool = True
    """False where a launch was a given URL: the launch effect cannot be separated."""
    log_ratio_of_sums: float | None = None
    log_ratio_steady: float | None = None
    pairs: int = 1
    """Request pairs behind the datum."""
    unusable: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Reason (``error``, ``missing_partner``, ``no_tokens``, ``no_counts``, ``one_chunk``, ``output_tokens_differ``,
    ``finish_reasons_differ``) to request pairs left out."""
    k1_from_total: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_ratio):
            raise ValueError(f"log ratio {self.log_ratio} in block {self.block}, {self.scenario!r}; expected a number")

    @property
    def position_shift(self) -> float:
        """Mean place of the candidate minus the baseline's: +1 for ``BC``, -1 for ``CB``, 0 for ``BCCB``."""
        where = {arm: [i for i, letter in enumerate(self.order) if letter == arm] for arm in "BC"}
        return statistics.fmean(where["C"]) - statistics.fmean(where["B"]) if where["B"] and where["C"] else 0.0


def cumulative_tokens(request: Request) -> tuple[int, ...] | None:
    """Tokens so far at each chunk: the server's counts, or one a chunk where its total shows that. Else None."""
    if request.chunk_tokens is not None:
        return request.chunk_tokens
    chunks = len(request.chunk_ns)
    return tuple(range(1, chunks + 1)) if chunks and request.output_tokens == chunks else None


def request_tpot(request: Request) -> RequestTpot | str:
    """The decode time of ``request``, or why it has none: ``error``, ``no_tokens``, ``no_counts`` or ``one_chunk``."""
    if request.error is not None:
        return "error"
    counts = cumulative_tokens(request)
    total = total_tokens(request)
    if total is None or not request.chunk_ns:
        return "no_tokens"
    if not counts:
        return "no_counts"
    span_ns = request.chunk_ns[-1] - request.chunk_ns[0]
    if total - counts[0] < 1 or span_ns <= 0:
        return "one_chunk"
    return RequestTpot(
        request.index,
        request.started_utc_s,
        span_ns / NS_PER_MS,
        total - counts[0],
        total,
        request.chunk_tokens is None,
        tpot_by_tool_ms(request),
        request.chunk_ns[0] / NS_PER_MS,
        request.end_ns / NS_PER_MS,
    )


def tpot_obstacles(requests: Iterable[Request]) -> dict[str, int]:
    """Why requests have no TPOT, as ``request_tpot`` says it, and how many; the most frequent reason first."""
    found = (request_tpot(request) for request in requests)
    return dict(collections.Counter(reason for reason in found if isinstance(reason, str)).most_common())


def tpot_by_tool_ms(request: Request) -> dict[str, float]:
    """TPOT as other tools define it, under their names; for comparison, never judged. Empty below two tokens.

    Sources: sglang 0.5.12, vLLM, guidellm 0.8.1, aiperf 0.13.0.
    """
    total = total_tokens(request)
    if total is None or total < 2 or not request.chunk_ns:
        return {}
    first_ns, last_ns = request.chunk_ns[0], request.chunk_ns[-1]
    # without counts a chunk, AIPerf takes the first chunk for one token
    after_first = total - (request.chunk_tokens[0] if request.chunk_tokens else 1)
    return {
        "sglang.bench_serving": (request.end_ns - first_ns) / (total - 1) / NS_PER_MS,
        "vllm bench serve": (last_ns - first_ns) / (total - 1) / NS_PER_MS,
        "guidellm": last_ns / total / NS_PER_MS,
        **({"aiperf": (last_ns - first_ns) / after_first / NS_PER_MS} if after_first > 0 else {}),
    }


def total_tokens(request: Request) -> int | None:
    """As the server counted them, in its usage or at the last chunk."""
    if request.output_tokens is not None:
        return request.output_tokens
    return request.chunk_tokens[-1] if request.chunk_tokens else None


def measure_blocks(
    records: Iterable[Record], candidate: str = "candidate", baseline: str = "baseline"
) -> tuple[list[RunTpot], list[BlockRatio]]:
    """Every run and every block datum that ``records`` hold, in block order.

    A request counts only together with its partner: same scenario, run and index in the other arm's launch of the same
    block (in a quadruple the first launches of the arms are partners, and the second). Pairs that fail are counted by
    reason, never dropped in silence. A block with one arm only gives no datum.

    Raises:
        ValueError: a request names a launch that no record describes.
    """
    kept = list(records)
    launches = {r.launch_id: r for r in kept if isinstance(r, Launch)}
    concurrency = {(r.launch_id, r.scenario, r.run): r.concurrency for r in kept if isinstance(r, ScenarioRun)}
    requests: dict[tuple[str, str, int], dict[int, Request]] = collections.defaultdict(dict)
    for r in kept:
        if isinstance(r, Request):
            if r.launch_id not in launches:
                raise ValueError(f"a request names launch {r.launch_id!r}; expected a launch record of that name")
            requests[r.scenario, r.launch_id, r.run][r.index] = r
    cells: dict[tuple[int, str], dict[str, list[Launch]]] = {}
    for scenario, launch_id, _ in requests:
        launch = launches[launch_id]
        arms = cells.setdefault((launch.block, scenario), {candidate: [], baseline: []})
        if launch.arm in arms and launch not in arms[launch.arm]:
            arms[launch.arm].append(launch)
    runs: list[RunTpot] = []
    blocks: list[BlockRatio] = []
    for (block, scenario), arms in sorted(cells.items()):
        ours, theirs = (sorted(arms[arm], key=lambda launch: launch.position) for arm in (candidate, baseline))
        found: list[tuple[RunTpot, RunTpot]] = []
        unusable: collections.Counter[str] = collections.Counter()
        for one, other in zip(ours, theirs, strict=False):
            numbers = sorted({r for s, lid, r in requests if s == scenario and lid in (one.launch_id, other.launch_id)})
            for run in numbers:
                a = requests.get((scenario, one.launch_id, run), {})
                b = requests.get((scenario, other.launch_id, run), {})
                pairs = _partners(a, b, unusable)
                if pairs:
                    found.append(
                        (
                            _run(scenario, one, run, [p[0] for p in pairs], concurrency),
                            _run(scenario, other, run, [p[1] for p in pairs], concurrency),
                        )
                    )
        unusable["missing_partner"] += sum(
            len(requests[key]) for key in requests if key[0] == scenario and key[1] in _unpaired(ours, theirs)
        )
        runs += [run for pair in found for run in pair]
        if found:
            blocks.append(_block(block, scenario, ours, theirs, found, +unusable))
    return runs, blocks


def measure_runs(records: Iterable[Record], arm: str) -> list[RunTpot]:
    """Every run of ``arm`` on its own, without partners: for a single server, or a recorded baseline."""
    kept = list(records)
    launches = {r.launch_id: r for r in kept if isinstance(r, Launch) and r.arm == arm}
    concurrency = {(r.launch_id, r.scenario, r.run): r.concurrency for r in kept if isinstance(r, ScenarioRun)}
    found: dict[tuple[str, str, int], list[RequestTpot]] = {}
    for r in kept:
        if isinstance(r, Request) and r.launch_id in launches:
            tpot = request_tpot(r)
            if not isinstance(tpot, str):
                found.setdefault((r.scenario, r.launch_id, r.run), []).append(tpot)
    return [
        _run(scenario, launches[launch_id], run, tpots, concurrency)
        for (scenario, launch_id, run), tpots in sorted(found.items())
    ]


def _unpaired(ours: Sequence[Launch], theirs: Sequence[Launch]) -> set[str]:
    shared = min(len(ours), len(theirs))
    return {launch.launch_id for launch in [*ours[shared:], *theirs[shared:]]}


def _partners(
    ours: Mapping[int, Request], theirs: Mapping[int, Request], unusable: collections.Counter[str]
) -> list[tuple[RequestTpot, RequestTpot]]:
    pairs = []
    for index in sorted(ours.keys() | theirs.keys()):
        if index not in ours or index not in theirs:
            unusable["missing_partner"] += 1
            continue
        one, other = request_tpot(ours[index]), request_tpot(theirs[index])
        if isinstance(one, str) or isinstance(other, str):
            unusable[one if isinstance(one, str) else str(other)] += 1
        elif one.output_tokens != other.output_tokens:
            unusable["output_tokens_differ"] += 1
        elif ours[index].finish_reason != theirs[index].finish_reason:
            unusable["finish_reasons_differ"] += 1
        else:
            pairs.append((one, other))
    return pairs


def _run(
    scenario: str,
    launch: Launch,
    run: int,
    requests: Sequence[RequestTpot],
    concurrency: Mapping[tuple[str, str, int], int],
) -> RunTpot:
    width = concurrency.get((launch.launch_id, scenario, run), 0)
    started = sorted(requests, key=lambda r: (r.started_utc_s, r.index))
    steady = started[width : len(started) - width] if width and len(started) >= 3 * width else []
    tpots = [r.tpot_ms for r in requests]
    return RunTpot(
        scenario,
        launch.arm,
        launch.block,
        launch.launch_id,
        launch.position,
        launch.fresh,
        run,
        len(requests),
        tpot_ms=statistics.fmean(tpots),
        ratio_of_sums_ms=sum(r.span_ms for r in requests) / sum(r.tokens for r in requests),
        steady_ms=statistics.fmean(r.tpot_ms for r in steady) if steady else None,
        request_sd_ms=statistics.stdev(tpots) if len(tpots) > 1 else 0.0,
        k1_from_total=sum(r.k1_from_total for r in requests),
        by_tool_ms={tool: statistics.fmean(r.by_tool_ms[tool] for r in requests) for tool in requests[0].by_tool_ms},
        ttft_ms=statistics.fmean(r.ttft_ms for r in requests),
        e2e_ms=statistics.fmean(r.e2e_ms for r in requests),
    )


def _block(
    block: int,
    scenario: str,
    ours: Sequence[Launch],
    theirs: Sequence[Launch],
    found: Sequence[tuple[RunTpot, RunTpot]],
    unusable: Mapping[str, int],
) -> BlockRatio:
    in_order = sorted([(launch.position, "C") for launch in ours] + [(launch.position, "B") for launch in theirs])
    steady = [math.log(c.steady_ms / b.steady_ms) for c, b in found if c.steady_ms and b.steady_ms]
    return BlockRatio(
        block,
        scenario,
        log_ratio=statistics.fmean(math.log(c.tpot_ms / b.tpot_ms) for c, b in found),
        order="".join(letter for _, letter in in_order),
        baseline_launches=tuple(launch.launch_id for launch in theirs),
        candidate_launches=tuple(launch.launch_id for launch in ours),
        fresh=all(launch.fresh for launch in [*ours, *theirs]),
        log_ratio_of_sums=statistics.fmean(math.log(c.ratio_of_sums_ms / b.ratio_of_sums_ms) for c, b in found),
        log_ratio_steady=statistics.fmean(steady) if steady else None,
        pairs=sum(c.requests for c, _ in found),
        unusable=dict(unusable),
        k1_from_total=sum(c.k1_from_total + b.k1_from_total for c, b in found),
    )
