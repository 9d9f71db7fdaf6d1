"""One cell of a kernel case: the cat path and the skip path on real providers, compared and counted.

Each path runs the producer into its own cache and its own poisoned outputs, takes the query its way, and runs the
consumer. The skip path runs a step on other inputs before, and in plain cells after: what it keeps from one step, or
lets the next one overwrite, differs then. Compared runs have opposite poisons: no unwritten byte agrees by luck.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from validation.bits import bits_of, compare, same_storage
from validation.kernel_gpu import LaunchCount, count_launches, replayed
from validation.observe import POISONS, CountOps, Poison
from validation.operations import (
    KV_LORA_RANK,
    Q_CAT_DIM,
    QK_ROPE_HEAD_DIM,
    QUERY_PATHS,
    Consumer,
    FusedInputs,
    FusedOutputs,
    Producer,
    Provider,
)
from validation.records import KernelCell, KernelCheck, PathCount

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
}
SLOTS = 320
"""Cache rows of a cell: more than the default top-k, so that gathering has something to choose."""
POSITIONS = 4096
REMOVED_OP = torch.ops.aten.cat.default
REMOVED_KERNEL = r"CatArrayBatchedCopy|concat_mla_absorb_q"
"""The GPU kernels of the concatenation, torch's and SGLang's own, as a profiler names them."""
SOFTMAX_SCALE = (KV_LORA_RANK // 2) ** -0.5
CONTROL = "control_unrotated_q_pe"
"""The check that a planted break is seen in the attention output; without it, equality there would be vacuous."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the matrix. ``str`` is its test id, e.g. ``cat_skip-aiter-tilelang-m16-h8-bf16-neox``."""

    case: str
    producer: str
    consumer: str
    tokens: int
    heads: int
    query: str
    cache: str
    variant: str = "plain"
    topk: int = 128

    def __str__(self) -> str:
        cache = "" if self.cache == self.query else f"-kv_{self.cache}"
        variant = "" if self.variant == "plain" else f"-{self.variant}"
        return f"{self.case}-{self.producer}-{self.consumer}-m{self.tokens}-h{self.heads}-{self.query}{cache}{variant}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a variant starts from and may replace: the inputs, the indices, and a step between producer and query."""

    inputs: FusedInputs
    indices: torch.Tensor  # (M, K) int32
    after_producer: Callable[[torch.Tensor], torch.Tensor] = lambda q_cat: q_cat
    """What the model does to q_cat (M, H, L + R) before it passes it on, such as ``llama_4_scaling``."""
    zero_copy: bool = True
    """Whether the skip path promises the producer's own storage."""


Variant = Callable[[Setting], Setting]


@dataclasses.dataclass(frozen=True)
class _Path:
    q_cat: torch.Tensor
    q_all: torch.Tensor
    q_all_given: torch.Tensor
    """What the consumer was given, copied before it ran."""
    kv_cache_given: torch.Tensor
    attention: torch.Tensor
    outputs: FusedOutputs
    q_nope_kept: KernelCheck | None
    kv_cache: torch.Tensor
    counted: CountOps
    same_storage: bool


def run_producers(cell: Cell, variant: Variant, providers: Mapping[str, Provider], device: torch.device) -> KernelCell:
    """Both of the cell's providers as producers on the same inputs: everything they write is compared."""
    started = time.perf_counter()
    setting = variant(default_setting(cell, device))
    outputs, caches = [], []
    for name, poison in zip((cell.producer, cell.consumer), POISONS, strict=True):
        producer = providers[name].producer
        if producer is None:
            raise ValueError(f"{cell} names {name}, which is no producer; see kernels/providers")
        inputs = dataclasses.replace(setting.inputs, kv_cache=setting.inputs.kv_cache.clone())
        with Poison(poison):
            outputs.append(producer.fused_qk_rope_cat_and_cache_mla(inputs))
        caches.append(inputs.kv_cache)
    written = setting.inputs.slots >= 0
    one, other = outputs
    pairs = [
        ("q_cat", one.q_cat, other.q_cat),
        ("k_pe", one.k_pe[written], other.k_pe[written]),
        ("kv_cache", caches[0], caches[1]),
        ("decode_q_pe", one.decode_q_pe, other.decode_q_pe),
        ("q_nope_zeros", one.q_nope_zeros, other.q_nope_zeros),
    ]
    checks = tuple(
        compare(what, want, got) for what, want, got in pairs if want is not None and got is not None and want.numel()
    )
    roles = {role: f"{p.name} {p.version}" for role, p in _roles(cell, providers).items()}
    return KernelCell(cell.case, str(cell), True, "", roles, checks, round(time.perf_counter() - started, 4))


