"""Comparing tensors bit for bit, and saying what a difference looks like.

Values are not enough: 0.0 equals -0.0, one NaN is another, and a permuted layout can hold the right numbers. So dtype,
shape, stride and every byte are compared, and a mismatch is named by the likely cause.
"""

from __future__ import annotations

import torch

from validation.records import KernelCheck

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NEAR_ULPS = 2
"""Differences up to this many units in the last place read as rounding: one operation contributes at most one half,
and the fused kernel's rope has three. Where its two products cancel, the units are those of the products."""


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of ``tensor`` as unsigned-width integers of the same shape, NaN payloads and signed zeros kept."""
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=_INTEGER[tensor.element_size()], device=tensor.device)
    return tensor.detach().contiguous().view(_INTEGER[tensor.element_size()])


def compare(
    name: str, expected: torch.Tensor, actual: torch.Tensor, *, stale: torch.Tensor | None = None
) -> KernelCheck:
    """Whether ``actual`` is ``expected``: dtype, shape, stride and bytes.

    ``stale`` is what an earlier step left in the same place, to tell a stale buffer from a wrong value.
    """
    for what, want, got in (
        ("dtype", expected.dtype, actual.dtype),
        ("shape", tuple(expected.shape), tuple(actual.shape)),
        ("device", expected.device.type, actual.device.type),
    ):
        if want != got:
            return KernelCheck(name, False, f"{what} {got} where {want} was expected; likely layout")
    want_bits, got_bits = bits_of(expected), bits_of(actual)
    different = want_bits != got_bits
    count = int(different.sum())
    if count:
        first = tuple(int(i) for i in different.nonzero()[0])
        width = 2 * expected.element_size()
        mask = (1 << 4 * width) - 1
        return KernelCheck(
            name,
            False,
            f"{count} of {expected.numel()} elements differ, first at {first}: expected "
            f"0x{int(want_bits[first]) & mask:0{width}x}, found 0x{int(got_bits[first]) & mask:0{width}x}; "
            f"likely {likely_class(expected, actual, different, stale)}",
        )
    if expected.stride() != actual.stride():
        return KernelCheck(
            name, False, f"stride {actual.stride()} where {expected.stride()} was expected; likely layout"
        )
    return KernelCheck(name, True)


def likely_class(
    expected: torch.Tensor, actual: torch.Tensor, different: torch.Tensor, stale: torch.Tensor | None = None
) -> str:
    """A name for the cause: zero sign, nan payload, unwritten, stale, layout, order, rounding or value."""
    want, got = bits_of(expected), bits_of(actual)
    real = expected.dtype.is_floating_point
    wide_want, wide_got = expected[different].double(), actual[different].double()
    if real and bool(((wide_want == 0) & (wide_got == 0)).all()):
        return "zero sign"
    if real and bool((wide_want.isnan() & wide_got.isnan()).all()):
        return "nan payload"
    # only outputs poisoned with complementary patterns differ in every bit of every element
    if torch.equal(want[different], ~got[different]) or not bool(got[different].any()):
        return "unwritten"
    if real and bool(wide_got.isnan().all()) and not bool(wide_want.isnan().any()):
        return "unwritten"
    if stale is not None and stale.shape == actual.shape and torch.equal(bits_of(stale)[different], got[different]):
        return "stale"
    transposed = [(want, got), (got, want)] if expected.dim() >= 2 else []
    if any(torch.equal(one.transpose(-1, -2).flatten(), other.flatten()) for one, other in transposed):
        return "layout"
    if torch.equal(want.flatten().sort().values, got.flatten().sort().values):
        return "order"
    if real and _is_rounding(wide_want, wide_got, ulps(expected, actual)[different], torch.finfo(expected.dtype).eps):
        return "rounding"
    return "value"


def _is_rounding(want: torch.Tensor, got: torch.Tensor, apart: torch.Tensor, epsilon: float) -> bool:
    """Mostly a few units in the last place, and where terms cancelled, a few units of the largest value."""
    if not torch.equal(want.isfinite(), got.isfinite()):
        return False
    finite = want.isfinite()
    furthest = (want - got)[finite].abs().max() if bool(finite.any()) else torch.zeros(())
    largest = want[finite].abs().max() if bool(finite.any()) else torch.zeros(())
    return int(apart.median()) <= NEAR_ULPS and bool(furthest <= NEAR_ULPS * epsilon * largest)


def ulps(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """How many representable values lie between the two, element by element (int64); -0.0 and 0.0 are 0 apart."""
    return (_ordered(expected) - _ordered(actual)).abs()


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    half = 1 << (8 * tensor.element_size() - 1)
    pattern = bits_of(tensor).to(torch.int64) & (2 * half - 1)
    return torch.where(pattern >= half, half - pattern, pattern)


def same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors begin at the same byte of the same storage."""
    return (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() == other.storage_offset()
    )
