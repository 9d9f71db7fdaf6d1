"""From requests to block data."""

from __future__ import annotations

import dataclasses
import math

import pytest

from validation.judging.latency import LatencyPlan, judge_latency
from validation.judging.tpot import measure_blocks, measure_runs, request_tpot
from validation.records import Launch, Record, Request, ScenarioRun

MS = 1_000_000


def launch(name: str, arm: str, block: int = 0, position: int = 0, fresh: bool = True) -> Launch:
    return Launch(name, arm, block, position, "http://127.0.0.1:1", 1.0, fresh, {})


def request(
    launch_id: str,
    index: int,
    step_ms: float,
    *,
    tokens: int = 11,
    first: int = 1,
    error: str | None = None,
    counts: bool = True,
    started: float | None = None,
    block: int = 0,
) -> Request:
    """A request whose tokens come ``step_ms`` apart after a first chunk of ``first`` tokens at 50 ms."""
    chunks = list(range(first, tokens + 1))
    times = tuple(int((50 + i * step_ms) * MS) for i in range(len(chunks)))
    return Request(
        launch_id=launch_id,
        arm="?",
        block=block,
        run=0,
        scenario="s",
        index=index,
        prompt_tokens=8,
        cached_tokens=0,
        output_tokens=None if error else tokens,
        finish_reason="length",
        text="",
        output_ids=None,
        chunk_ns=() if error else times,
        chunk_tokens=tuple(chunks) if counts else None,
        queued_ns=0,
        end_ns=times[-1] + 3 * MS,
        error=error,
        started_utc_s=float(index if started is None else started),
    )


PAIR: list[Record] = [launch("b", "baseline"), launch("c", "candidate", position=1)]


def test_tpot_divides_by_the_tokens_after_the_first_chunk() -> None:
    packed = request_tpot(request("b", 0, 10.0, tokens=11, first=5))
    assert not isinstance(packed, str)
    assert packed.tpot_ms == pytest.approx(60.0 / 6)
    assert packed.by_tool_ms["vllm bench serve"] == pytest.approx(60.0 / 10)
    assert packed.by_tool_ms["sglang.bench_serving"] == pytest.approx(63.0 / 10)
    assert packed.by_tool_ms["guidellm"] == pytest.approx(110.0 / 11)
    assert packed.by_tool_ms["aiperf"] == packed.tpot_ms


def test_a_total_that_equals_the_chunks_shows_one_token_in_the_first_and_is_counted() -> None:
    runs, (block,) = measure_blocks([*PAIR, request("b", 0, 10.0, counts=False), request("c", 0, 9.0, counts=False)])
    assert block.log_ratio == pytest.approx(math.log(0.9))
    assert block.k1_from_total == 2
    assert {r.k1_from_total for r in runs} == {1}


