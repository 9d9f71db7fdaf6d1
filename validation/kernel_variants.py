"""What a cell of the kernel cases may vary beside size and dtype: the kernel's arguments, its callers, its payloads.

Each variant takes the cell's plain ``Setting`` and replaces something. A payload reaches q, k and, through the kernel,
the cache; a structural variant changes an argument or how the caller lays its tensors out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from validation.kernel_cell import SLOTS, Cell, Setting, Variant
from validation.operations import KV_LORA_RANK, QK_ROPE_HEAD_DIM

PAGE = 64
"""Cache rows a page, as SGLang's sparse MLA backends have them on ROCm and CUDA (0.5.12)."""
_QUERY_INPUTS = ("q_nope", "q_pe", "k_nope", "k_pe")


def _with(setting: Setting, **changes: Any) -> Setting:
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
    """One row sees nothing at all; the others have padding between their rows, as a top-k over a short history."""
    indices = setting.indices.clone()
    indices[0] = -1
    indices[1:, 1::2] = -1
    return dataclasses.replace(setting, indices=indices)


def _paged(setting: Setting) -> Setting:
    """Indices as a page table gives them: whole pages, out of order, each token with an order of its own."""
    pages = torch.tensor([3, 0, 4, 1], device=setting.indices.device)
    rows = [_rows_of(pages.roll(token)) for token in range(setting.indices.shape[0])]
    return dataclasses.replace(setting, indices=_padded(rows, setting.indices))


def _prefix(setting: Setting) -> Setting:
    """Every token shares the rows of one prompt, page 2, and then has rows of its own, more with each token."""
    shared = _rows_of(torch.tensor([2], device=setting.indices.device))
    own = setting.indices[:, :1]
    rows = []
    for token in range(setting.indices.shape[0]):
        tail = (own[token] + 5 * torch.arange(1 + token % 7, device=own.device, dtype=own.dtype)) % SLOTS
        rows.append(torch.cat([shared, tail]))
    return dataclasses.replace(setting, indices=_padded(rows, setting.indices))


def _rows_of(pages: torch.Tensor) -> torch.Tensor:
    rows = pages[:, None] * PAGE + torch.arange(PAGE, device=pages.device)
    return rows.flatten().to(torch.int32)


def _padded(rows: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    indices = torch.full_like(like, -1)
    for token, row in enumerate(rows):
        kept = row[: like.shape[1]]
        indices[token, : len(kept)] = kept
    return indices


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
    return _with(setting, q_nope=q_nope, q_pe=q_pe, k_nope=k[..., :KV_LORA_RANK], k_pe=k[..., KV_LORA_RANK:])


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


STRUCTURAL: dict[str, Variant] = {
    "neox": _neox,
    "full_width_tables": _full_width_tables,
    "padded_slots": _padded_slots,
    "k_scale": _k_scale,
    "decode_zeros": _decode_zeros,
    "masked_rows": _masked_rows,
    "paged": _paged,
    "prefix": _prefix,
    "llama_4_scaling": _llama_4_scaling,
    "strided_callers": _strided_callers,
    "strided_q_cat": _strided_q_cat,
}
PAYLOADS: dict[str, Variant] = {
    "negative_zeros": _payload(-0.0, 0.0),
    "infinities": _payload(float("inf"), float("-inf")),
    "nans": _payload(float("nan")),
    "denormals": _payload(1e-40, -1e-39, 6e-8),
    "saturation": _payload(448.0, 500.0, -1000.0, 6e4),
    "every_pattern": _every_pattern,
}
VARIANTS: dict[str, Variant] = {**STRUCTURAL, **PAYLOADS}


def variant_of(cell: Cell) -> Variant:
    """The function behind the cell's variant name; ``plain`` and top-k lengths change nothing."""
    return VARIANTS.get(cell.variant, lambda setting: setting)


def not_applicable(cell: Cell) -> str:
    """Why the variant cannot be built for the cell's dtypes; empty where it can.

    ``llama_4_scaling`` multiplies in place, which torch has for no float8 dtype: with an fp8 query SGLang's own line
    raises before either path begins, so there is nothing to compare.
    """
    if cell.variant == "llama_4_scaling" and cell.query.startswith("fp8"):
        return "torch has no in-place multiplication for float8, so llama_4_scaling raises before either path begins"
    return ""
