"""What a kernel case declares: the claim, the operation it removes, and the matrix on which it must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from validation.discovery import load_all

if TYPE_CHECKING:
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
    """Cat path and skip path, or (``producers``) the cell's two providers as producers of the same outputs."""

    def declared(self, matrix: str) -> dict[str, dict[str, Any]]:
        """What a run of this case must hold to be complete: its cell ids, and whether it needs a path proof."""
        names = [str(cell) for cell in self.cells(matrix)]
        return {self.name: {"cells": names, "path_proof": self.compares == "paths"}}


def kernel_cases() -> Mapping[str, KernelCase]:
    """Every kernel case of the checkout by name."""
    cases = load_all("kernels/cases", "CASE").values()
    return {case.name: case for case in cases if isinstance(case, KernelCase)}


def declared_cells(matrix: str) -> dict[str, dict[str, Any]]:
    """What every case of the checkout declares, whatever kind of case it is: the cells that a run must hold."""
    cases = load_all("kernels/cases", "CASE").values()
    return {name: declaration for case in cases for name, declaration in case.declared(matrix).items()}
