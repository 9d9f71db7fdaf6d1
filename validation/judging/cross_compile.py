"""Judges what the compilers made: a kernel case whose comparisons are demands on code, not on bits. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from validation.judging.kernel import SHOWN, judge_kernels
from validation.records import KernelCell
from validation.verdicts import Effect, Finding, Verdict

CASE = "cross_compile"
DETECTABLE = Effect(
    1, "spill, byte of scratch, register over the bound or missing wide store", "read from the machine code"
)


def judge_cross_compile(
    cells: Sequence[KernelCell], declared: Mapping[str, Mapping[str, Any]], missing: Mapping[str, str] | None = None
) -> list[Finding]:
    """``kernel_bits.cross_compile`` from what ``declared`` names of it; nothing where it names none."""
    wanted = {case: declaration for case, declaration in declared.items() if case == CASE}
    return [_reworded(finding, cells) for finding in judge_kernels(cells, [], wanted, missing)]


def _reworded(finding: Finding, cells: Sequence[KernelCell]) -> Finding:
    demands = finding.numbers["checks"]
    if finding.verdict is Verdict.PASS:
        sentence = (
            f"all {demands} demands on {finding.records} compiled kernels are met: no spills, no scratch, wide stores"
        )
        return dataclasses.replace(finding, reason="compiled_as_demanded", sentence=sentence, detectable=DETECTABLE)
    if finding.verdict is Verdict.FAIL:
        broken = [
            f"{cell.cell}: {check.name}: {check.detail}"
            for cell in cells
            for check in cell.checks
            if cell.case == CASE and not check.equal and not check.name.startswith("control_")
        ]
        sentence = f"{len(broken)} of {demands} demands on compiled kernels are not met: {'; '.join(broken[:SHOWN])}"
        return dataclasses.replace(finding, reason="compiled_worse", sentence=sentence, detectable=DETECTABLE)
    return finding
