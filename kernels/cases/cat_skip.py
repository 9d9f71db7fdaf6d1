"""Case: skip the redundant concatenation of q_cat in GLM-5 sparse-attention decode (SGLang 24125).

The claim: AITER's fused kernel already returns a contiguous q_cat (M, H, 576); passing it on through a view instead of
splitting and concatenating it again changes no bit of anything, allocates nothing and launches nothing.

Two consumers are optional, AITER's own sparse attention and SGLang's own TileLang kernel: where they are not installed,
their cells are not applicable, by name and with the install command. The other consumers are always required.
"""

from __future__ import annotations

from validation.kernel_case import KernelCase
from validation.kernel_cell import REMOVED_KERNEL, Cell
from validation.kernel_variants import VARIANTS, not_applicable, variant_of

NAME = "cat_skip"
OPTIONAL = ("aiter_sparse_mla", "sglang_tilelang")
"""Both take 16 heads or more."""
_TABLES = ("paged", "prefix")


def cells(matrix: str) -> list[Cell]:
    """The declared cells. ``default`` keeps M x H small, because the CPU interpreter takes 5 ms a (token, head)."""
    if matrix == "full":
        sizes = [(m, h) for m in (1, 2, 3, 5, 8, 16, 33, 64) for h in (8, 16, 32, 64, 128)]
        variant_sizes, topks = [(3, 8), (16, 16)], [64, 128, 256, 512, 1024, 2048]
    else:
        sizes, variant_sizes, topks = [(1, 8), (3, 16), (16, 8), (1, 64)], [(3, 8)], [64, 2048]
    # torch's cells keep to what the interpreter does in a second, but for the seed's own dtype
    most = 64 if matrix == "full" else 48
    plain = [
        Cell(NAME, "aiter", consumer, m, h, query, cache)
        for consumer, few in (("tilelang", False), ("torch", True))
        for query, cache in _dtype_pairs(few)
        for m, h in sizes
        if not few or m * h <= most or (query == "fp8_e4m3fn" and m * h == 64)
    ]
    variants = [
        Cell(NAME, "aiter", consumer, m, h, query, query, variant)
        for consumer, query in (("tilelang", "bf16"), ("torch", "fp8_e4m3fn"))
        for m, h in variant_sizes
        for variant in VARIANTS
    ]
    lengths = [Cell(NAME, "aiter", "tilelang", 3, 8, "bf16", "bf16", f"topk{topk}", topk) for topk in topks]
    optional_sizes = [(m, h) for m in (1, 3, 16, 64) for h in (16, 64, 128)] if matrix == "full" else [(1, 16), (2, 16)]
    optional = [
        Cell(NAME, "aiter", consumer, m, h, query, query)
        for consumer in OPTIONAL
        for query in (("bf16", "fp8_e4m3fn", "fp8_e4m3fnuz") if matrix == "full" else ("bf16",))
        for m, h in optional_sizes
    ]
    paged = [Cell(NAME, "aiter", consumer, 2, 16, "bf16", "bf16", name) for consumer in OPTIONAL for name in _TABLES]
    return plain + variants + lengths + optional + paged


def _dtype_pairs(with_mixed: bool) -> list[tuple[str, str]]:
    same = [(name, name) for name in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz")]
    return [*same, ("bf16", "fp8_e4m3fn")] if with_mixed else same


CASE = KernelCase(
    name=NAME,
    claim="skipping the concatenation of q_cat changes no bit, allocates nothing and launches nothing",
    source="SGLang pull request 24125",
    removed_op="aten::cat",
    removed_kernel=REMOVED_KERNEL,
    cells=cells,
    variant_of=variant_of,
    not_applicable=not_applicable,
)
