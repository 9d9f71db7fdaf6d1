"""Every planted defect gets its verdict, no equivalent rewrite is flagged, and the published table says so."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch

from tests.defects.planting import Defect, Outcome, Rewrite
from tests.defects.table import DEFECTS, PAGE, REWRITES, outcome, page
from validation import kernel_cell
from validation.kernel_cell import Cell
from validation.kernel_gpu import CALLS, attribute
from validation.kernel_variants import not_applicable
from validation.records import KernelCheck
from validation.verdicts import Evidence, Finding, Verdict


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_gets_its_verdict(defect: Defect) -> None:
    assert defect.shortfall(outcome(defect)) == ""


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_equivalent_rewrite_is_not_flagged(rewrite: Rewrite) -> None:
    assert rewrite.alarm(outcome(rewrite)) == ""


def test_published_table_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(DEFECTS, REWRITES)


def test_catalogue_is_large_enough_and_names_are_unique() -> None:
    names = collections.Counter([*(defect.name for defect in DEFECTS), *(rewrite.name for rewrite in REWRITES)])
    assert [name for name, count in names.items() if count > 1] == []
    assert len(DEFECTS) >= 40
    assert len(REWRITES) >= 15


EQUAL = KernelCheck("kv_cache_elsewhere_untouched", True)
PARTS: dict[str, tuple[Any, set[str]]] = {
    "_other_step": (lambda setting: setting, {"query_of_the_last_step", "buffer_overwritten_by_the_next_layer"}),
    "POISONS": ((0xA5, 0xA5), {"q_cat_tail_unwritten", "k_pe_tail_unwritten", "attention_tail_unwritten"}),
    "_q_nope_kept": (lambda *_: None, {"q_nope_heads_swapped_on_both_paths", "q_cat_through_fp8_on_both_paths"}),
    "_compare_consumer_inputs": (lambda *_: [], {"attention_scales_the_query_in_place", "attention_writes_the_cache"}),
    "_compare_unmodified": (lambda *_: [], {"q_nope_changed_in_place", "positions_advanced_in_place"}),
    "_untouched_slots": (lambda *_: EQUAL, {"neighbouring_slot_overwritten", "slot_minus_one_written"}),
}
"""A part of the checker, what takes it out, and defects that are then missed."""


@pytest.mark.parametrize("part", PARTS)
def test_without_this_part_of_the_checker_defects_are_missed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without, names = PARTS[part]
    monkeypatch.setattr(kernel_cell, part, without)
    assert {defect.name for defect in DEFECTS if defect.name in names and defect.shortfall(defect.run())} == names


def test_a_miss_and_a_false_alarm_would_be_published() -> None:
    passed = Finding("f", Evidence.DISPATCH, Verdict.NOT_RUN, "nothing", "nothing ran")
    blind = Defect("blind", "gate", lambda: Outcome([]), "f", Verdict.FAIL, "bits_differ")
    loud = Rewrite("loud", "gate", lambda: Outcome([passed]))
    text = page([blind], [loud])
    assert "0 of 1 defects caught, 1 missed; 1 false alarms on 1 equivalent rewrites." in text
    assert "| missed |" in text
    assert "| false alarm |" in text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_torch_still_refuses_to_scale_fp8_in_place(dtype: torch.dtype) -> None:
    """The reason why ``llama_4_scaling`` does not apply to fp8; where torch learns it, the cell must run."""
    q_cat = torch.ones(2, 8, 576).to(dtype)
    with pytest.raises(RuntimeError, match="not implemented"):
        q_cat[..., :512].mul_(torch.ones(1).to(dtype))
    cell = Cell("cat_skip", "aiter", "torch", 3, 8, "fp8_e4m3fn", "fp8_e4m3fn", "llama_4_scaling")
    assert "in-place multiplication" in not_applicable(cell)


SPIN, CAT = "at::cuda::spin_kernel(long)", "void at::native::CatArrayBatchedCopy<OpaqueType<1u>>(...)"


def test_launches_are_given_to_the_path_after_whose_marker_they_stand() -> None:
    counts = attribute([SPIN, *[CAT] * CALLS, SPIN, "elementwise_kernel", SPIN], ["cat", "skip"], "CatArray")
    assert (counts["cat"].calls, counts["cat"].removed, counts["cat"].launches) == (CALLS, CALLS, CALLS)
    assert (counts["skip"].removed, counts["skip"].launches) == (0, 1)


@pytest.mark.parametrize("names", [[], [CAT], [SPIN, CAT, SPIN], [SPIN] * 4], ids=["nothing", "cat", "two", "four"])
def test_a_profiler_that_lost_a_marker_proves_nothing(names: list[str]) -> None:
    with pytest.raises(RuntimeError, match="markers"):
        attribute(names, ["cat", "skip"], "CatArray")
