"""Case: skip the redundant concatenation of q_cat in GLM-5 sparse-attention decode (SGLang 24125).

The claim: AITER's fused kernel already returns a contiguous q_cat (M, H, 576); passing it on through a view instead of
splitting and concatenating it again changes no bit of anything, allocates nothing and launches nothing.
"""

from __future__ import annotations

import dataclasses

import torch

from validation.kernel_case import KernelCase
from validation.kernel_cell import Cell, Setting, Variant
from validation.operations import KV_LORA_RANK, QK_ROPE_HEAD_DIM

NAME = "cat_skip"


def _with(setting: Setting, **changes: object) -> Setting:
    return dataclasses.replace(setting, inputs=dataclasses.replace(setting.inputs, **changes))


def _neox(setting: Setting) -> Setting:
    return _with(setting, is_neox=True)


def _full_width_tables(setting: Setting) -> Setting:
    return _with(
        setting,
        cos=setting.inputs.cos.repeat_interleave(2, dim=-1).contiguous(),
        sin=setting.inputs.sin.repeat_interleave(2, dim=-1).contiguous(),
    )


def _padded_slots(setting: Setting) -> Setting:
    slots = setting.inputs.slots.clone()
    slots[::2] = -1
    return _with(setting, slots=slots)


def _k_scale(setting: Setting) -> Setting:
    return _with(setting, k_scale=torch.full_like(setting.inputs.k_scale, 0.37))


def _decode_zeros(setting: Setting) -> Setting:
    return _with(setting, num_decode_toks_for_zeros=setting.inputs.q_nope.shape[0])


def _masked_rows(setting: Setting) -> Setting:
    indices = setting.indices.clone()
    indices[0] = -1
    indices[1:, 1::2] = -1
    return dataclasses.replace(setting, indices=indices)


def _paged(setting: Setting) -> Setting:
    """Indices as a page table gives them: runs of 64 rows, pages out of order."""
    pages = torch.tensor([3, 0, 4, 1], device=setting.indices.device)
    rows = (pages[:, None] * 64 + torch.arange(64, device=pages.device)).flatten()[: setting.indices.shape[1]]
    indices = torch.full_like(setting.indices, -1)
    indices[:, : len(rows)] = rows.to(torch.int32)
    return dataclasses.replace(setting, indices=indices)


def _llama_4_scaling(setting: Setting) -> Setting:
    """The scale is multiplied into the q_nope part in place, through a slice of q_cat, on both paths."""
    tokens = setting.inputs.q_nope.shape[0]
    scale = torch.linspace(0.5, 1.5, tokens, device=setting.indices.device)[:, None, None]

    def scaled(q_cat: torch.Tensor) -> torch.Tensor:
        q_cat[..., :KV_LORA_RANK].mul_(scale.to(q_cat.dtype))
        return q_cat

    return dataclasses.replace(setting, after_producer=scaled)


def _strided_callers(setting: Setting) -> Setting:
    """q_nope as the transposed result of the absorbing bmm, q_pe and k_pe as slices of wider projections."""
    inputs = setting.inputs
    q_nope = inputs.q_nope.transpose(0, 1).contiguous().transpose(0, 1)
    q_pe = torch.cat([inputs.q_pe.new_zeros(*inputs.q_pe.shape[:-1], 32), inputs.q_pe], dim=-1)[..., 32:]
    k = torch.cat([inputs.k_nope, inputs.k_pe], dim=-1)
    return _with(
        setting, q_nope=q_nope, q_pe=q_pe, k_nope=k[..., :KV_LORA_RANK], k_pe=k[..., KV_LORA_RANK:]
    )


