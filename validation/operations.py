"""The operations of one GLM-5 sparse-attention decode step, and who can provide them.

Shapes: M tokens, H query heads of this rank, L = kv_lora_rank = 512, R = qk_rope_head_dim = 64, S cache slots, K top-k.
A provider is one leaf file under ``kernels/providers``; the kernel tier and the embedded engine use the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from validation.discovery import load_all

KV_LORA_RANK = 512
QK_ROPE_HEAD_DIM = 64
Q_CAT_DIM = KV_LORA_RANK + QK_ROPE_HEAD_DIM
"""GLM-5's attention geometry (its published config.json): q_all is (M, H, 576)."""


@dataclasses.dataclass(frozen=True)
class FusedInputs:
    """What ``fused_qk_rope_cat_and_cache_mla`` takes. ``kv_cache`` is written in place at ``slots`` of at least 0."""

    q_nope: torch.Tensor  # (M, H, L), already absorbed into the latent space
    q_pe: torch.Tensor  # (M, H, R), not yet rotated
    k_nope: torch.Tensor  # (M, 1, L)
    k_pe: torch.Tensor  # (M, 1, R), not yet rotated
    kv_cache: torch.Tensor  # (S, 1, L + R), bf16, fp16 or fp8
    slots: torch.Tensor  # (M,) int64; -1 writes nothing
    positions: torch.Tensor  # (M,) int64
    cos: torch.Tensor  # (P, R / 2) or (P, R)
    sin: torch.Tensor
    k_scale: torch.Tensor  # (1,) float32
    is_neox: bool = False
    q_out_dtype: torch.dtype | None = None
    num_decode_toks_for_zeros: int = 0


@dataclasses.dataclass(frozen=True)
class FusedOutputs:
    """What it gives: the rotated, concatenated query and the rotated key part."""

    q_cat: torch.Tensor  # (M, H, L + R), contiguous
    k_pe: torch.Tensor  # (M, 1, R); rows whose slot is -1 are not written
    decode_q_pe: torch.Tensor | None = None  # (num_decode_toks_for_zeros, H, R)
    q_nope_zeros: torch.Tensor | None = None  # (num_decode_toks_for_zeros, H, L)


class Producer(Protocol):
    """Rotates, concatenates and caches."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why these dtypes cannot be produced on this machine; empty where they can."""

    def fused_qk_rope_cat_and_cache_mla(self, inputs: FusedInputs) -> FusedOutputs:
        """One launch: q_cat and k_pe out, k written into the cache."""


class Consumer(Protocol):
    """Sparse MLA decode attention."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why these dtypes cannot be consumed on this machine; empty where they can."""

    def prepare(self, shapes: Collection[tuple[int, torch.dtype, torch.dtype]]) -> None:
        """Compile ahead, where there is something to compile, for these (heads, query dtype, cache dtype)."""

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """(M, H, L) out of q_all (M, H, L + R), kv_cache (S, 1, L + R) and indices (M, K) int32, -1 for padding."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """Somebody's library behind the operations it implements."""

    name: str
    version: str
    """What was found: release, file, and what was changed to run it here."""
    missing: str = ""
    """Why it cannot be used here, with the install command; empty where it can."""
    producer: Producer | None = None
    consumer: Consumer | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")


def providers() -> Mapping[str, Provider]:
    """Every provider of the checkout by name, those that are missing here included."""
    return {provider.name: provider for provider in load_all("kernels/providers", "PROVIDER").values()}


def concatenated_query(q_cat: torch.Tensor) -> torch.Tensor:
    """The cat path: split q_cat (M, H, L + R) as the caller did, and concatenate it again as the backend did."""
    q_nope, q_rope = q_cat[..., :KV_LORA_RANK], q_cat[..., KV_LORA_RANK:]
    return torch.cat([q_nope, q_rope], dim=-1)


def viewed_query(q_cat: torch.Tensor) -> torch.Tensor:
    """The skip path: q_cat (M, H, L + R) itself, through a view that copies nothing where it is contiguous."""
    return q_cat.contiguous().view(-1, q_cat.shape[-2], q_cat.shape[-1])


QUERY_PATHS = {"cat": concatenated_query, "skip": viewed_query}
