"""The forward pass that serves: absorbed MLA over a paged KV pool, its kernels taken from providers.

Weights and activations are fp32, the same everywhere; the query, the cache and what the providers return are bf16, as
in a real server. Every shape that could change a row's bits is fixed: prefill runs in chunks of 64 rows, decode in the
batch sizes of ``decode_buckets``, the indexer scores one page at a time, attention always reads ``index_topk`` slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch.nn import functional

from validation.engine.model import LAYER_NORM_EPS, ModelConfig, rotary_table
from validation.engine.pool import PAGE_SIZE
from validation.operations import QUERY_PATHS, Consumer, FusedInputs, Producer

PLANTS = ("broken-rope", "stale-q", "off-by-one-slot", "untrained-indexer")
"""Defects that a sensitive comparison must see, all in decode: the query's rotary part not rotated; each layer fed the
query of the step before; attention reading the slot before the chosen one. The last: the indexer's weights random."""

DECODE_BUCKETS = (4, 8, 16)
"""Decode batches are padded to one of these, or to a multiple of the last. Below 4 rows MKL multiplies otherwise."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows to run: R rows of each of G requests (decode: R = 1; prefill: G = 1, R = 64)."""

    ids: torch.Tensor  # (G * R,) int64
    positions: torch.Tensor  # (G * R,) int64
    slots: torch.Tensor  # (G * R,) int64, -1 for padding
    pages: torch.Tensor  # (G, P) int64, the pages of each request in order; 0 beyond its last
    decode: bool


