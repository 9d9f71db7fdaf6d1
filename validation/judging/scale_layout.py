"""Judges the scale-layout case: a kernel case, but a GEMM that does not repeat itself has no bits to compare. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.judging.kernel import judge_kernels
from validation.records import KernelCell, PathCount
from validation.verdicts import Evidence, Finding, not_run

CASE = "scale_layout"
GEMM_CASE = "scale_layout_gemm"
CASES = (CASE, GEMM_CASE)
REPEATS = "consumer_repeats"
"""The check of a GEMM cell that says whether its bits may be demanded at all."""


def judge_scale_layout(
    cells: Sequence[KernelCell],
    paths: Sequence[PathCount],
    declared: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str] | None = None,
) -> list[Finding]:
    """The findings of ``scale_layout`` and ``scale_layout_gemm`` from what ``declared`` names of them.

    Bits of a GEMM's output are demanded only where each GEMM gave equal bits for equal input twice.
    """
    wanted = {case: declaration for case, declaration in declared.items() if case in CASES}
    unsteady = [
        cell
        for cell in cells
        if cell.case == GEMM_CASE and any(check.name == REPEATS and not check.equal for check in cell.checks)
    ]
    if not unsteady or GEMM_CASE not in wanted:
        return judge_kernels(cells, paths, wanted, missing)
    others = {case: declaration for case, declaration in wanted.items() if case != GEMM_CASE}
    sentence = (
        f"{len(unsteady)} GEMM cells give other bits for equal input, first {unsteady[0].cell}, so no bits of the "
        "output can be demanded; the scale's own bits are judged apart"
    )
    numbers = {"cells": len(wanted[GEMM_CASE]["cells"]), "cells_not_repeating": len(unsteady)}
    name = f"kernel_bits.{GEMM_CASE}"
    finding = not_run(name, Evidence.KERNEL_BITS, "nondeterministic_consumer", sentence, numbers)
    return [*judge_kernels(cells, paths, others, missing), finding]