def test_without_counts_there_is_no_tpot_however_regular_the_chunks() -> None:
    """Planted: the candidate packs five tokens into its first chunk and does not count. Guessed as one token it would
    look 40 % faster than it is."""
    packed = request("c", 0, 10.0, tokens=11, first=5, counts=False)
    assert request_tpot(packed) == "no_counts"
    _, (block,) = measure_blocks([*PAIR, request("b", 0, 10.0), packed, request("b", 1, 10.0), request("c", 1, 10.0)])
    assert block.unusable == {"no_counts": 1}
    assert block.log_ratio == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(request("c", 1, 9.0, error="timeout"), "error", id="error"),
        pytest.param(request("c", 1, 9.0, tokens=10), "output_tokens_differ", id="shorter-answer"),
        pytest.param(
            dataclasses.replace(request("c", 1, 9.0), finish_reason="stop"), "finish_reasons_differ", id="another-end"
        ),
        pytest.param(request("c", 1, 9.0, tokens=11, first=11), "one_chunk", id="one-chunk"),
        pytest.param(None, "missing_partner", id="never-sent"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_left_out_of_both_arms_and_counted(bad: Request | None, reason: str) -> None:
    good: list[Record] = [*PAIR, request("b", 0, 10.0), request("c", 0, 9.0), request("b", 1, 500.0)]
    runs, (block,) = measure_blocks([*good, *([bad] if bad else [])])
    assert block.unusable == {reason: 1}
    assert block.pairs == 1
    assert block.log_ratio == pytest.approx(math.log(0.9))
    assert {r.requests for r in runs} == {1}


def test_the_datum_is_the_ratio_of_means_and_the_other_ratios_stand_beside_it() -> None:
    records: list[Record] = [*PAIR]
    for name, steps in (("b", (10.0, 20.0)), ("c", (9.0, 20.0))):
        records += [request(name, 0, steps[0], tokens=11), request(name, 1, steps[1], tokens=101)]
    _, (block,) = measure_blocks(records)
    assert block.log_ratio == pytest.approx(math.log(14.5 / 15))
    assert block.log_ratio_of_sums == pytest.approx(math.log(2090 / 2100))
    assert block.log_ratio_steady is None
    assert block.order == "BC"


def test_the_steady_window_drops_ramp_up_and_drain() -> None:
    records: list[Record] = [*PAIR]
    for name, steady in (("b", 10.0), ("c", 9.0)):
        records.append(ScenarioRun(name, "?", 0, 0, "s", 1, 3, "", True, 1.0, {}))
        records += [request(name, i, steady if i == 1 else 40.0) for i in range(3)]
    runs, (block,) = measure_blocks(records)
    assert block.log_ratio_steady == pytest.approx(math.log(0.9))
    assert {r.steady_ms for r in runs} == {10.0, 9.0}


def test_a_quadruple_gives_one_datum_of_both_pairs() -> None:
    places = [("b1", "baseline", 0), ("c1", "candidate", 1), ("c2", "candidate", 2), ("b2", "baseline", 3)]
    records: list[Record] = [launch(name, arm, 0, place) for name, arm, place in places]
    records += [request(n, 0, s) for n, s in (("b1", 10.0), ("c1", 9.0), ("b2", 10.0), ("c2", 8.0))]
    _, (block,) = measure_blocks(records)
    assert (block.order, block.position_shift) == ("BCCB", 0.0)
    assert block.log_ratio == pytest.approx((math.log(0.9) + math.log(0.8)) / 2)


def test_a_launch_without_partner_gives_no_datum_and_its_requests_are_counted() -> None:
    _, blocks = measure_blocks([launch("b", "baseline"), request("b", 0, 10.0)])
    assert blocks == []
    more: list[Record] = [*PAIR, launch("b2", "baseline", position=2)]
    _, (block,) = measure_blocks([*more, request("b", 0, 10.0), request("c", 0, 9.0), request("b2", 0, 10.0)])
    assert block.unusable == {"missing_partner": 1}


def test_a_given_url_makes_the_block_not_fresh() -> None:
    given: list[Record] = [launch("b", "baseline", fresh=False), launch("c", "candidate", position=1)]
    _, (block,) = measure_blocks([*given, request("b", 0, 10.0), request("c", 0, 9.0)])
    assert not block.fresh


def test_a_request_of_an_unknown_launch_is_refused() -> None:
    with pytest.raises(ValueError, match="names launch 'x'"):
        measure_blocks([request("x", 0, 10.0)])


def test_one_arm_alone_needs_no_partner() -> None:
    records: list[Record] = [*PAIR, request("c", 0, 9.0), request("c", 1, 9.0, error="timeout")]
    (run,) = measure_runs(records, "candidate")
    assert run.requests == 1
    assert run.tpot_ms == pytest.approx(9.0)


def test_the_other_times_of_each_arm_stand_beside_the_judged_one() -> None:
    runs, blocks = measure_blocks([*PAIR, request("b", 0, 10.0), request("c", 0, 9.0)])
    times = judge_latency(blocks, LatencyPlan(scenarios=("s",)), runs)[0].numbers["times_ms"]
    assert sorted(times) == ["s, baseline", "s, candidate"]
    assert times["s, candidate"]["tpot_ms"] == pytest.approx(9.0)
    assert times["s, candidate"]["ttft_ms"] == 50
    assert times["s, candidate"]["e2e_ms"] >= 50 + 10 * 9.0
    # ten steps after the first token; guidellm counts the first token's time too
    assert times["s, candidate"]["tpot_ms, vllm bench serve"] == pytest.approx(9.0)
    assert times["s, candidate"]["tpot_ms, guidellm"] == pytest.approx((50 + 10 * 9.0) / 11)