def inapplicable(cell: Cell, variant_reason: str, providers: Mapping[str, Provider]) -> str:
    """Why the cell does not apply on this machine; empty where it does."""
    query, cache = DTYPES[cell.query], DTYPES[cell.cache]
    producer, consumer = _both(cell, providers)
    return variant_reason or producer.unsupported(query, cache) or consumer.unsupported(query, cache)


def run_cell(
    cell: Cell, variant: Variant, providers: Mapping[str, Provider], device: torch.device
) -> tuple[KernelCell, list[PathCount]]:
    """Run both paths of ``cell`` and compare everything that they write. The cell must apply and nothing be missing."""
    started = time.perf_counter()
    setting = variant(default_setting(cell, device))
    other = _other_step(setting)
    before = _snapshot(setting.inputs)
    earlier = _run_path(cell, other, providers, "skip", POISONS[0])
    cat = _run_path(cell, setting, providers, "cat", POISONS[0])
    skip = _run_path(cell, setting, providers, "skip", POISONS[1])
    checks = []
    if cell.variant == "plain":
        later = _run_path(cell, other, providers, "skip", POISONS[1])
        checks += _compare_paths(earlier, later, other, "repeat_", stale=skip)
    checks += [
        *_compare_paths(cat, skip, setting, "", stale=earlier),
        *_compare_unmodified(before, setting.inputs),
        *_compare_consumer_inputs(skip),
        *([skip.q_nope_kept] if skip.q_nope_kept else []),
        _untouched_slots(skip, setting.inputs),
    ]
    if setting.zero_copy:
        checks.append(_flag("skip_same_storage", skip.same_storage, "the query is not the fused kernel's own output"))
    if cell.variant == "plain":
        checks.append(_control(cell, skip, setting, providers))
    if device.type == "cuda":
        checks += _compare_replay(cell, setting, other, providers, skip)
    record = KernelCell(
        case=cell.case,
        cell=str(cell),
        applicable=True,
        reason="",
        providers={role: f"{p.name} {p.version}" for role, p in _roles(cell, providers).items()},
        checks=tuple(checks),
        seconds=round(time.perf_counter() - started, 4),
    )
    return record, _counts(cell, cat, skip, device) if setting.zero_copy else []


def default_setting(cell: Cell, device: torch.device) -> Setting:
    """Random inputs and sorted-free random indices for ``cell``; the seed is the cell's own name."""
    seed = zlib.crc32(f"m{cell.tokens}-h{cell.heads}-{cell.topk}".encode())
    generator = torch.Generator().manual_seed(seed)
    # the model computes in bf16 unless the case is about fp16; fp8 queries are made by the kernel, not given to it
    compute = torch.float16 if cell.query == "fp16" else torch.bfloat16
    cache = DTYPES[cell.cache]

    def normal(*shape: int, dtype: torch.dtype = compute) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    frequency = 1e6 ** -(torch.arange(0, QK_ROPE_HEAD_DIM, 2) / QK_ROPE_HEAD_DIM)  # GLM-5's rope_theta
    angle = torch.arange(POSITIONS)[:, None] * frequency
    inputs = FusedInputs(
        q_nope=normal(cell.tokens, cell.heads, KV_LORA_RANK),
        q_pe=normal(cell.tokens, cell.heads, QK_ROPE_HEAD_DIM),
        k_nope=normal(cell.tokens, 1, KV_LORA_RANK),
        k_pe=normal(cell.tokens, 1, QK_ROPE_HEAD_DIM),
        kv_cache=normal(SLOTS, 1, Q_CAT_DIM, dtype=torch.float32).to(cache),
        slots=torch.randperm(SLOTS, generator=generator)[: cell.tokens].to(device),
        positions=torch.randint(0, POSITIONS, (cell.tokens,), generator=generator).to(device),
        cos=angle.cos().to(compute).to(device),
        sin=angle.sin().to(compute).to(device),
        k_scale=torch.ones(1, device=device),
        q_out_dtype=DTYPES[cell.query],
    )
    rows = [torch.randperm(SLOTS, generator=generator)[: min(cell.topk, SLOTS)] for _ in range(cell.tokens)]
    indices = torch.full((cell.tokens, cell.topk), -1, dtype=torch.int32)
    indices[:, : min(cell.topk, SLOTS)] = torch.stack(rows).to(torch.int32)
    # a decoded token sees itself
    indices[:, 0] = inputs.slots.cpu().to(torch.int32)
    return Setting(inputs, indices.to(device))


