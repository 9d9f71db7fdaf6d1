"""What a kernel case declares: the claim, the operation it removes, and the matrix on which it must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from validation.discovery import load_all
from validation.kernel_cell import Cell, Variant


@dataclasses.dataclass(frozen=True)
class KernelCase:
    """One optimisation that removes a redundant layout copy; a leaf file under ``kernels/cases`` declares one."""

    name: str
    claim: str
    source: str
    removed_op: str
    """The dispatcher's name of the operation that the skip path must not run."""
    removed_kernel: str
    """A regular expression for its GPU kernels, as a trace names them."""
    cells: Callable[[str], list[Cell]]
    """The declared cells of a matrix, ``default`` or ``full``."""
    variant_of: Callable[[Cell], Variant]
    not_applicable: Callable[[Cell], str]
    """Why the claim itself does not reach a cell; empty where it does."""
    compares: Literal["paths", "producers"] = "paths"
    """The cat path with the skip path, or (``producers``) the cell's two providers as producers of the same outputs."""


def kernel_cases() -> Mapping[str, KernelCase]:
    """Every kernel case of the checkout by name."""
    cases = load_all("kernels/cases", "CASE").values()
    return {case.name: case for case in cases if isinstance(case, KernelCase)}


def declared_cells(matrix: str) -> dict[str, dict[str, Any]]:
    """Each case's cell ids in ``matrix``, and whether it needs a path proof: what a run must hold to be complete."""
    return {
        name: {"cells": [str(cell) for cell in case.cells(matrix)], "path_proof": case.compares == "paths"}
        for name, case in kernel_cases().items()
    }
