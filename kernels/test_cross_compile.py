"""The kernels as the compilers make them for GPUs that need not be here: no spills, no scratch, wide stores."""

from __future__ import annotations

import dataclasses

import pytest

from validation.cross_compile import CompilerError, cross_compile, declared_cells
from validation.judging.cross_compile import CASE
from validation.records import Journal, Note


@pytest.mark.kernel
def test_kernels_compile_for_every_target_without_spills(journal: Journal) -> None:
    try:
        cells, compiled = cross_compile()
    except CompilerError as error:
        journal.append(Note("missing", str(error), {"cases": [CASE]}))
        raise
    journal.append(Note(CASE, "what the compilers made", {"compiled": [dataclasses.asdict(item) for item in compiled]}))
    for cell in cells:
        journal.append(cell)
    assert sorted(cell.cell for cell in cells) == sorted(declared_cells())
    broken = [
        f"{cell.cell}: {check.name}: {check.detail}" for cell in cells for check in cell.checks if not check.equal
    ]
    assert not broken, "\n".join(broken)
