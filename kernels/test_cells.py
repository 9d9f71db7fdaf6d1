"""The cat path against the skip path, cell by cell, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from validation.kernel_case import KernelCase, kernel_cases
from validation.kernel_cell import Cell
from validation.kernel_tier import prepare, run_and_record
from validation.options import SETTINGS
from validation.records import Journal

pytestmark = pytest.mark.kernel


def pytest_generate_tests(metafunc: Any) -> None:
    """One test a declared cell."""
    matrix = metafunc.config.stash[SETTINGS].matrix
    pairs = [(case, cell) for case in kernel_cases().values() for cell in case.cells(matrix)]
    metafunc.parametrize(("case", "cell"), pairs, ids=[str(cell) for _, cell in pairs])


@pytest.fixture(scope="session", autouse=True)
def prepared(request: pytest.FixtureRequest) -> None:
    """Compile the consumers of all selected cells before the first one runs."""
    specs = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    prepare([(params["case"], params["cell"]) for params in specs if "cell" in params and "case" in params])


def test_cell(case: KernelCase, cell: Cell, journal: Journal) -> None:
    """Every comparison of the cell is equal; a cell that this platform lacks is recorded and skipped by name."""
    record = run_and_record(case, cell, journal)
    if not record.applicable:
        pytest.skip(f"NOT_APPLICABLE: {record.reason}")
    unequal = [f"{check.name}: {check.detail}" for check in record.checks if not check.equal]
    assert not unequal, "\n".join(unequal)
