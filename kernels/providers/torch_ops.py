"""The operations in plain torch: the reference that the kernel tier holds AITER to, and what serves on a CPU.

The rotation rounds after each operation, as AITER's kernel does in the query's dtype: two products, then their sum. A
single rounding at the end gives other bits.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from validation.operations import KV_LORA_RANK, FusedInputs, FusedOutputs, Provider

_COMPUTABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def _unsupported(query: torch.dtype, cache: torch.dtype) -> str:
    wrong = [str(dtype) for dtype in (query, cache) if dtype not in _COMPUTABLE]
    return f"torch computes in {', '.join(map(str, _COMPUTABLE))}, not in {', '.join(wrong)}" if wrong else ""


def _rotated(x: torch.Tensor, is_neox: bool) -> torch.Tensor:
    """Each element's partner with its sign: ``(-x2, x1)``, halves with neox, neighbours without."""
    if is_neox:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


def _angles(table: torch.Tensor, positions: torch.Tensor, width: int, is_neox: bool) -> torch.Tensor:
    """Rows (M, 1, width) of a table that holds each angle once (half width) or spelt out (full width)."""
    rows = table[positions]
    if rows.shape[-1] != width:
        rows = rows.repeat(1, 2) if is_neox else rows.repeat_interleave(2, dim=-1)
    return rows[:, None, :]


def _scatter(cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Write ``rows`` at ``slots``; as bytes where torch cannot index the dtype."""
    if cache.element_size() == 1:
        cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
    cache.index_copy_(0, slots, rows)


class TorchProducer:
    """``fused_qk_rope_cat_and_cache_mla`` as separate torch operations."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why these dtypes cannot be produced; empty where they can."""
        return _unsupported(query, cache)

    def fused_qk_rope_cat_and_cache_mla(self, inputs: FusedInputs) -> FusedOutputs:
        """See ``FusedInputs`` for shapes. Rows of ``k_pe`` whose slot is -1 are zero."""
        width = inputs.q_pe.shape[-1]
        cos = _angles(inputs.cos, inputs.positions, width, inputs.is_neox)
        sin = _angles(inputs.sin, inputs.positions, width, inputs.is_neox)
        q_pe = inputs.q_pe * cos + _rotated(inputs.q_pe, inputs.is_neox) * sin
        k_pe = inputs.k_pe * cos + _rotated(inputs.k_pe, inputs.is_neox) * sin
        out_dtype = inputs.q_out_dtype or inputs.q_nope.dtype
        if inputs.q_nope.dtype == q_pe.dtype == out_dtype:
            q_cat = torch.cat([inputs.q_nope, q_pe], dim=-1)
        else:
            q_cat = torch.cat([inputs.q_nope.to(out_dtype), q_pe.to(out_dtype)], dim=-1)

        cache = inputs.kv_cache
        reciprocal = 1 / inputs.k_scale.float()
        k = torch.cat([inputs.k_nope.float() * reciprocal, k_pe.float() * reciprocal], dim=-1).to(cache.dtype)
        written = inputs.slots >= 0
        _scatter(cache, inputs.slots[written], k[written])
        k_pe_out = torch.where(written[:, None, None], k_pe.to(inputs.k_pe.dtype), 0)

        count = inputs.num_decode_toks_for_zeros
        if not count:
            return FusedOutputs(q_cat, k_pe_out)
        return FusedOutputs(
            q_cat,
            k_pe_out,
            decode_q_pe=q_pe[:count].to(inputs.q_nope.dtype),
            q_nope_zeros=torch.zeros_like(inputs.q_nope[:count], memory_format=torch.contiguous_format),
        )


class TorchConsumer:
    """Sparse MLA decode: gather the chosen slots, attend in fp32."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why these dtypes cannot be consumed; empty where they can."""
        return _unsupported(query, cache)

    def prepare(self, shapes: Collection[tuple[int, torch.dtype, torch.dtype]]) -> None:
        """Nothing to compile."""

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """(M, H, L) out of q_all (M, H, L + R), in the query's dtype, bf16 for an fp8 query.

        A row without any index is zero. The softmax is the log-sum-exp form: logits minus the row's maximum,
        exponentials divided by their sum.
        """
        rows, chosen = indices.shape
        slots = indices.clamp_min(0).reshape(-1).long()
        entries = kv_cache.flatten(1)
        if entries.element_size() == 1:
            gathered = entries.view(torch.uint8).index_select(0, slots).view(kv_cache.dtype)
        else:
            gathered = entries.index_select(0, slots)
        kv = gathered.view(rows, chosen, -1).float()
        logits = torch.bmm(q_all.float(), kv.transpose(1, 2)) * softmax_scale
        logits.masked_fill_((indices < 0)[:, None, :], -torch.inf)
        # A row without any index has no maximum; zero in its place makes its exponentials, and so its output, zero.
        highest = logits.amax(dim=-1, keepdim=True)
        weights = torch.exp(logits - highest.masked_fill(highest == -torch.inf, 0.0))
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0.0, 1.0)
        output = torch.bmm(weights, kv[..., :KV_LORA_RANK])
        return output.to(torch.bfloat16 if q_all.element_size() == 1 else q_all.dtype)


PROVIDER = Provider(
    name="torch",
    version=torch.__version__,
    producer=TorchProducer(),
    consumer=TorchConsumer(),
)
