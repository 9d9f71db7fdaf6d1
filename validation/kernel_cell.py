"""One cell of a kernel case: the cat path and the skip path on real providers, compared and counted.

Each path runs the producer into its own cache and its own poisoned outputs, takes the query its way, and runs the
consumer. A third run repeats the skip path with the other poison, so that a byte nobody wrote cannot agree by luck.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from validation.bits import bits_of, compare, same_storage
from validation.operations import (
    KV_LORA_RANK,
    Q_CAT_DIM,
    QK_ROPE_HEAD_DIM,
    QUERY_PATHS,
    FusedInputs,
    FusedOutputs,
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
POISONS = (0xA5, 0x5A)
"""Byte patterns that outputs hold before a run: complements of each other, and no value that a kernel leaves often."""
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
    """What the model does to q_cat (M, H, L + R) before it is passed on, such as ``llama_4_scaling``; in place or not."""
    zero_copy: bool = True
    """Whether the skip path promises the producer's own storage."""


Variant = Callable[[Setting], Setting]


@dataclasses.dataclass(frozen=True)
class _Path:
    q_cat: torch.Tensor
    q_all: torch.Tensor
    attention: torch.Tensor
    outputs: FusedOutputs
    kv_cache: torch.Tensor
    launches: int
    removed: int
    allocated_bytes: int
    same_storage: bool


def run_producers(
    cell: Cell, variant: Variant, providers: Mapping[str, Provider], device: torch.device
) -> KernelCell:
    """Both of the cell's providers as producers on the same inputs: everything they write is compared."""
    started = time.perf_counter()
    setting = variant(default_setting(cell, device))
    outputs, caches = [], []
    for name, poison in zip((cell.producer, cell.consumer), POISONS, strict=True):
        producer = providers[name].producer
        if producer is None:
            raise ValueError(f"{cell} names {name}, which is no producer; see kernels/providers")
        inputs = dataclasses.replace(setting.inputs, kv_cache=setting.inputs.kv_cache.clone())
        with _Poison(poison):
            outputs.append(producer.fused_qk_rope_cat_and_cache_mla(inputs))
        caches.append(inputs.kv_cache)
    written = setting.inputs.slots >= 0
    one, other = outputs
    pairs = [
        ("q_cat", one.q_cat, other.q_cat),
        ("k_pe", one.k_pe[written], other.k_pe[written]),
        ("kv_cache", caches[0], caches[1]),
        ("decode_q_pe", one.decode_q_pe, other.decode_q_pe),
    ]
    checks = tuple(
        compare(what, want, got)
        for what, want, got in pairs
        if want is not None and got is not None and want.numel()
    )
    roles = {role: f"{p.name} {p.version}" for role, p in _roles(cell, providers).items()}
    return KernelCell(cell.case, str(cell), True, "", roles, checks, round(time.perf_counter() - started, 4))


def inapplicable(cell: Cell, variant_reason: str, providers: Mapping[str, Provider]) -> str:
    """Why the cell does not apply on this machine; empty where it does."""
    query, cache = DTYPES[cell.query], DTYPES[cell.cache]
    producer, consumer = providers[cell.producer].producer, providers[cell.consumer].consumer
    if producer is None or consumer is None:
        raise ValueError(f"{cell} names a provider without that role; see kernels/providers")
    return variant_reason or producer.unsupported(query, cache) or consumer.unsupported(query, cache)


def run_cell(
    cell: Cell, variant: Variant, providers: Mapping[str, Provider], device: torch.device
) -> tuple[KernelCell, list[PathCount]]:
    """Run both paths of ``cell`` and compare everything that they write. The cell must apply and nothing be missing."""
    started = time.perf_counter()
    setting = variant(default_setting(cell, device))
    before = _snapshot(setting.inputs)
    cat = _run_path(cell, setting, providers, "cat", POISONS[0])
    skip = _run_path(cell, setting, providers, "skip", POISONS[1])
    again = _run_path(cell, setting, providers, "skip", POISONS[0])
    checks = [
        *_compare_paths(cat, skip, setting, ""),
        *_compare_paths(skip, again, setting, "repeat_"),
        *_compare_unmodified(before, setting.inputs),
        _untouched_slots(skip, setting.inputs),
    ]
    if setting.zero_copy:
        checks.append(_flag("skip_same_storage", skip.same_storage, "the query is not the fused kernel's own output"))
    if cell.variant == "plain":
        checks.append(_control(cell, skip, setting, providers))
    record = KernelCell(
        case=cell.case,
        cell=str(cell),
        applicable=True,
        reason="",
        providers={role: f"{p.name} {p.version}" for role, p in _roles(cell, providers).items()},
        checks=tuple(checks),
        seconds=round(time.perf_counter() - started, 4),
    )
    counts = [_count(cell, name, path) for name, path in (("cat", cat), ("skip", skip))] if setting.zero_copy else []
    return record, counts


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


