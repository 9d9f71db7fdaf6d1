"""The activation scale of a block-scaled fp8 GEMM in its two byte orders, and how the order is told.

A scale is (M, G) float32: one for each token and each group of 128 channels. The default consumer reads row-major
bytes. The bpreshuffle GEMM of gfx95 reads the bytes of the transposed (G, M) matrix. AITER's fused quantisation writes
either; with ``transpose_scale`` it returns those bytes under the shape and strides of the row-major tensor, so that
nothing but a tag on the Python object (SGLang 24476) or corrected strides (its successors) tells them apart.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping

import torch

from validation.bits import bits_of

TAG = "_aiter_bpreshuffle_layout"
"""The attribute that SGLang 24476 sets on a scale whose bytes are already transposed."""


def materialised_bytes(scale: torch.Tensor) -> torch.Tensor:
    """The copy before every GEMM (SGLang 0.5.12): transposed bytes under the shape and strides of ``scale`` (M, G).

    Not idempotent: the result does not say that its bytes are transposed, and a second application permutes them again.
    """
    return scale.transpose(-1, -2).contiguous().view(*scale.shape)


def materialised(scale: torch.Tensor) -> torch.Tensor:
    """The copy as successors have it (SGLang 0.5.23): transposed bytes, and strides that say so. Idempotent."""
    return scale.t().contiguous().t()


def restrided(scale: torch.Tensor) -> torch.Tensor:
    """Transposed bytes (M, G), as the kernel returns them, under strides that describe them; copies nothing."""
    return torch.as_strided(scale, scale.shape, (1, scale.shape[0]))


def default_layout(scale: torch.Tensor) -> torch.Tensor:
    """Transposed bytes under row-major strides, copied back to row-major bytes: what the symmetric path pays."""
    return storage_order(scale).view(scale.shape[1], scale.shape[0]).t().contiguous()


def tagged(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` itself, marked as holding transposed bytes."""
    setattr(scale, TAG, True)
    return scale


def is_tagged(scale: torch.Tensor) -> bool:
    """Whether this very object carries the mark."""
    return getattr(scale, TAG, False) is True


def for_bpreshuffle(scale: torch.Tensor) -> torch.Tensor:
    """The dispatch of SGLang 24476 before a bpreshuffle GEMM: a tagged scale as it is, any other copied."""
    return scale if is_tagged(scale) else materialised_bytes(scale)


def for_default(scale: torch.Tensor) -> torch.Tensor:
    """The dispatch of SGLang 24476 before a default-layout GEMM: a tagged scale copied back, any other as it is."""
    return default_layout(scale) if is_tagged(scale) else scale


def storage_order(scale: torch.Tensor) -> torch.Tensor:
    """The elements of a dense ``scale`` as its storage has them, strides ignored: what a bpreshuffle GEMM reads."""
    return torch.as_strided(scale, (scale.numel(),), (1,), scale.storage_offset())


@dataclasses.dataclass(frozen=True)
class Survival:
    """What became of a transposed scale on its way: whether the tag was kept, and whether consumers read it right."""

    operation: str
    tag_kept: bool
    bytes_right: bool
    """Whether the bpreshuffle dispatch ends with the right bytes."""
    strides_right: bool
    """Whether the same way, taken by the restrided view instead, ends with the right values by index."""


WAYS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tuple": lambda scale: (scale, None)[0],
    "contiguous": lambda scale: scale.contiguous(),
    "to_same_dtype": lambda scale: scale.to(scale.dtype),
    "compiled_identity": lambda scale: _compiled(lambda x: x)(scale),
    "deepcopy": copy.deepcopy,
    "view": lambda scale: scale.view(scale.shape),
    "slice_all": lambda scale: scale[:],
    "slice_rows": lambda scale: scale[: scale.shape[0] - 1],
    "detach": lambda scale: scale.detach(),
    "data": lambda scale: scale.data,
    "clone": lambda scale: scale.clone(),
    "copy_into_buffer": lambda scale: torch.empty_strided(scale.shape, scale.stride()).to(scale.device).copy_(scale),
    "compiled_view": lambda scale: _compiled(lambda x: x.view(x.shape))(scale),
    "compiled_clone": lambda scale: _compiled(lambda x: x.clone())(scale),
}
"""Ways a scale takes between producer and GEMM. ``contiguous`` and ``to`` return the object itself where nothing is to
be done; compiled functions are traced by Dynamo and run by its eager backend, which keeps the graph's outputs."""

TAG_KEPT = frozenset({"tuple", "contiguous", "to_same_dtype", "compiled_identity", "deepcopy"})
"""The ways that keep the tag (torch 2.13): those that hand on the same object, and ``deepcopy``, which copies its
``__dict__``. On all others the tag is lost, the dispatch copies the transposed bytes again, and they are wrong."""


def survival(row_major: torch.Tensor, transposed: torch.Tensor) -> list[Survival]:
    """Each of ``WAYS`` taken by a tagged scale and by a restrided one.

    Args:
        row_major: (M, G), the kernel's scale without ``transpose_scale``; M > 1, or the two orders are one.
        transposed: (M, G), the kernel's scale with it.
    """
    rows = []
    for operation, way in WAYS.items():
        arrived = way(tagged(transposed.view(transposed.shape)))
        wanted = storage_order(materialised_bytes(way(row_major)))
        used = storage_order(for_bpreshuffle(arrived).contiguous())
        right = wanted.shape == used.shape and torch.equal(bits_of(wanted), bits_of(used))
        by_index = way(restrided(transposed))
        rows.append(
            Survival(operation, is_tagged(arrived), right, torch.equal(bits_of(way(row_major)), bits_of(by_index)))
        )
    return rows


def _compiled(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(function, backend="eager")
    return compiled