def _other_step(setting: Setting) -> Setting:
    """Another step of the same model: the same tokens with other activations (heads and key channels reversed)."""
    inputs = setting.inputs
    changed = {name: getattr(inputs, name).flip(1) for name in ("q_nope", "q_pe")}
    changed |= {name: getattr(inputs, name).flip(2) for name in ("k_nope", "k_pe")}
    return dataclasses.replace(setting, inputs=dataclasses.replace(inputs, **changed))


def _run_path(cell: Cell, setting: Setting, providers: Mapping[str, Provider], path: str, poison: int) -> _Path:
    producer, consumer = _both(cell, providers)
    inputs = dataclasses.replace(setting.inputs, kv_cache=setting.inputs.kv_cache.clone())
    with Poison(poison):
        outputs = producer.fused_qk_rope_cat_and_cache_mla(inputs)
    kept = _q_nope_kept(setting.inputs, outputs)
    q_cat = setting.after_producer(outputs.q_cat)
    with CountOps(REMOVED_OP) as counted:
        q_all = QUERY_PATHS[path](q_cat)
    given = _clone(q_all), inputs.kv_cache.clone()
    with Poison(poison):
        # a copy, because a consumer may give the same buffer again
        attention = _clone(consumer.sparse_mla(q_all, inputs.kv_cache, setting.indices, SOFTMAX_SCALE))
    return _Path(
        q_cat,
        q_all,
        *given,
        attention,
        outputs,
        kept,
        inputs.kv_cache,
        counted,
        same_storage(q_all, outputs.q_cat),
    )


def _q_nope_kept(inputs: FusedInputs, outputs: FusedOutputs) -> KernelCheck | None:
    """The fused kernel only moves q_nope: a fault of it that both paths share shows here, on any hardware."""
    if outputs.q_cat.dtype is not inputs.q_nope.dtype:
        return None
    return compare("q_nope_kept", inputs.q_nope.contiguous(), outputs.q_cat[..., :KV_LORA_RANK].contiguous())


def _compare_paths(expected: _Path, actual: _Path, setting: Setting, prefix: str, stale: _Path) -> list[KernelCheck]:
    written = setting.inputs.slots >= 0

    def tensors(path: _Path) -> dict[str, torch.Tensor | None]:
        return {
            "q_all": path.q_all,
            "attention": path.attention,
            "kv_cache": path.kv_cache,
            # the kernel leaves rows of slot -1 alone, by its own contract
            "k_pe": path.outputs.k_pe[: len(written)][written],
            "decode_q_pe": path.outputs.decode_q_pe,
            "q_nope_zeros": path.outputs.q_nope_zeros,
        }

    old = tensors(stale) | {"q_all": stale.q_all_given}
    triples = ((name, want, tensors(actual)[name]) for name, want in tensors(expected).items())
    return [
        compare(prefix + name, want, got, stale=old[name])
        for name, want, got in triples
        if want is not None and got is not None
    ]


def _compare_consumer_inputs(path: _Path) -> list[KernelCheck]:
    """On the skip path the consumer reads the producer's own output: changing it in place would change q_cat."""
    return [
        compare("consumer_leaves_q_all", path.q_all_given, path.q_all),
        compare("consumer_leaves_kv_cache", path.kv_cache_given, path.kv_cache),
    ]