@dataclasses.dataclass(frozen=True)
class _Layer:
    input_norm: torch.Tensor
    post_norm: torch.Tensor
    first: torch.Tensor
    """q_a, kv_a, the indexer's wk and its weights_proj: everything that reads the layer's input, in one product."""
    q_a_norm: torch.Tensor
    kv_a_norm: torch.Tensor
    k_norm: torch.Tensor
    k_norm_bias: torch.Tensor
    q_b: torch.Tensor
    index_q_b: torch.Tensor
    absorb_k: torch.Tensor  # (H, qk_nope, L)
    absorb_v: torch.Tensor  # (H, L, v)
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class ServingModel:
    """Weights, the KV pool and the indexer's keys on one device; ``forward`` is the only verb."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        pages: int,
        index_topk: int,
        query_path: str,
        producer: Producer,
        consumer: Consumer,
        plant: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config = config
        self.index_topk = index_topk
        self.device = device or torch.device("cpu")
        self._path = QUERY_PATHS[query_path]
        self._extend_path = QUERY_PATHS["cat"]
        self._producer, self._consumer, self._plant = producer, consumer, plant
        if plant == "untrained-indexer":
            weights = _with_random_indexer(weights)
        fp32 = {name: tensor.to(self.device, torch.float32) for name, tensor in weights.items()}
        self._embedding = fp32["model.embed_tokens.weight"]
        self._head = fp32["lm_head.weight"]
        self._norm = fp32["model.norm.weight"]
        self._layers = [_layer(config, fp32, number) for number in range(config.num_hidden_layers)]
        cos, sin = (table.to(self.device) for table in rotary_table(config, config.max_position_embeddings))
        self._cos, self._sin = cos, sin
        self._cos_bf16, self._sin_bf16 = cos.bfloat16(), sin.bfloat16()
        self._k_scale = torch.ones(1, device=self.device)
        slots = pages * PAGE_SIZE
        width = config.kv_lora_rank + config.qk_rope_head_dim
        layers = range(config.num_hidden_layers)
        self.kv_caches = [torch.zeros(slots, 1, width, dtype=torch.bfloat16, device=self.device) for _ in layers]
        """One pool a layer: (S, 1, 576)."""
        self.index_keys = [
            torch.zeros(slots, config.index_head_dim, dtype=torch.bfloat16, device=self.device) for _ in layers
        ]
        self._last_q: list[torch.Tensor | None] = [None for _ in layers]

    @torch.inference_mode()
    def forward(self, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
        """Logits (W, vocabulary) fp32 of the rows ``wanted`` (W,); writes keys of all rows whose slot is at least 0."""
        x = self._embedding.index_select(0, batch.ids)
        for number, layer in enumerate(self._layers):
            x = x + self._attention(number, layer, self._normed(x, layer.input_norm), batch)
            gate, up = functional.linear(self._normed(x, layer.post_norm), layer.gate_up).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(self._normed(x.index_select(0, wanted), self._norm), self._head)

    def weight_shapes(self) -> list[torch.Tensor]:
        """One weight (outputs, inputs) of every shape that decode multiplies with."""
        layer = self._layers[0]
        return [layer.first, layer.q_b, layer.index_q_b, layer.output, layer.gate_up, layer.down, self._head]

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps)

    def _attention(self, number: int, layer: _Layer, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        config = self.config
        heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
        widths = [config.q_lora_rank, config.kv_lora_rank, rope, config.index_head_dim, config.index_n_heads]
        q_a, latent, k_pe, index_k, index_w = torch.split_with_sizes(
            functional.linear(hidden, layer.first), widths, dim=-1
        )
        q_resid = self._normed(q_a, layer.q_a_norm)
        query = functional.linear(q_resid, layer.q_b).view(-1, heads, config.qk_head_dim)
        absorbed = torch.bmm(query[..., :nope].transpose(0, 1), layer.absorb_k).transpose(0, 1)
        q_pe = query[..., nope:].bfloat16()
        fused = self._producer.fused_qk_rope_cat_and_cache_mla(
            FusedInputs(
                q_nope=absorbed.bfloat16(),
                q_pe=q_pe,
                k_nope=self._normed(latent, layer.kv_a_norm).bfloat16()[:, None],
                k_pe=k_pe.bfloat16()[:, None],
                kv_cache=self.kv_caches[number],
                slots=batch.slots,
                positions=batch.positions,
                cos=self._cos_bf16,
                sin=self._sin_bf16,
                k_scale=self._k_scale,
            )
        )
        q_cat = fused.q_cat
        if batch.decode and self._plant is not None:
            q_cat = self._planted_query(number, q_cat, q_pe)
        q_all = (self._path if batch.decode else self._extend_path)(q_cat)
        indices = self._indices(number, layer, q_resid, index_k, index_w, batch)
        latent_out = self._consumer.sparse_mla(q_all, self.kv_caches[number], indices, config.softmax_scale)
        value = torch.bmm(latent_out.float().transpose(0, 1), layer.absorb_v).transpose(0, 1)
        return functional.linear(value.flatten(1), layer.output)

    def _indices(
        self,
        number: int,
        layer: _Layer,
        q_resid: torch.Tensor,
        index_k: torch.Tensor,
        index_w: torch.Tensor,
        batch: Batch,
    ) -> torch.Tensor:
        """The slots that each row attends to, (G * R, index_topk) int32, in the order of their positions, then -1."""
        config, keys = self.config, self.index_keys[number]
        normed = functional.layer_norm(
            index_k, (config.index_head_dim,), layer.k_norm, layer.k_norm_bias, LAYER_NORM_EPS
        )
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        written = batch.slots >= 0
        rotated = _rotate_front(normed, cos, sin).bfloat16()
        keys.index_copy_(0, batch.slots[written], rotated[written])

        rows, topk = len(batch.positions), self.index_topk
        groups, pages = batch.pages.shape
        reach = pages * PAGE_SIZE
        if reach <= topk:
            chosen = torch.arange(topk, device=self.device).expand(rows, topk)
        else:
            heads = functional.linear(q_resid, layer.index_q_b).view(rows, config.index_n_heads, config.index_head_dim)
            heads = _rotate_front(heads, cos[:, None], sin[:, None]).view(groups, -1, config.index_head_dim)
            weights = index_w * (config.index_n_heads * config.index_head_dim) ** -0.5
            scores = torch.empty(rows, reach, device=self.device)
            by_page = keys.view(-1, PAGE_SIZE, config.index_head_dim)
            for page in range(pages):
                products = torch.bmm(heads, by_page[batch.pages[:, page]].float().transpose(1, 2)).relu_()
                products = products.view(rows, config.index_n_heads, PAGE_SIZE)
                scores[:, page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = torch.bmm(weights[:, None], products)[:, 0]
            scores.masked_fill_(torch.arange(reach, device=self.device) > batch.positions[:, None], -torch.inf)
            # Stable: of equal scores the earlier position, whatever the width of the batch.
            chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
            chosen = chosen.sort(dim=-1).values
        # Positions of the future sort behind those of the past, so padding comes last.
        visible = (chosen <= batch.positions[:, None]) & written[:, None]
        page_of = (chosen // PAGE_SIZE).clamp_max(pages - 1)
        table = batch.pages if groups == rows else batch.pages.expand(rows, pages)
        slots = table.gather(1, page_of) * PAGE_SIZE + chosen % PAGE_SIZE
        if batch.decode and self._plant == "off-by-one-slot":
            slots = (slots - 1) % len(keys)
        return slots.masked_fill(~visible, -1).to(torch.int32)

    def _planted_query(self, number: int, q_cat: torch.Tensor, q_pe: torch.Tensor) -> torch.Tensor:
        if self._plant == "broken-rope":
            return torch.cat([q_cat[..., : self.config.kv_lora_rank], q_pe], dim=-1)
        if self._plant == "stale-q":
            last = self._last_q[number]
            self._last_q[number] = q_cat
            return q_cat if last is None or last.shape != q_cat.shape else last
        return q_cat


def decode_bucket(requests: int, buckets: tuple[int, ...]) -> int:
    """The batch size that ``requests`` are padded to."""
    for bucket in buckets:
        if requests <= bucket:
            return bucket
    return -(-requests // buckets[-1]) * buckets[-1]


@torch.inference_mode()
def decode_buckets(model: ServingModel, largest: int) -> tuple[int, ...]:
    """The batch sizes that give every row the same bits here; the largest alone where this machine's products differ.

    The scheduler promises the same text whatever else is served. With fp32 on MKL one row of a product has the same
    bits for any batch of at least 4; this asks the machine instead of trusting that.
    """
    smaller = (bucket for bucket in DECODE_BUCKETS if bucket < largest)
    buckets = (*smaller, decode_bucket(largest, DECODE_BUCKETS))
    generator = torch.Generator().manual_seed(0)
    for weight in model.weight_shapes():
        rows = torch.randn(buckets[-1], weight.shape[1], generator=generator).to(model.device)
        whole = functional.linear(rows, weight)
        if not all(torch.equal(functional.linear(rows[:bucket], weight), whole[:bucket]) for bucket in buckets):
            return buckets[-1:]
    return buckets


def warm_up(model: ServingModel, buckets: tuple[int, ...]) -> None:
    """Run every shape once and write nothing, so that no request pays for a kernel's compilation."""
    for rows, decode in [(PAGE_SIZE, False), *((bucket, True) for bucket in buckets)]:
        zeros = torch.zeros(rows, dtype=torch.int64, device=model.device)
        pages = zeros[: rows if decode else 1, None].expand(-1, 2)
        model.forward(Batch(zeros, zeros, zeros - 1, pages, decode), zeros)


