"""The architecture: GLM-5's (MLA, interleaved rotary, DSA indexer), all layers dense, all but the attention small.

Parameter names, config keys and formulas are those of ``GlmMoeDsaForCausalLM`` as SGLang 0.5.12 serves it, so a
checkpoint folder is itself a Hugging Face export. (transformers 5.6.0 rotates half-split whatever ``rope_interleave``
says; SGLang, llama.cpp and this module follow the config.) This module trains; ``serving`` serves the same parameters.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LAYER_NORM_EPS = 1e-6
"""Of the indexer's key norm: fixed in transformers and SGLang alike, no config key."""

END_ID = 0
PAD_ID = 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Geometry, under the names of ``config.json``. The first block is GLM-5's own, the second is small."""

    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    index_head_dim: int = 128
    index_n_heads: int = 32
    index_topk: int = 64
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    vocab_size: int = 768
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    qk_nope_head_dim: int = 32
    v_head_dim: int = 32
    max_position_embeddings: int = 4096

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query before absorption."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Of the main attention; absorbed or not, it is the unabsorbed width that counts."""
        return float(self.qk_head_dim**-0.5)

    def to_json(self) -> dict[str, Any]:
        """``config.json`` as transformers and SGLang read it; the keys about experts are required there and unused."""
        own = dataclasses.asdict(self)
        theta = own.pop("rope_theta")
        layers = self.num_hidden_layers
        return {
            "architectures": ["GlmMoeDsaForCausalLM"],
            "model_type": "glm_moe_dsa",
            "dtype": "bfloat16",
            **own,
            "qk_head_dim": self.qk_head_dim,
            "head_dim": self.qk_rope_head_dim,
            "num_key_value_heads": self.num_attention_heads,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "rope_interleave": True,
            "indexer_rope_interleave": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": None,
            "eos_token_id": [END_ID],
            "pad_token_id": PAD_ID,
            "first_k_dense_replace": layers,
            "mlp_layer_types": ["dense"] * layers,
            "moe_layer_freq": 1,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 0,
            "ep_size": 1,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelConfig:
        """The geometry in a ``config.json``.

        Raises:
            ValueError: it describes another architecture, or lacks a key.
        """
        if data.get("model_type") != "glm_moe_dsa":
            raise ValueError(
                f"model_type {data.get('model_type')!r} was given; the embedded engine serves 'glm_moe_dsa'"
            )
        if data.get("first_k_dense_replace") != data.get("num_hidden_layers"):
            raise ValueError("the checkpoint has expert layers; the embedded engine serves dense layers only")
        names = [field.name for field in dataclasses.fields(ModelConfig) if field.name != "rope_theta"]
        missing = [name for name in names if name not in data]
        if missing or "rope_theta" not in data.get("rope_parameters", {}):
            raise ValueError(f"config.json lacks {', '.join(missing) or 'rope_parameters.rope_theta'}")
        return ModelConfig(**{name: data[name] for name in names}, rope_theta=data["rope_parameters"]["rope_theta"])


def rotary_table(config: ModelConfig, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each (positions, qk_rope_head_dim / 2) float32."""
    exponent = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32) / config.qk_rope_head_dim
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * config.rope_theta**-exponent
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` (..., R) rotated in neighbouring pairs by angles (..., R / 2); the layout stays interleaved."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias."""
    return nn.Linear(inputs, outputs, bias=False)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (..., width) normed."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Indexer(nn.Module):
    """Scores every earlier position for every query; attention reads the best ``index_topk`` of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wq_b = linear(config.q_lora_rank, config.index_n_heads * config.index_head_dim)
        self.wk = linear(config.hidden_size, config.index_head_dim)
        self.k_norm = nn.LayerNorm(config.index_head_dim, eps=LAYER_NORM_EPS)
        self.weights_proj = linear(config.hidden_size, config.index_n_heads)

    def forward(
        self, hidden: torch.Tensor, q_resid: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Scores (B, S, S), not masked: ``sum_h w_h * relu(q_h . k * head_dim ** -0.5)``, w scaled by heads ** -0.5."""
        config, rope = self.config, self.config.qk_rope_head_dim
        q = self.wq_b(q_resid).unflatten(-1, (config.index_n_heads, config.index_head_dim))
        q = torch.cat([rotate(q[..., :rope], cos[:, None], sin[:, None]), q[..., rope:]], dim=-1)
        k = self.k_norm(self.wk(hidden))
        k = torch.cat([rotate(k[..., :rope], cos, sin), k[..., rope:]], dim=-1)
        weights = self.weights_proj(hidden) * config.index_n_heads**-0.5
        scores = torch.relu(torch.einsum("bshd,btd->bsht", q, k) * config.index_head_dim**-0.5)
        return torch.einsum("bsht,bsh->bst", scores, weights).float()


class Attention(nn.Module):
    """Multi-head latent attention, not absorbed, over all earlier positions or over the indexer's choice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
        self.q_a_proj = linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = linear(config.q_lora_rank, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = linear(config.kv_lora_rank, heads * (nope + value))
        self.o_proj = linear(heads * value, config.hidden_size)
        self.indexer = Indexer(config)

    def forward(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, topk: int | None, indexer_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention output (B, S, hidden), and the indexer's loss on the first ``indexer_rows`` sequences."""
        config = self.config
        batch, length, _ = hidden.shape
        heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        q_resid = self.q_a_layernorm(self.q_a_proj(hidden))
        q = self.q_b_proj(q_resid).unflatten(-1, (heads, config.qk_head_dim))
        q = torch.cat([q[..., :nope], rotate(q[..., nope:], cos[:, None], sin[:, None])], dim=-1).transpose(1, 2)
        latent, k_pe = self.kv_a_proj_with_mqa(hidden).split([config.kv_lora_rank, rope], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (heads, nope + config.v_head_dim))
        k_pe = rotate(k_pe, cos, sin)[:, :, None].expand(batch, length, heads, rope)
        k = torch.cat([expanded[..., :nope], k_pe.to(expanded.dtype)], dim=-1).transpose(1, 2)
        value = expanded[..., nope:].transpose(1, 2)

        allowed = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        mask = None
        if topk is not None and topk < length:
            with torch.no_grad():
                scores = self.indexer(hidden, q_resid, cos, sin).masked_fill(~allowed, -torch.inf)
                mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(topk, dim=-1).indices, True)
                mask = (mask & allowed)[:, None]
        output = functional.scaled_dot_product_attention(
            q, k.to(q.dtype), value, attn_mask=mask, is_causal=mask is None, scale=config.softmax_scale
        )
        output = self.o_proj(output.transpose(1, 2).reshape(batch, length, -1))
        if not indexer_rows:
            return output, hidden.new_zeros(())

        rows = slice(0, indexer_rows)
        with torch.no_grad():
            logits = (q[rows] @ k[rows].to(q.dtype).transpose(-1, -2)).float() * config.softmax_scale
            target = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1).mean(dim=1)
        scores = self.indexer(hidden[rows].detach(), q_resid[rows].detach(), cos, sin)
        log_choice = scores.masked_fill(~allowed, -torch.inf).log_softmax(dim=-1)
        divergence = target * (target.clamp_min(1e-9).log() - log_choice.masked_fill(~allowed, 0.0))
        return output, divergence.sum(dim=-1).mean()


