"""The viewer and the analysis: figures that can be checked by hand, hostile names, traces without layers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import pytest
from timeline_examples import DATA, HOSTILE, cpu, many, recorded, single_and_dual, written

from validation.timeline import NamedTrace, to_markdown, to_timeline, write_timeline
from validation.timeline.html import chart_data
from validation.timeline.model import short_name, timeline_of
from validation.traces.gaps import GapBounds


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_mean_layer_is_what_was_written(tmp_path: pathlib.Path) -> None:
    single, dual = timeline_of(single_and_dual(tmp_path)).views
    assert single.passes == dual.passes == 6
    # the first layer of a step has no gap before it: four of six layers begin with one of 0.5 us
    assert single.mean["busy_us"] == pytest.approx(38.0)
    assert single.mean["dispatch_us"] == pytest.approx(1.5 + 0.5 * 4 / 6)
    assert single.mean["stall_us"] == 0
    assert dual.mean["busy_us"] == pytest.approx(10 + 10 + 13)
    assert dual.mean["fence_us"] == pytest.approx(1.5)
    assert dual.mean["stall_us"] == pytest.approx(5.0)
    assert dual.mean["changes_lane_us"] == pytest.approx(1.5), "the fork; overlaps are no cost"
    assert dual.mean["kernel_us"] - dual.mean["busy_us"] == pytest.approx(6.0), "what ran at the same time"


def test_stalls_are_grouped_by_the_kernels_on_both_sides(tmp_path: pathlib.Path) -> None:
    single, dual = timeline_of(single_and_dual(tmp_path)).views
    assert single.stalls == ()
    (group,) = dual.stalls
    assert (group.before, group.after, group.count, group.in_layers) == ("query", "attention", 6, True)
    assert group.total_us == pytest.approx(30.0)


def test_gaps_where_the_work_changes_stream_are_added_up(tmp_path: pathlib.Path) -> None:
    fork = [("norm", 7, 0.0, 10.0), ("index", 9, 12.5, 6.0), ("attention", 7, 21.5, 18.0)]
    (view,) = timeline_of([written(tmp_path, "fork", fork)]).views
    assert view.mean["changes_lane_us"] == pytest.approx(2.5 + 3.0)
    assert all(group.changes_lane for group in view.stalls)


def test_bounds_move_gaps_between_classes(tmp_path: pathlib.Path) -> None:
    dual = single_and_dual(tmp_path)[1]
    (view,) = timeline_of([dual], GapBounds(fence_us=2.0, stall_us=6.0)).views
    assert view.mean["stall_us"] == 0
    assert view.mean["fence_us"] == pytest.approx(5.0)


def test_traces_are_aligned_to_a_kernel_that_all_have(tmp_path: pathlib.Path) -> None:
    shifted = [("early", 7, 0.0, 3.0), ("norm", 7, 4.0, 10.0), ("attention", 7, 15.0, 20.0)]
    traces = [single_and_dual(tmp_path)[0], written(tmp_path, "shifted", shifted)]
    timeline = timeline_of(traces)
    assert "0 is the start of norm" in timeline.alignment
    names = chart_data(timeline)["names"]
    for trace in chart_data(timeline)["traces"]:
        at_zero = [names[n] for n, start in zip(trace["kernel"], trace["start"], strict=True) if abs(start) < 1e-6]
        assert at_zero == ["norm"]


def test_the_recorded_traces_differ_by_one_kernel_a_layer() -> None:
    cat, skip = timeline_of([recorded("cat"), recorded("skip")]).views
    assert cat.mean["kernels"] - skip.mean["kernels"] == pytest.approx(1.0)
    assert 1.5 < cat.mean["wall_us"] - skip.mean["wall_us"] < 5.0, "one launch of about 2 us and its dispatch"


def test_the_page_holds_every_kernel_with_its_gap_and_class() -> None:
    named = recorded("cat")
    data = data_of(to_timeline([named]))
    (trace,) = data["traces"]
    count = len(named.trace.kernels)
    assert {len(trace[key]) for key in ("kernel", "lane", "start", "duration", "step", "layer")} == {count}
    assert {len(trace[key]["us"]) for key in ("across", "on_lane")} == {count}
    assert len(trace["across"]["kind"]) == count
    assert any("concat_mla_absorb_q_kernel(" in name for name in data["names"]), "full names, parameters and all"


def test_kernels_far_from_the_pass_are_left_out_of_a_huge_trace_and_it_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.timeline.html.DRAWN_KERNELS", 10)
    page = to_timeline(single_and_dual(tmp_path))
    assert [len(trace["kernel"]) for trace in data_of(page)["traces"]] == [10, 10]
    assert "14 kernels far from the layer pass are not drawn" in page
    assert '<td class="number">24</td>' in page, "the tables count all"


def test_hostile_names_are_text(tmp_path: pathlib.Path) -> None:
    layer = [(HOSTILE, 7, 0.0, 10.0), ("x" + HOSTILE, 7, 15.0, 10.0)]
    traces = [written(tmp_path, HOSTILE, layer)]
    page = to_timeline(traces)
    assert page.count("<script") == 2, "the data and our own"
    assert "<img" not in page
    assert "\u202e" not in page
    names = data_of(page)["names"]
    assert names[0] == HOSTILE.replace("\u202e", "\\u202e")
    text = to_markdown(traces)
    assert "<img" not in text.replace("`", "")[: text.index("## Stalls")]
    assert "\u202e" not in text


def test_only_the_hashed_script_may_run_and_nothing_is_fetched() -> None:
    page = to_timeline([recorded("cat")])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1] or "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1]
    assert not re.search(r"(?:src|href)=\"(?!#)", page)


def test_a_trace_without_layers_is_drawn_and_the_reason_given(tmp_path: pathlib.Path) -> None:
    chaos = [written(tmp_path, "chaos", [("a", 7, 0.0, 3.0), ("a", 7, 8.0, 3.0)], steps=1, layers=1)]
    timeline = timeline_of(chaos)
    assert timeline.alignment.startswith("Each trace starts at 0: chaos has no layer pass")
    assert "No layers were found" in to_timeline(chaos)
    assert "No layers were found" in to_markdown(chaos)
    assert [group.count for group in timeline.views[0].stalls] == [1]


def test_a_cpu_trace_says_what_a_gap_is_there() -> None:
    assert "a gap is Python's own time" in to_markdown([cpu()])
    assert "cpu" in to_timeline([cpu()])


def test_an_empty_trace_is_a_page() -> None:
    trace = recorded("cat").trace
    none = trace.kernels.take(trace.kernels.lane < 0)
    empty = [NamedTrace("empty", dataclasses.replace(trace, kernels=none))]
    assert "No layers were found" in to_timeline(empty)


def test_profilers_that_differ_restrict_the_comparison() -> None:
    text = to_markdown([recorded("cat"), cpu()])
    assert "compare only the stalls" in text


def test_markdown_has_the_decomposition_the_caveat_and_the_stalls(tmp_path: pathlib.Path) -> None:
    text = to_markdown(single_and_dual(tmp_path))
    assert "| gaps of 2 us and more: stalls (us) | 0.00 | 5.00 | +5.00 |" in text
    assert "A layer of dual takes as long as one of single (" in text, "5 us of stalls eat what overlap saves"
    assert "stall +5.00" in text
    assert "CUPTI records kernels that overlap" in text
    assert "| layers | `query` | `attention` | same | 6 | 30.0 | 5.00 | 0 of 6 |" in text


@pytest.mark.parametrize("names", [[], ["a", "a"]], ids=["none", "twice"])
def test_traces_need_names_of_their_own(tmp_path: pathlib.Path, names: list[str]) -> None:
    layer = [("k", 7, 0.0, 1.0)]
    with pytest.raises(ValueError, match="a name of its own for each"):
        timeline_of([written(tmp_path, name, layer) for name in names])


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<c10::BFloat16, 2>(int*)", "CatArrayBatchedCopy"),
        ("nvjet_sm90_tst_64x16_64x16_2x1_v_bz_splitK_TNT", "nvjet_sm90_tst_64x16_64x16_2x1_v_bz_splitK_TNT"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD"),
        ("<lambda>", "<lambda>"),
        ("", ""),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_fifty_thousand_kernels_make_a_page_of_some_megabytes(tmp_path: pathlib.Path) -> None:
    page = to_timeline([many(tmp_path, 50_000)])
    assert len(data_of(page)["traces"][0]["kernel"]) == 50_000
    assert len(page) < 6_000_000


def test_files_become_a_page_and_an_analysis_beside_it(tmp_path: pathlib.Path) -> None:
    words = [f"{path}={DATA / f'sglang0512_h200_{path}_decode.json.gz'}" for path in ("cat", "skip")]
    analysis = write_timeline(tmp_path / "out.html", words)
    assert analysis == tmp_path / "out.md"
    assert "| skip - cat |" in analysis.read_text(encoding="utf-8")
    assert '"name":"skip"' in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", ["", "cat", "=x.json", "cat=", "cat=missing.json"])
def test_a_word_that_names_no_trace_is_refused(tmp_path: pathlib.Path, word: str) -> None:
    with pytest.raises(ValueError, match=r"expected NAME=FILE|does not exist"):
        write_timeline(tmp_path / "out.html", [word])
