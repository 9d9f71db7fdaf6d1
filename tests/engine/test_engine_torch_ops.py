"""The torch provider against the definition, written out in numpy with every rounding explicit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engine_tools import torch_provider

from validation.operations import KV_LORA_RANK, QK_ROPE_HEAD_DIM, FusedInputs

TOKENS, HEADS, SLOTS = 5, 3, 32


def inputs(seed: int = 0, **changes: object) -> FusedInputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    angles = torch.arange(64.0)[:, None] * 0.3 ** torch.linspace(0, 4, QK_ROPE_HEAD_DIM // 2)
    made = FusedInputs(
        q_nope=draw(TOKENS, HEADS, KV_LORA_RANK),
        q_pe=draw(TOKENS, HEADS, QK_ROPE_HEAD_DIM),
        k_nope=draw(TOKENS, 1, KV_LORA_RANK),
        k_pe=draw(TOKENS, 1, QK_ROPE_HEAD_DIM),
        kv_cache=torch.full((SLOTS, 1, KV_LORA_RANK + QK_ROPE_HEAD_DIM), 7.0, dtype=torch.bfloat16),
        slots=torch.tensor([4, -1, 0, 31, 9]),
        positions=torch.tensor([3, 63, 0, 17, 17]),
        cos=angles.cos().bfloat16(),
        sin=angles.sin().bfloat16(),
        k_scale=torch.ones(1),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def produce(made: FusedInputs) -> tuple[torch.Tensor, torch.Tensor]:
    producer = torch_provider().producer
    assert producer is not None
    outputs = producer.fused_qk_rope_cat_and_cache_mla(made)
    return outputs.q_cat, outputs.k_pe


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).bfloat16().float().numpy()


def rotation(x: torch.Tensor, made: FusedInputs, *, once: bool = False) -> np.ndarray:
    """Element by element; ``once`` rounds at the end only, which is what the kernel does not do."""
    source, result = x.float().numpy(), np.zeros(x.shape, dtype=np.float32)
    half = QK_ROPE_HEAD_DIM // 2
    for token, position in enumerate(made.positions.tolist()):
        for d in range(QK_ROPE_HEAD_DIM):
            partner, sign, angle = (
                ((d + half) % QK_ROPE_HEAD_DIM, -1 if d < half else 1, d % half)
                if made.is_neox
                else (d ^ 1, -1 if d % 2 == 0 else 1, d // 2)
            )
            cos, sin = made.cos[position, angle].item(), made.sin[position, angle].item()
            straight, crossed = source[token, :, d] * cos, sign * source[token, :, partner] * sin
            if not once:
                straight, crossed = rounded(straight), rounded(crossed)
            result[token, :, d] = straight + crossed
    return rounded(result)


@pytest.mark.parametrize("is_neox", [False, True], ids=["interleaved", "neox"])
@pytest.mark.parametrize("full_width", [False, True], ids=["half_table", "full_table"])
def test_the_rotation_rounds_after_each_operation(is_neox: bool, full_width: bool) -> None:
    made = inputs(is_neox=is_neox)
    given = made
    if full_width:
        spread = [t.repeat(1, 2) if is_neox else t.repeat_interleave(2, dim=1) for t in (made.cos, made.sin)]
        given = dataclasses.replace(made, cos=spread[0], sin=spread[1])
    q_cat, k_pe = produce(given)
    written = (made.slots >= 0).numpy()
    assert torch.equal(q_cat[..., :KV_LORA_RANK], made.q_nope)
    np.testing.assert_array_equal(q_cat[..., KV_LORA_RANK:].float().numpy(), rotation(made.q_pe, made))
    np.testing.assert_array_equal(k_pe.float().numpy()[written], rotation(made.k_pe, made)[written])
    assert not np.array_equal(q_cat[..., KV_LORA_RANK:].float().numpy(), rotation(made.q_pe, made, once=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_the_cache_is_written_at_its_slots_only(dtype: torch.dtype) -> None:
    made = inputs(k_scale=torch.tensor([0.37]))
    made = dataclasses.replace(made, kv_cache=made.kv_cache.to(dtype))
    _, k_pe = produce(made)
    scale = torch.tensor(1.0) / torch.tensor(0.37)
    for token, slot in enumerate(made.slots.tolist()):
        if slot >= 0:
            row = torch.cat([made.k_nope[token], k_pe[token]], dim=-1).float() * scale
            assert torch.equal(made.kv_cache[slot].float(), row.to(dtype).float())
    untouched = [slot for slot in range(SLOTS) if slot not in made.slots.tolist()]
    assert bool((made.kv_cache.float()[untouched] == 7.0).all())


def test_a_query_dtype_of_its_own_and_decode_zeros() -> None:
    made = inputs(q_out_dtype=torch.float8_e4m3fn, num_decode_toks_for_zeros=2)
    producer = torch_provider().producer
    assert producer is not None
    outputs = producer.fused_qk_rope_cat_and_cache_mla(made)
    plain, _ = produce(inputs())
    assert outputs.q_cat.dtype is torch.float8_e4m3fn
    assert torch.equal(outputs.q_cat.float(), plain.to(torch.float8_e4m3fn).float())
    assert outputs.decode_q_pe is not None
    assert torch.equal(outputs.decode_q_pe, plain[:2, :, KV_LORA_RANK:])
    assert outputs.q_nope_zeros is not None
    assert outputs.q_nope_zeros.shape == (2, HEADS, KV_LORA_RANK)
    assert not outputs.q_nope_zeros.any()


def attend(q_all: torch.Tensor, cache: torch.Tensor, indices: torch.Tensor, scale: float) -> torch.Tensor:
    consumer = torch_provider().consumer
    assert consumer is not None
    return consumer.sparse_mla(q_all, cache, indices, scale)


def test_sparse_mla_attends_to_the_chosen_slots() -> None:
    generator = torch.Generator().manual_seed(1)
    q_all = torch.randn(4, HEADS, 576, generator=generator).bfloat16()
    cache = torch.randn(SLOTS, 1, 576, generator=generator).bfloat16()
    indices = torch.tensor([[3, 9, 1, 30], [5, -1, 2, -1], [-1, -1, -1, -1], [8, 8, -1, -1]], dtype=torch.int32)
    output = attend(q_all, cache, indices, 0.05)
    assert output.dtype is torch.bfloat16
    assert output.shape == (4, HEADS, KV_LORA_RANK)
    for row, chosen in enumerate(indices.tolist()):
        kv = cache[[slot for slot in chosen if slot >= 0], 0].double()
        weights = (q_all[row].double() @ kv.T * 0.05).softmax(dim=-1)
        torch.testing.assert_close(output[row].double(), weights @ kv[:, :KV_LORA_RANK], atol=0.01, rtol=0.01)
    assert not output[2].any()
    shifted = attend(q_all, cache, torch.where(indices < 0, indices, (indices + 1) % SLOTS), 0.05)
    assert not torch.equal(shifted, output)


def test_sparse_mla_does_not_overflow() -> None:
    q_all = torch.full((1, 1, 576), 300.0, dtype=torch.bfloat16)
    cache = torch.stack([torch.full((1, 576), 300.0), torch.full((1, 576), -300.0)]).bfloat16()
    output = attend(q_all, cache, torch.tensor([[0, 1]], dtype=torch.int32), 1.0)
    assert torch.equal(output, torch.full_like(output, 300.0))


def test_dtypes_it_cannot_compute_are_named() -> None:
    provider = torch_provider()
    assert provider.producer is not None
    assert provider.producer.unsupported(torch.bfloat16, torch.bfloat16) == ""
    assert "torch.uint8" in provider.producer.unsupported(torch.bfloat16, torch.uint8)