def _compare_replay(
    cell: Cell, setting: Setting, other: Setting, providers: Mapping[str, Provider], skip: _Path
) -> list[KernelCheck]:
    """The skip path captured in a CUDA or HIP graph on other inputs, replayed on these: as when it runs eagerly."""
    producer, consumer = _both(cell, providers)
    copies: dict[str, Any] = _snapshot(other.inputs)
    static = dataclasses.replace(other.inputs, **copies)

    def step() -> dict[str, torch.Tensor]:
        q_cat = setting.after_producer(producer.fused_qk_rope_cat_and_cache_mla(static).q_cat)
        q_all = QUERY_PATHS["skip"](q_cat)
        attention = consumer.sparse_mla(q_all, static.kv_cache, setting.indices, SOFTMAX_SCALE)
        return {"q_all": q_all, "attention": attention, "kv_cache": static.kv_cache}

    def change_inputs() -> None:
        for name, value in _snapshot(setting.inputs).items():
            getattr(static, name).copy_(value)

    before, after = replayed(step, change_inputs)
    want = {"q_all": skip.q_all_given, "attention": skip.attention, "kv_cache": skip.kv_cache}
    return [compare(f"replay_{name}", want[name], after[name], stale=before[name]) for name in want]


def _compare_unmodified(before: Mapping[str, torch.Tensor], inputs: FusedInputs) -> list[KernelCheck]:
    return [compare(f"input_{name}_unmodified", value, getattr(inputs, name)) for name, value in before.items()]


def _snapshot(inputs: FusedInputs) -> dict[str, torch.Tensor]:
    tensors = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return {name: _clone(value) for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, which ``clone`` does not keep for overlapping or gapped tensors."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def _untouched_slots(path: _Path, inputs: FusedInputs) -> KernelCheck:
    untouched = torch.ones(inputs.kv_cache.shape[0], dtype=torch.bool, device=inputs.kv_cache.device)
    untouched[inputs.slots[inputs.slots >= 0]] = False
    want, got = bits_of(inputs.kv_cache)[untouched], bits_of(path.kv_cache)[untouched]
    return compare("kv_cache_elsewhere_untouched", want, got)


def _control(cell: Cell, skip: _Path, setting: Setting, providers: Mapping[str, Provider]) -> KernelCheck:
    _, consumer = _both(cell, providers)
    broken = skip.q_cat.clone()
    broken[..., KV_LORA_RANK:] = setting.inputs.q_pe.to(broken.dtype)
    output = consumer.sparse_mla(broken, skip.kv_cache, setting.indices, SOFTMAX_SCALE)
    seen = not torch.equal(bits_of(output), bits_of(skip.attention))
    return _flag(
        CONTROL, seen, "an un-rotated q_pe does not change the attention output, so its equality shows nothing"
    )


def _flag(name: str, good: bool, detail: str) -> KernelCheck:
    return KernelCheck(name, good, "" if good else detail)


def _counts(cell: Cell, cat: _Path, skip: _Path, device: torch.device) -> list[PathCount]:
    """The path counts of both paths: by torch's profiler for a plain cell on a GPU, else by torch's dispatcher."""
    paths = {"cat": cat, "skip": skip}
    counts = {name: LaunchCount(1, path.counted.removed, path.counted.launches) for name, path in paths.items()}
    method = "dispatcher"
    if device.type == "cuda" and cell.variant == "plain":
        takes = {name: functools.partial(QUERY_PATHS[name], path.q_cat) for name, path in paths.items()}
        counts, method = count_launches(takes, REMOVED_KERNEL), "profiler"
    return [
        PathCount(
            cell.case,
            str(cell),
            name,
            method,
            counts[name].calls,
            counts[name].removed,
            counts[name].launches,
            path.counted.allocated_bytes,
            path.same_storage,
        )
        for name, path in paths.items()
    ]


def _both(cell: Cell, providers: Mapping[str, Provider]) -> tuple[Producer, Consumer]:
    producer, consumer = providers[cell.producer].producer, providers[cell.consumer].consumer
    if producer is None or consumer is None:
        raise ValueError(f"{cell} names a provider without that role; see kernels/providers")
    return producer, consumer


def _roles(cell: Cell, providers: Mapping[str, Provider]) -> dict[str, Provider]:
    return {"producer": providers[cell.producer], "consumer": providers[cell.consumer]}
