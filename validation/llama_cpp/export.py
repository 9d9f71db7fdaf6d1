"""The checkpoint as a GGUF file of llama.cpp's ``glm-dsa`` architecture.

Tensor and key names are those of gguf-py's ``MODEL_ARCH.GLM_DSA``. llama.cpp computes the absorbed form, so
``kv_b_proj`` is split: ``attn_k_b`` (heads, kv_lora_rank, nope) and ``attn_v_b`` (heads, v, kv_lora_rank). Both engines
rotate neighbouring pairs, so no row is moved. Numbers are written as float32, which every bfloat16 is: none is rounded.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from validation.engine.model import END_ID, PAD_ID, ModelConfig, load_checkpoint

ARCHITECTURE = "glm-dsa"
PRE_TOKENIZER = "smollm"
"""llama.cpp's name for splitting off single digits before GPT-2's own split, as our tokenizer does."""
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "self_attn.indexer.wk.weight": "indexer.attn_k.weight",
    "self_attn.indexer.k_norm.weight": "indexer.k_norm.weight",
    "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias",
    "self_attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_KV_B = "self_attn.kv_b_proj.weight"

Array = npt.NDArray[np.float32]


def tensors(config: ModelConfig, weights: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Every tensor under llama.cpp's name, float32.

    Raises:
        KeyError: the checkpoint lacks a parameter.
        ValueError: it has one that no tensor takes.
    """
    taken: set[str] = set()

    def take(name: str) -> Array:
        taken.add(name)
        array: Array = weights[name].float().contiguous().numpy()
        return array

    for name, target in _OUTER.items():
        yield target, take(name)
    for layer in range(config.num_hidden_layers):
        for name, target in _OF_LAYER.items():
            yield f"blk.{layer}.{target}", take(f"model.layers.{layer}.{name}")
        heads, nope = config.num_attention_heads, config.qk_nope_head_dim
        both = take(f"model.layers.{layer}.{_KV_B}").reshape(heads, nope + config.v_head_dim, config.kv_lora_rank)
        yield f"blk.{layer}.attn_k_b.weight", np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))
        yield f"blk.{layer}.attn_v_b.weight", np.ascontiguousarray(both[:, nope:])
    left = sorted(set(weights) - taken)
    if left:
        raise ValueError(f"the checkpoint has {left[0]} and {len(left) - 1} more that GGUF has no place for")


def export(checkpoint: pathlib.Path, target: pathlib.Path, index_topk: int | None = None) -> None:
    """Write ``checkpoint`` to ``target``; ``index_topk`` overrides the checkpoint's own."""
    import gguf

    config, weights = load_checkpoint(checkpoint)
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_name(checkpoint.name)
    _add_geometry(writer, config, index_topk or config.index_topk)
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text("utf-8")), config.vocab_size)
    for name, array in tensors(config, weights):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_geometry(writer: Any, config: ModelConfig, index_topk: int) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_leading_dense_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)  # absorbed: all heads share the latent
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)  # the softmax scale comes from this one
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_indexer_head_count(config.index_n_heads)
    writer.add_indexer_key_length(config.index_head_dim)
    writer.add_indexer_top_k(index_topk)
    other = config.to_json()  # keys about experts are required and, all layers being dense, not used
    writer.add_expert_count(other["n_routed_experts"])
    writer.add_expert_used_count(other["num_experts_per_tok"])
    writer.add_expert_shared_count(other["n_shared_experts"])
    writer.add_expert_feed_forward_length(other["moe_intermediate_size"])
    writer.add_expert_weights_scale(other["routed_scaling_factor"])
    writer.add_expert_weights_norm(other["norm_topk_prob"])


def _add_tokenizer(writer: Any, tokenizer: Mapping[str, Any], vocab_size: int) -> None:
    import gguf

    special = {entry["id"] for entry in tokenizer["added_tokens"] if entry["special"]}
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()}
    missing = [number for number in range(vocab_size) if number not in words]
    if missing:
        raise ValueError(f"the tokenizer has no word for id {missing[0]}; expected {vocab_size} words")
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([words[number] for number in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(END_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(False)
