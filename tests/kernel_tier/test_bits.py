"""The bit comparison sees what a tolerance does not, and names the likely cause."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from validation.bits import bits_of, compare, same_storage, ulps


def sample(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(5)).to(dtype)


def with_bits(tensor: torch.Tensor, index: tuple[int, ...], flip: int) -> torch.Tensor:
    copy = tensor.clone()
    bits = copy.view(bits_of(copy).dtype)
    bits[index] ^= flip
    return copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_one_flipped_bit_is_seen_and_located(dtype: torch.dtype) -> None:
    check = compare("q_all", sample(dtype), with_bits(sample(dtype), (2, 3), 1))
    assert not check.equal
    assert check.detail.startswith("1 of 32 elements differ, first at (2, 3): expected 0x")
    assert compare("q_all", sample(dtype), sample(dtype)).equal


NAN = torch.tensor([[0x7FC0, 0x7FC1]], dtype=torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize(
    ("expected", "actual", "word"),
    [
        (sample(), sample().float(), "dtype"),
        (sample(), sample()[:3], "shape"),
        (sample(), sample().t().contiguous().t(), "stride"),
        (torch.zeros(2, 2), -torch.zeros(2, 2), "zero sign"),
        (NAN, torch.full_like(NAN, float("nan")), "nan payload"),
        (sample(), torch.full_like(sample(), float("nan")), "unwritten"),
        (sample(), sample().flip(0), "order"),
        (sample().reshape(4, 8)[:, :4], sample()[:, :4].t().contiguous(), "layout"),
        (sample(), with_bits(sample(), (1, 1), 1), "rounding"),
        (sample(), sample() * 3, "value"),
    ],
    ids=["dtype", "shape", "stride", "zero", "nan", "unwritten", "order", "layout", "rounding", "value"],
)
def test_a_mismatch_names_its_likely_cause(expected: torch.Tensor, actual: torch.Tensor, word: str) -> None:
    check = compare("q_all", expected, actual)
    assert not check.equal
    assert word in check.detail


def test_a_stale_buffer_is_told_from_a_wrong_value() -> None:
    old = torch.randn(4, 8, generator=torch.Generator().manual_seed(6)).to(torch.bfloat16)
    mixed = sample()
    mixed[3] = old[3]
    assert "stale" in compare("q_all", sample(), mixed, stale=old).detail
    assert "stale" not in compare("q_all", sample(), mixed).detail


def test_empty_tensors_are_equal_only_in_shape() -> None:
    assert compare("k_pe", torch.empty(0, 8), torch.empty(0, 8)).equal
    assert not compare("k_pe", torch.empty(0, 8), torch.empty(0, 4)).equal


def test_ulps_count_representable_values_across_zero() -> None:
    one = torch.tensor([1.0, 0.0, 2.0**-133], dtype=torch.bfloat16)
    other = torch.tensor([1.0078125, -0.0, -(2.0**-133)], dtype=torch.bfloat16)
    assert ulps(one, other).tolist() == [1, 0, 2]


def test_storage_identity_is_more_than_equality() -> None:
    tensor = sample()
    assert same_storage(tensor, tensor.view(-1))
    assert not same_storage(tensor, tensor.clone())
    assert not same_storage(tensor, tensor[1:])


@given(st.integers(0, 31), st.integers(0, 15))
def test_any_flipped_bit_of_any_element_is_seen(element: int, bit: int) -> None:
    flip = 1 << bit if bit < 15 else -(1 << 15)
    assert not compare("x", sample(), with_bits(sample(), divmod(element, 8), flip)).equal
