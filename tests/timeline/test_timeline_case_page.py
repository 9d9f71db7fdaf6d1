"""The case page says what the records say: bytes, launches, invariants, results; a defect shows as one."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest

from validation.case_page import About, cases_of, to_case_page, write_case_pages
from validation.case_page.model import TESTS, page_of
from validation.e2e_plan import BASELINE, CANDIDATE
from validation.judgement import Judgement, judge_records
from validation.judging.trace import TraceClaim
from validation.profile_tier import count_collected
from validation.records import SCHEMA, Journal, KernelCell, KernelCheck, PathCount, Record, Run

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "traces" / "data"
CELL = "cat_skip-aiter-tilelang-m16-h8-bf16"
HOSTILE = "</text><script>alert(1)</script>\u202e"
ABOUT = About("skipping it changes nothing", "pull request 24125", "aten::cat")
RUN = Run(
    run_id="r1",
    schema=SCHEMA,
    started_utc="2026-01-01T00:00:00+00:00",
    profile="rehearsal",
    tiers=("kernel",),
    seed=1,
    command=("pytest",),
    declared={"kernel_cells": {"cat_skip": {"cells": [CELL], "path_proof": True}}},
    provenance={},
)
CHECKS = (
    KernelCheck("q_all", True),
    KernelCheck("repeat_attention", True),
    KernelCheck("skip_same_storage", True),
    KernelCheck("control_unrotated_q_pe", True),
    KernelCheck("something_new", True),
)


def cell(checks: tuple[KernelCheck, ...] = CHECKS, provider: str = "aiter amd-aiter 0.1.7 (a file)") -> KernelCell:
    roles = {"producer": provider, "consumer": "tilelang tilelang 0.1.15"}
    return KernelCell("cat_skip", CELL, True, "", roles, checks, 0.1)


CAT = PathCount("cat_skip", CELL, "cat", "dispatcher", 2, 2, 2, 147_456, False)
SKIP = PathCount("cat_skip", CELL, "skip", "dispatcher", 2, 0, 0, 0, True)


def judged(*records: Record) -> Judgement:
    return judge_records([RUN, *(records or (cell(), CAT, SKIP))])


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</head>")[1]))


def test_the_diagram_has_the_recorded_bytes_and_storages() -> None:
    text = text_of(to_case_page(judged(), "cat_skip", ABOUT))
    assert "147,456 B allocated between producer and consumer" in text
    assert "q_all, storage 2 copied by aten::cat, 147,456 B" in text
    assert "q_all, a view of storage 1 0 B" in text
    assert "2 storages" in text
    assert "1 storage " in text


def test_the_pipeline_has_the_recorded_launches() -> None:
    text = text_of(to_case_page(judged(), "cat_skip", ABOUT))
    assert "aten::cat 1 a call" in text
    assert "nothing 0 launches" in text
    assert "producer amd-aiter 0.1.7 " in text


def test_a_skip_path_that_copies_is_drawn_as_one() -> None:
    copying = dataclasses.replace(SKIP, launches=2, allocated_bytes=999, same_storage=False)
    text = text_of(to_case_page(judged(cell(), CAT, copying), "cat_skip", ABOUT))
    assert "q_all, storage 2 999 B" in text
    assert "other launches 0 a call, 1 others" in text
    assert "a view of storage 1" not in text
    assert "✗ fail" in text


def test_invariants_are_counted_from_the_checks_with_a_test_each() -> None:
    page = page_of(judged(), "cat_skip")
    assert sum(invariant.held for invariant in page.invariants) == len(CHECKS)
    assert [i.sentence for i in page.invariants if i.checks == ("something_new",)] == ["something_new"]
    assert {i.test for i in page.invariants} == {f"kernels/test_cells.py::test_cell[{CELL}]"}


def test_a_broken_invariant_fails_and_says_where() -> None:
    broken = (KernelCheck("q_all", False, "3 of 9 elements differ"), *CHECKS[1:])
    text = text_of(to_case_page(judged(cell(broken), CAT, SKIP), "cat_skip"))
    assert f"{CELL}: q_all: 3 of 9 elements differ" in text
    assert "0 of 1" in text


def test_results_are_the_findings_of_the_case() -> None:
    judgement = judged()
    text = text_of(to_case_page(judgement, "cat_skip"))
    for finding in judgement.findings:
        assert finding.name in text
        assert finding.sentence in text
    assert "kernel_bits.cat_skip" in text


def test_traces_give_the_kernels_before_and_after() -> None:
    claim = TraceClaim(removed="concat_mla_absorb_q")
    notes = [
        count_collected(arm, [DATA / f"sglang0512_h200_{path}_decode.json.gz"], claim)
        for arm, path in ((BASELINE, "cat"), (CANDIDATE, "skip"))
    ]
    page = page_of(judged(cell(), CAT, SKIP, *notes), "cat_skip")
    changed = [row for row in page.kernels if row.baseline != row.candidate]
    assert [(row.baseline, row.candidate) for row in changed] == [(1.0, 0.0)]
    assert "concat_mla_absorb_q_kernel" in changed[0].name
    assert "concat_mla_absorb_q_kernel 1 0 changed" in text_of(to_case_page(page.judgement, "cat_skip"))


def test_what_was_not_gathered_is_said() -> None:
    text = text_of(to_case_page(judged(cell()), "cat_skip"))
    assert "No launches and bytes were counted on both paths" in text
    assert "No traces of both arms were counted" in text


def test_hostile_text_is_text() -> None:
    checks = (KernelCheck(HOSTILE, False, HOSTILE),)
    page = to_case_page(judged(cell(checks, HOSTILE), CAT, SKIP), "cat_skip", About(HOSTILE, HOSTILE, HOSTILE))
    assert "<script" not in page
    assert "\u202e" not in page


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(ValueError, match=r"no kernel cell of case 'other'; it holds those of cat_skip"):
        to_case_page(judged(), "other")


def test_the_cases_of_a_run() -> None:
    assert cases_of(judged()) == ["cat_skip"]


@pytest.mark.parametrize("test", [test for _, test in TESTS])
def test_the_named_tests_exist(test: str) -> None:
    file, _, function = test.removesuffix("[{cell}]").partition("::")
    assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")


def test_pages_are_written_beside_the_report(tmp_path: pathlib.Path) -> None:
    with Journal(tmp_path / "raw" / "main.jsonl") as journal:
        for record in (RUN, cell(), CAT, SKIP):
            journal.append(record)
    (page,) = write_case_pages(tmp_path)
    assert page == tmp_path / "case_cat_skip.html"
    text = text_of(page.read_text(encoding="utf-8"))
    assert "skipping the concatenation of q_cat changes no bit" in text, "the case's own claim"
    assert "SGLang pull request 24125" in text


def test_a_run_without_a_case_is_refused(tmp_path: pathlib.Path) -> None:
    with Journal(tmp_path / "raw" / "main.jsonl") as journal:
        journal.append(RUN)
    with pytest.raises(ValueError, match="counted no launches and bytes"):
        write_case_pages(tmp_path)
