"""What the kernel judge makes of cells and path counts: equality alone is never enough."""

from __future__ import annotations

import dataclasses

import pytest

from validation.judging.kernel import judge_kernels
from validation.records import KernelCell, KernelCheck, PathCount
from validation.verdicts import Evidence, Finding, Verdict

NAMES = ("c-m1", "c-m3")
DECLARED = {"c": {"cells": list(NAMES), "path_proof": True}}
CELLS = [
    KernelCell("c", n, True, "", {}, (KernelCheck("q_all", True), KernelCheck("control_break", True)), 0.1)
    for n in NAMES
]
PATHS = [
    PathCount(
        "c", n, path, "dispatcher", 1, int(path == "cat"), int(path == "cat"), 9 * (path == "cat"), path == "skip"
    )
    for n in NAMES
    for path in ("cat", "skip")
]


def judge(cells: list[KernelCell] = CELLS, paths: list[PathCount] = PATHS) -> dict[Evidence, Finding]:
    return {finding.evidence: finding for finding in judge_kernels(cells, paths, DECLARED)}


def with_check(check: KernelCheck) -> list[KernelCell]:
    return [CELLS[0], dataclasses.replace(CELLS[1], checks=(*CELLS[1].checks, check))]


def test_equal_bits_on_a_proved_path_pass() -> None:
    findings = judge()
    assert {f.verdict for f in findings.values()} == {Verdict.PASS}
    assert findings[Evidence.KERNEL_BITS].numbers["checks"] == 2


def test_one_unequal_comparison_fails_and_is_named() -> None:
    finding = judge(with_check(KernelCheck("kv_cache", False, "1 of 9 elements differ")))[Evidence.KERNEL_BITS]
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "bits_differ")
    assert "c-m3: kv_cache: 1 of 9 elements differ" in finding.sentence


def test_an_unseen_planted_break_is_vacuous_and_no_failure() -> None:
    finding = judge(with_check(KernelCheck("control_other", False, "not seen")))[Evidence.KERNEL_BITS]
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "vacuous")


@pytest.mark.parametrize("kept", [0, 1])
def test_a_deselected_cell_is_missed(kept: int) -> None:
    findings = judge(CELLS[:kept], [path for path in PATHS if path.cell in NAMES[:kept]])
    assert {f.verdict for f in findings.values()} == {Verdict.NOT_RUN}
    assert {f.reason for f in findings.values()} == {"deselected" if kept else "not_gathered"}


def test_a_missing_package_is_the_reason_when_there_is_one() -> None:
    findings = judge_kernels([], [], DECLARED, {"c": "AITER is not installed; install it: ..."})
    assert {f.reason for f in findings} == {"package_missing"}
    assert "install it" in findings[0].sentence


def test_equality_without_a_path_proof_is_not_run() -> None:
    findings = judge(paths=[])
    assert findings[Evidence.KERNEL_BITS].reason == findings[Evidence.PATH_PROOF].reason == "no_path_proof"


def test_a_cat_path_that_never_concatenates_proves_nothing() -> None:
    idle = [dataclasses.replace(path, removed=0) for path in PATHS]
    assert judge(paths=idle)[Evidence.PATH_PROOF].reason == "no_path_proof"
    assert judge(paths=idle)[Evidence.KERNEL_BITS].verdict is Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"removed": 1, "launches": 1}, "still ran the removed operation"),
        ({"launches": 1}, "launched 1 other operations"),
        ({"allocated_bytes": 64}, "allocated 64 bytes"),
        ({"same_storage": False}, "did not take the fused kernel's own storage"),
    ],
)
def test_whatever_the_skip_path_still_does_fails(change: dict[str, object], words: str) -> None:
    paths = [dataclasses.replace(p, **change) if p.path == "skip" and p.cell == "c-m3" else p for p in PATHS]  # type: ignore[arg-type]
    finding = judge(paths=paths)[Evidence.PATH_PROOF]
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "path_not_removed")
    assert words in finding.sentence


def test_two_concatenations_a_call_fail() -> None:
    paths = [dataclasses.replace(p, removed=2) if p.path == "cat" else p for p in PATHS]
    assert judge(paths=paths)[Evidence.PATH_PROOF].verdict is Verdict.FAIL


def test_cells_that_a_platform_lacks_are_listed_and_decide_nothing() -> None:
    lacking = [dataclasses.replace(cell, applicable=False, reason="no fp8 here", checks=()) for cell in CELLS]
    findings = judge_kernels(lacking, [], DECLARED)
    assert [(f.verdict, f.reason) for f in findings] == [(Verdict.NOT_APPLICABLE, "platform")]
    assert "no fp8 here" in findings[0].sentence