def _run_path(cell: Cell, setting: Setting, providers: Mapping[str, Provider], path: str, poison: int) -> _Path:
    producer, consumer = providers[cell.producer].producer, providers[cell.consumer].consumer
    assert producer is not None and consumer is not None  # noqa: S101 (run_cell's callers asked inapplicable first)
    inputs = dataclasses.replace(setting.inputs, kv_cache=setting.inputs.kv_cache.clone())
    with _Poison(poison):
        outputs = producer.fused_qk_rope_cat_and_cache_mla(inputs)
    q_cat = setting.after_producer(outputs.q_cat)
    with _Count() as counted:
        q_all = QUERY_PATHS[path](q_cat)
    with _Poison(poison):
        attention = consumer.sparse_mla(q_all, inputs.kv_cache, setting.indices, (KV_LORA_RANK // 2) ** -0.5)
    return _Path(
        q_cat,
        q_all,
        attention,
        outputs,
        inputs.kv_cache,
        counted.launches,
        counted.removed,
        counted.allocated_bytes,
        same_storage(q_all, outputs.q_cat),
    )


def _compare_paths(expected: _Path, actual: _Path, setting: Setting, prefix: str) -> list[KernelCheck]:
    written = setting.inputs.slots >= 0
    pairs: list[tuple[str, torch.Tensor | None, torch.Tensor | None]] = [
        ("q_all", expected.q_all, actual.q_all),
        ("attention", expected.attention, actual.attention),
        ("kv_cache", expected.kv_cache, actual.kv_cache),
        # the kernel leaves rows of slot -1 alone, by its own contract
        ("k_pe", expected.outputs.k_pe[: len(written)][written], actual.outputs.k_pe[: len(written)][written]),
        ("decode_q_pe", expected.outputs.decode_q_pe, actual.outputs.decode_q_pe),
        ("q_nope_zeros", expected.outputs.q_nope_zeros, actual.outputs.q_nope_zeros),
    ]
    return [compare(prefix + name, want, got) for name, want, got in pairs if want is not None and got is not None]


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
    consumer = providers[cell.consumer].consumer
    assert consumer is not None  # noqa: S101 (as above)
    broken = skip.q_all.clone()
    broken[..., KV_LORA_RANK:] = setting.inputs.q_pe.to(broken.dtype)
    output = consumer.sparse_mla(broken, skip.kv_cache, setting.indices, (KV_LORA_RANK // 2) ** -0.5)
    seen = not torch.equal(bits_of(output), bits_of(skip.attention))
    return _flag(CONTROL, seen, "an un-rotated q_pe does not change the attention output, so its equality shows nothing")


def _flag(name: str, good: bool, detail: str) -> KernelCheck:
    return KernelCheck(name, good, "" if good else detail)


def _count(cell: Cell, name: str, path: _Path) -> PathCount:
    return PathCount(
        cell.case, str(cell), name, "dispatcher", 1, path.removed, path.launches, path.allocated_bytes, path.same_storage
    )


def _roles(cell: Cell, providers: Mapping[str, Provider]) -> dict[str, Provider]:
    return {"producer": providers[cell.producer], "consumer": providers[cell.consumer]}


class _Poison(TorchDispatchMode):
    """Fills every tensor that is allocated uninitialised inside with one byte pattern."""

    _EMPTY: Sequence[Any] = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default,
    )

    def __init__(self, byte: int) -> None:
        super().__init__()
        self._byte = byte

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self._EMPTY and result.numel():
            result.view(torch.uint8).fill_(self._byte)
        return result


class _Count(TorchDispatchMode):
    """Counts what runs inside: operations that are no views, concatenations, and bytes allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.removed = self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.launches += 1
            self.removed += func is torch.ops.aten.cat.default
            if isinstance(result, torch.Tensor):
                self.allocated_bytes += result.untyped_storage().nbytes()
        return result
