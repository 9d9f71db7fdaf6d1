"""Case: the torch operations that serve the embedded engine on a CPU are AITER's kernel, bit for bit.

It ties the rehearsal to the real kernel: what the engine serves with equals what the kernel tier tests. On a GPU the
engine serves with AITER itself, and the compiled kernel contracts multiply-adds, so its bits are its own.
"""

from __future__ import annotations

import torch

from validation.kernel_case import KernelCase
from validation.kernel_cell import Cell
from validation.kernel_variants import variant_of

NAME = "torch_tie"
_VARIANTS = ("neox", "full_width_tables", "padded_slots", "k_scale", "decode_zeros", "strided_callers")
_PAYLOADS = ("negative_zeros", "infinities", "denormals", "saturation")


def cells(matrix: str) -> list[Cell]:
    """Every dtype plain, and the variants of the kernel's own arguments and payloads in bf16."""
    sizes = [(3, 8)] if matrix == "default" else [(1, 8), (3, 8), (16, 16), (64, 8)]
    pairs = [(name, name) for name in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz")] + [("bf16", "fp8_e4m3fn")]
    plain = [Cell(NAME, "aiter", "torch", m, h, query, cache) for query, cache in pairs for m, h in sizes]
    variants = [Cell(NAME, "aiter", "torch", 3, 8, "bf16", "bf16", variant) for variant in _VARIANTS + _PAYLOADS]
    return plain + variants


def not_applicable(cell: Cell) -> str:
    """Only the interpreted kernel can be held to separately rounded operations."""
    return "the engine serves with AITER itself on a GPU" if torch.cuda.is_available() else ""


CASE = KernelCase(
    name=NAME,
    claim="the torch operations that serve the embedded engine on a CPU have the bits of AITER's kernel",
    source="the embedded engine of this project",
    removed_op="",
    removed_kernel="",
    cells=cells,
    variant_of=variant_of,
    not_applicable=not_applicable,
    compares="producers",
)
