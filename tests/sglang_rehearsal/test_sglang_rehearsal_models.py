"""Planted defects on tensors, dummy weights, the reduced GLM-5 and the exported checkpoint."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from validation.sglang_rehearsal import export, model, patches
from validation.sglang_rehearsal.settings import PLANTS

ROWS, HEADS, RANK, ROPE, SLOTS = 3, 2, 4, 2, 8


def toy_fused(q_nope: torch.Tensor, q_pe: torch.Tensor, k_nope: Any, k_pe: Any, cache: torch.Tensor, slots: Any) -> Any:
    """Rotates by negation, writes ones to the cache."""
    cache[slots] = 1.0
    return torch.cat([q_nope, -q_pe], dim=-1), None, None, cache


def call(fused: Any, seed: int = 0, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """The query and the cache of one call; slot ``SLOTS - 1`` is the last."""
    generator = torch.Generator().manual_seed(seed)
    q_nope, q_pe = (torch.randn(rows, HEADS, width, generator=generator) for width in (RANK, ROPE))
    cache = torch.zeros(SLOTS)
    query, *_ = fused(q_nope, q_pe, None, None, cache, torch.tensor([2, SLOTS - 1]))
    return query, cache


@pytest.mark.parametrize("plant", PLANTS)
def test_every_plant_changes_what_attention_reads(plant: str) -> None:
    planted = patches.planted(toy_fused, plant)
    good = [call(toy_fused, seed) for seed in (0, 1)]
    bad = [call(planted, seed) for seed in (0, 1)]
    assert any(not torch.equal(a, b) for x, y in zip(good, bad, strict=True) for a, b in zip(x, y, strict=True))


def test_no_plant_is_the_kernel_itself() -> None:
    assert patches.planted(toy_fused, None) is toy_fused


def test_broken_rope_leaves_q_pe_as_it_came() -> None:
    good, bad = call(toy_fused)[0], call(patches.planted(toy_fused, "broken-rope"))[0]
    assert torch.equal(bad[..., :RANK], good[..., :RANK])
    assert torch.equal(bad[..., RANK:], -good[..., RANK:])


def test_stale_q_is_the_query_of_the_call_before_in_decode_batches_alone() -> None:
    planted = patches.planted(toy_fused, "stale-q")
    first, second = call(planted, 0)[0], call(planted, 1)[0]
    assert torch.equal(first, call(toy_fused, 0)[0])
    assert torch.equal(second, call(toy_fused, 0)[0])
    many = patches.STALE_ROWS + 1
    call(planted, 0, many)
    assert torch.equal(call(planted, 1, many)[0], call(toy_fused, 1, many)[0])


def test_off_by_one_slot_writes_beside_and_never_outside() -> None:
    _, cache = call(patches.planted(toy_fused, "off-by-one-slot"))
    assert cache.nonzero().flatten().tolist() == [3, SLOTS - 1]


class Toy(torch.nn.Module):
    """Parameters under SGLang's names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Linear(64, 1, bias=True)
        self.norm.weight = torch.nn.Parameter(torch.zeros(64))
        self.q_b_proj = torch.nn.Linear(256, 128, bias=False)
        self.gate = torch.nn.Linear(256, 128, bias=False)
        self.up = torch.nn.Linear(256, 128, bias=False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def test_dummy_weights_let_attention_matter() -> None:
    toy = Toy()
    patches.sane_dummy_weights(toy)
    assert torch.equal(toy.norm.weight, torch.ones(64))
    assert torch.equal(toy.norm.bias, torch.zeros(1))
    assert toy.gate.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert toy.q_b_proj.weight.std().item() == pytest.approx(3 / 16, rel=0.05)
    assert not torch.equal(toy.gate.weight, toy.up.weight)
    again = Toy()
    patches.sane_dummy_weights(again)
    assert all(torch.equal(a, b) for a, b in zip(toy.state_dict().values(), again.state_dict().values(), strict=True))


def test_rotary_cache_is_split_once() -> None:
    class Rotary:
        cos_sin_cache = torch.arange(8.0).reshape(2, 4)

    rotary: Any = Rotary()
    patches.split_rotary_cache(rotary)
    assert rotary.cos_cache.tolist() == [[0.0, 1.0], [4.0, 5.0]]
    assert rotary.sin_cache.is_contiguous()
    kept = rotary.cos_cache
    patches.split_rotary_cache(rotary)
    assert rotary.cos_cache is kept


def test_reduced_model_keeps_the_attention_geometry(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "m"
    arguments = [str(folder), "--layers", "78", "--heads", "8", "--experts", "8", "--tokenizer", str(export.CHECKPOINT)]
    assert model.main(arguments) == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["n_routed_experts"]) == (78, 8, 8)
    assert export.refusals(config) == []
    assert (folder / "tokenizer.json").read_bytes() == (export.CHECKPOINT / "tokenizer.json").read_bytes()


def test_weight_bytes_of_the_model_that_was_seen_on_an_h200() -> None:
    # 8 layers, 64 heads, 16 experts took 13.7 GB there
    assert model.Reduction(8, 64, 16).weight_bytes() / 2**30 == pytest.approx(13.7, rel=0.02)


@pytest.mark.parametrize(
    "arguments",
    [["--layers", "79"], ["--heads", "0"], ["--experts", "7"], ["--expert-width", "64"], ["--tokenizer", "nowhere"]],
)
def test_impossible_reductions_end_with_a_sentence(
    arguments: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        model.main([str(tmp_path / "m"), *arguments])
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_export_changes_index_topk_alone(tmp_path: pathlib.Path) -> None:
    assert export.main([str(tmp_path / "served")]) == 0
    before = json.loads((export.CHECKPOINT / "config.json").read_text())
    after = json.loads((tmp_path / "served" / "config.json").read_text())
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == {"index_topk"}
    for name in export.COPIED:
        assert (tmp_path / "served" / name).read_bytes() == (export.CHECKPOINT / name).read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kv_lora_rank", 64),
        ("qk_rope_head_dim", 48),
        ("index_head_dim", 64),
        ("index_n_heads", 8),
        ("num_attention_heads", 96),
    ],
)
def test_geometries_that_the_kernels_refuse(key: str, value: int) -> None:
    config = json.loads((export.CHECKPOINT / "config.json").read_text())
    with pytest.raises(ValueError, match=f"^{key} is {value}; SGLang's kernels expect"):
        export.served_config({**config, key: value})


def test_export_of_nothing_ends_with_a_sentence(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "served"), "--checkpoint", str(tmp_path)])
    assert "has no config.json" in capsys.readouterr().err