def _strided_q_cat(setting: Setting) -> Setting:
    """A caller whose q_cat is a slice of a wider buffer: the view must copy, and the consumer still get its layout."""

    def sliced(q_cat: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([q_cat, q_cat[..., :QK_ROPE_HEAD_DIM]], dim=-1)
        return wide[..., : q_cat.shape[-1]]

    return dataclasses.replace(setting, after_producer=sliced, zero_copy=False)


def _payload(*values: float) -> Variant:
    """Every 7th element of each input is one of ``values``, in turn: beside them stays ordinary data."""

    def variant(setting: Setting) -> Setting:
        return _with(setting, **{name: _sprinkle(getattr(setting.inputs, name), values) for name in _QUERY_INPUTS})

    return variant


_QUERY_INPUTS = ("q_nope", "q_pe", "k_nope", "k_pe")


def _sprinkle(tensor: torch.Tensor, values: tuple[float, ...]) -> torch.Tensor:
    flat = tensor.flatten().clone()
    places = torch.arange(0, flat.numel(), 7, device=flat.device)
    flat[places] = torch.tensor(values, dtype=flat.dtype, device=flat.device).repeat(len(places))[: len(places)]
    return flat.view(tensor.shape)


def _every_pattern(setting: Setting) -> Setting:
    """Inputs that count through the 16-bit patterns: every exponent, NaN payload and signed zero, as many as fit."""
    start = 0
    changed = {}
    for name in _QUERY_INPUTS:
        tensor: torch.Tensor = getattr(setting.inputs, name)
        patterns = (torch.arange(start, start + tensor.numel()) * 37) % 65536
        start += tensor.numel()
        changed[name] = patterns.to(torch.uint16).view(tensor.dtype).view(tensor.shape).to(tensor.device)
    return _with(setting, **changed)


VARIANTS: dict[str, Variant] = {
    "plain": lambda setting: setting,
    "neox": _neox,
    "full_width_tables": _full_width_tables,
    "padded_slots": _padded_slots,
    "k_scale": _k_scale,
    "decode_zeros": _decode_zeros,
    "masked_rows": _masked_rows,
    "paged": _paged,
    "llama_4_scaling": _llama_4_scaling,
    "strided_callers": _strided_callers,
    "strided_q_cat": _strided_q_cat,
    "negative_zeros": _payload(-0.0, 0.0),
    "infinities": _payload(float("inf"), float("-inf")),
    "nans": _payload(float("nan")),
    "denormals": _payload(1e-40, -1e-39, 6e-8),
    "saturation": _payload(448.0, 500.0, -1000.0, 6e4),
    "every_pattern": _every_pattern,
}


def not_applicable(cell: Cell) -> str:
    """Why the case itself does not apply to ``cell``; empty where it does."""
    if cell.variant == "llama_4_scaling" and cell.query.startswith("fp8"):
        return "torch has no in-place multiplication for float8, so llama_4_scaling raises on both paths alike"
    return ""


def cells(matrix: str) -> list[Cell]:
    """The declared cells. ``default`` keeps M x H small, because the CPU interpreter takes 5 ms a (token, head)."""
    if matrix == "full":
        sizes = [(m, h) for m in (1, 2, 3, 5, 8, 16, 33, 64) for h in (8, 16, 32, 64, 128)]
        variant_sizes, topks = [(3, 8), (16, 16)], (64, 128, 256, 512, 1024, 2048)
    else:
        sizes, variant_sizes, topks = [(1, 8), (3, 16), (16, 8), (1, 64)], [(3, 8)], (64, 2048)
    plain = [
        Cell(NAME, "aiter", consumer, m, h, query, cache)
        for consumer, few in (("tilelang", False), ("torch", True))
        for query, cache in _dtype_pairs(few)
        for m, h in sizes
        if m * h <= 64 or not few
    ]
    variants = [
        Cell(NAME, "aiter", consumer, m, h, query, query, variant)
        for consumer, query in (("tilelang", "bf16"), ("torch", "fp8_e4m3fn"))
        for m, h in variant_sizes
        for variant in VARIANTS
        if variant != "plain"
    ]
    lengths = [Cell(NAME, "aiter", "tilelang", 3, 8, "bf16", "bf16", f"topk{topk}", topk) for topk in topks]
    return plain + variants + lengths


def _dtype_pairs(with_mixed: bool) -> list[tuple[str, str]]:
    same = [(name, name) for name in ("bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz")]
    return [*same, ("bf16", "fp8_e4m3fn")] if with_mixed else same


def variant_of(cell: Cell) -> Variant:
    """The function behind the cell's variant name; top-k lengths are plain settings of another length."""
    return VARIANTS.get(cell.variant, VARIANTS["plain"])


CASE = KernelCase(
    name=NAME,
    claim="skipping the concatenation of q_cat changes no bit, allocates nothing and launches nothing",
    source="SGLang pull request 24125",
    removed_op="aten::cat",
    removed_kernel=r"CatArrayBatchedCopy|concat_mla_absorb_q",
    cells=cells,
    variant_of=variant_of,
    not_applicable=not_applicable,
)

