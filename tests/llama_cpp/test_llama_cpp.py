"""llama.cpp serves the engine's checkpoint and says the same; where xllamacpp is not installed, the export alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from validation.engine.__main__ import CHECKPOINT
from validation.engine.model import load_checkpoint
from validation.llama_cpp.compare import OUTPUT, QUESTIONS, Divergence, ask, compare, compare_texts, llama_cpp_arm
from validation.llama_cpp.export import tensors

needs_llama_cpp = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf")),
    reason="llama.cpp is an environment of its own: tox run -e llamacpp",
)


def test_every_parameter_is_exported_once_and_exactly() -> None:
    config, weights = load_checkpoint(CHECKPOINT)
    exported = list(tensors(config, weights))
    names = [name for name, _ in exported]
    assert len(set(names)) == len(names) == 3 + 18 * config.num_hidden_layers
    assert sum(array.size for _, array in exported) == sum(tensor.numel() for tensor in weights.values())
    assert {array.dtype for _, array in exported} == {np.dtype("float32")}


def test_the_split_of_kv_b_gives_its_products() -> None:
    config, weights = load_checkpoint(CHECKPOINT)
    exported = dict(tensors(config, weights))
    rng = np.random.default_rng(0)
    latent = rng.standard_normal(config.kv_lora_rank, dtype=np.float32)
    whole = weights["model.layers.1.self_attn.kv_b_proj.weight"].float().numpy() @ latent
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    k_nope, value = np.split(whole.reshape(heads, nope + config.v_head_dim), [nope], axis=1)
    np.testing.assert_allclose(np.einsum("hkn,k->hn", exported["blk.1.attn_k_b.weight"], latent), k_nope, atol=1e-4)
    np.testing.assert_allclose(np.einsum("hvk,k->hv", exported["blk.1.attn_v_b.weight"], latent), value, atol=1e-4)


def test_a_parameter_without_a_place_is_refused() -> None:
    config, weights = load_checkpoint(CHECKPOINT)
    extra = {**weights, "model.layers.0.mlp.gate.weight": weights["model.norm.weight"]}
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.gate\.weight and 0 more that GGUF has no place for"):
        list(tensors(config, extra))


@pytest.mark.parametrize(
    ("engine", "llama_cpp", "parted"),
    [
        (["abc"], ["abc"], ()),
        (["abc", "x"], ["abd", "x"], (Divergence(0, 2, "c", "d"),)),
        (["abc"], ["ab"], (Divergence(0, 2, "c", ""),)),
        (["", "é"], ["", "e"], (Divergence(1, 0, "é", "e"),)),
    ],
)
def test_texts_are_compared_to_the_character(
    engine: list[str], llama_cpp: list[str], parted: tuple[Divergence, ...]
) -> None:
    assert compare_texts(engine, llama_cpp) == parted


def test_texts_of_other_questions_are_no_pair() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare_texts(["a", "b"], ["a"])


def test_the_recorded_comparison_is_of_this_checkpoint() -> None:
    recorded = json.loads(OUTPUT.read_text("utf-8"))
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert recorded["engine"]["get_server_info"]["model_sha256"] == digest
    assert recorded["questions"] == QUESTIONS
    assert recorded["questions_longer_than_topk"] > QUESTIONS / 2  # the indexer had to choose
    assert recorded["identical"] + len(recorded["divergences"]) == QUESTIONS


@needs_llama_cpp
def test_both_engines_say_the_same() -> None:
    found = compare(20)
    assert found.divergences == ()
    assert found.llama_cpp["v1_models"]["data"][0]["id"] == CHECKPOINT.name


@needs_llama_cpp
def test_a_blinded_indexer_is_seen() -> None:
    """With 4 of 64 positions to read llama.cpp's texts part: the comparison would see a wrong indexer."""
    assert len(compare(5, "--index-topk", "4").divergences) == 5


@needs_llama_cpp
def test_two_launches_of_llama_cpp_say_the_same(tmp_path: pathlib.Path) -> None:
    first, again = ([r.text for r in ask(llama_cpp_arm(), 5, tmp_path)[0]] for _ in range(2))
    assert first == again