def _rotate_front(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` (..., D) with its first 2 * cos.shape[-1] elements rotated in neighbouring pairs."""
    width = 2 * cos.shape[-1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([rotated, x[..., width:]], dim=-1)


def _layer(config: ModelConfig, weights: Mapping[str, torch.Tensor], number: int) -> _Layer:
    heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    prefix = f"model.layers.{number}."

    def get(name: str) -> torch.Tensor:
        return weights[f"{prefix}{name}.weight"]

    attention, indexer = "self_attn.", "self_attn.indexer."
    expand = get(f"{attention}kv_b_proj").view(heads, nope + value, config.kv_lora_rank)
    return _Layer(
        input_norm=get("input_layernorm"),
        post_norm=get("post_attention_layernorm"),
        first=torch.cat(
            [
                get(f"{attention}q_a_proj"),
                get(f"{attention}kv_a_proj_with_mqa"),
                get(f"{indexer}wk"),
                get(f"{indexer}weights_proj"),
            ]
        ),
        q_a_norm=get(f"{attention}q_a_layernorm"),
        kv_a_norm=get(f"{attention}kv_a_layernorm"),
        k_norm=get(f"{indexer}k_norm"),
        k_norm_bias=weights[f"{prefix}{indexer}k_norm.bias"],
        q_b=get(f"{attention}q_b_proj"),
        index_q_b=get(f"{indexer}wq_b"),
        absorb_k=expand[:, :nope].contiguous(),
        absorb_v=expand[:, nope:].transpose(1, 2).contiguous(),
        output=get(f"{attention}o_proj"),
        gate_up=torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]),
        down=get("mlp.down_proj"),
    )


def _with_random_indexer(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    planted = dict(weights)
    for name, tensor in weights.items():
        if ".indexer." in name and tensor.dim() == 2:
            planted[name] = torch.randn(tensor.shape, generator=generator) * tensor.shape[1] ** -0.5
    return planted
