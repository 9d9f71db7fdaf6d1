"""Case: the kernels compile for gfx950, gfx942 and sm_90 without spills, without scratch and with wide stores."""

from __future__ import annotations

import dataclasses
from typing import Any

from validation.cross_compile import declared_cells
from validation.judging.cross_compile import CASE as NAME


@dataclasses.dataclass(frozen=True)
class CrossCompileCase:
    """What the case declares."""

    name: str = NAME
    claim: str = "no kernel on the path spills, uses scratch or stores narrowly on the targets"
    source: str = "LLVM's and NVIDIA's own resource reports"

    def declared(self, matrix: str) -> dict[str, dict[str, Any]]:
        """The cell ids, the same in every matrix; nothing is removed, so there is no path to prove."""
        return {NAME: {"cells": declared_cells(), "path_proof": False}}


CASE = CrossCompileCase()