class MLP(nn.Module):
    """Gated feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = linear(config.hidden_size, config.intermediate_size)
        self.up_proj = linear(config.hidden_size, config.intermediate_size)
        self.down_proj = linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (..., hidden) transformed."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and beside a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, topk: int | None, indexer_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next residual stream, and the indexer's loss."""
        attended, loss = self.self_attn(self.input_layernorm(x), cos, sin, topk, indexer_rows)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), loss


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class GlmMoeDsa(nn.Module):
    """The whole model, for training: no cache."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelConfig, longest: int = 256) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        cos, sin = rotary_table(config, longest)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, ids: torch.Tensor, topk: int | None = None, indexer_rows: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, S, vocabulary) for ids (B, S), and the indexer's mean loss a layer.

        ``topk``: positions that attention reads, None for all earlier ones.
        """
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(ids)
        losses = []
        for layer in self.model.layers:
            x, loss = layer(x, cos, sin, topk, indexer_rows)
            losses.append(loss)
        return self.lm_head(self.model.norm(x)), torch.stack(losses).mean()


def initialise(model: GlmMoeDsa, seed: int) -> None:
    """Weights from one seeded generator on the CPU: fan-in scaled projections, small embeddings, norms at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                outer = "embed_tokens" in name or "lm_head" in name
                std = 0.02 if outer else 0.6 * parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def save_checkpoint(
    folder: pathlib.Path, config: ModelConfig, weights: Mapping[str, torch.Tensor], tokenizer: str
) -> None:
    """Write a Hugging Face export, weights rounded to bfloat16; ``tokenizer`` is the text of tokenizer.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"eos_token_id": [END_ID], "pad_token_id": PAD_ID, "do_sample": False}
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}\n\n"
        "{% else %}Question: {{ m.content }}\nAnswer:{% endif %}{% endfor %}"
    )
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "chat_template": template,
    }
    for name, data in (
        ("config.json", config.to_json()),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokens),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def load_checkpoint(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The geometry and the parameters by name.

    Raises:
        FileNotFoundError: ``folder`` is no checkpoint.
        ValueError: it is one of another architecture.
    """
    from safetensors.torch import load_file

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"checkpoint {folder} has no {name}; make one with python -m validation.engine.train"
            )
    config = ModelConfig.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return config, load_file(folder / "model.safetensors")
