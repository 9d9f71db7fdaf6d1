"""The metrics on streams whose figures can be worked out by hand."""

from __future__ import annotations

import pytest

from validation.client.metrics import metrics, output_tokens_per_s
from validation.records import Request

MS = 1_000_000


def answer(
    chunks_ms: tuple[float, ...] = (100, 120, 140, 160),
    counts: tuple[int, ...] | None = (1, 2, 3, 4),
    total: int | None = 4,
    end_ms: float = 170,
    index: int = 0,
    finish_reason: str = "length",
    error: str | None = None,
) -> Request:
    return Request(
        launch_id="l",
        arm="a",
        block=0,
        run=0,
        scenario="s",
        index=index,
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=total,
        finish_reason=finish_reason,
        text="",
        output_ids=None,
        chunk_ns=tuple(int(ms * MS) for ms in chunks_ms),
        chunk_tokens=counts,
        queued_ns=0,
        end_ns=int(end_ms * MS),
        error=error,
    )


def test_one_token_a_chunk() -> None:
    found = metrics(answer())
    assert (found.ttft_ms, found.tpot_ms, found.e2e_ms) == (100, 20, 170)
    assert found.chunk_gaps_ms == found.itl_ms == (20, 20, 20)
    assert found.output_tokens_per_s == pytest.approx(4 / 0.17)
    assert found.tpot_by_peer_ms == {
        "sglang.bench_serving": pytest.approx(70 / 3),
        "vllm bench serve": pytest.approx(20),
        "guidellm": pytest.approx(40),
        "aiperf": pytest.approx(20),
    }


def test_several_tokens_in_the_first_chunk_are_not_taken_for_one() -> None:
    """The defect of (tN - t1) / (N - 1): 10 ms a token look like 7.5."""
    found = metrics(answer((100, 130), (2, 5), 5))
    assert found.tpot_ms == pytest.approx(10)
    assert found.tpot_by_peer_ms["vllm bench serve"] == pytest.approx(7.5)
    assert found.tpot_by_peer_ms["aiperf"] == pytest.approx(10)
    assert found.chunk_gaps_ms == (30,)
    assert found.itl_ms == pytest.approx((10, 10, 10))


def test_without_counts_nothing_is_guessed() -> None:
    found = metrics(answer((100, 130), None, None))
    assert (found.tpot_ms, found.itl_ms, found.tpot_by_peer_ms) == (None, (), {})
    assert found.chunk_gaps_ms == (30,)


def test_a_total_that_equals_the_chunks_shows_one_token_a_chunk() -> None:
    assert metrics(answer((100, 130), None, 2)).tpot_ms == pytest.approx(30)
    assert metrics(answer((100, 130), None, 3)).tpot_ms is None


@pytest.mark.parametrize(("chunks", "counts", "total"), [((100,), (1,), 1), ((100,), (4,), 4)])
def test_one_chunk_has_no_tpot(chunks: tuple[float, ...], counts: tuple[int, ...], total: int) -> None:
    assert metrics(answer(chunks, counts, total)).tpot_ms is None


def test_an_error_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="has no answer"):
        metrics(answer(error="reset"))


def test_throughput_leaves_errors_out() -> None:
    assert output_tokens_per_s([answer(), answer(error="reset")], 2.0) == 2.0
    with pytest.raises(ValueError, match="above 0"):
        output_tokens_per_s([], 0)
