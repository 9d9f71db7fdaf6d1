"""A sparse MLA decode kernel in TileLang: ours, compiled for the CPU target here and for the GPU where there is one.

Online softmax over blocks of gathered cache rows, in base 2, accumulated in float32. A row whose indices are all -1
gives zeros. fp8 queries and caches are widened to bf16 on load, and the output is then bf16.
"""

# no `from __future__ import annotations` here: TileLang evaluates the kernels' annotations as it builds them

import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch

from validation.operations import KV_LORA_RANK, Q_CAT_DIM, QK_ROPE_HEAD_DIM, Provider
from validation.tilelang_cpu import COMPILE_FLAGS, legalise_bf16_storage

ON_GPU = torch.cuda.is_available()
ON_ROCM = torch.version.hip is not None
LOG2_E = 1.4426950408889634
MASKED = -1e30
"""Finite, so that a fully masked block subtracts to 0 and not to NaN."""
TOPK_MULTIPLE = 64
_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e4m3fnuz: "float8_e4m3fnuz",
}


class TileLangConsumer:
    """Sparse MLA decode attention."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """What the target lacks."""
        fp8 = {torch.float8_e4m3fn, torch.float8_e4m3fnuz} & {query, cache}
        if fp8 and not ON_GPU:
            return "TileLang's CPU target has no fp8"
        if torch.float8_e4m3fnuz in fp8 and not ON_ROCM:
            return "NVIDIA GPUs have no float8_e4m3fnuz"
        return ""

    def prepare(self, shapes: Collection[tuple[int, torch.dtype, torch.dtype]]) -> None:
        """Compile ahead what (heads, query, cache) will need."""
        wanted = {(heads, _NAMES[query], _NAMES[cache]) for heads, query, cache in shapes}
        missing = sorted(wanted - _COMPILED.keys())
        if missing:
            compile_ahead(missing)

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """See ``validation.operations.Consumer``; a strided q_all is refused by the compiled kernel itself."""
        tokens, heads, _ = q_all.shape
        padding = -indices.shape[-1] % TOPK_MULTIPLE
        if padding:
            indices = torch.nn.functional.pad(indices, (0, padding), value=-1)
        kernel = compiled_kernel(heads, _NAMES[q_all.dtype], _NAMES[kv_cache.dtype])
        output = torch.empty(
            (tokens, heads, KV_LORA_RANK),
            dtype=torch.float16 if q_all.dtype is torch.float16 else torch.bfloat16,
            device=q_all.device,
        )
        kernel(q_all, kv_cache, indices, _scale_tensor(softmax_scale, q_all.device), output)
        return output


@functools.cache
def _scale_tensor(softmax_scale: float, device: torch.device) -> torch.Tensor:
    return torch.tensor([softmax_scale], dtype=torch.float32, device=device)


_Shape = tuple[int, str, str]
_COMPILED: dict[_Shape, Any] = {}


def compiled_kernel(heads: int, query: str, cache: str) -> Any:
    """The kernel for one head count and dtypes; tokens, cache slots and top-k stay dynamic."""
    shape = (heads, query, cache)
    if shape not in _COMPILED:
        compile_ahead([shape])
    return _COMPILED[shape]


def compile_ahead(shapes: Sequence[_Shape]) -> None:
    """Compile the kernels of several shapes; a GPU's compiler runs beside itself, 4 to 10 s a kernel on an H200."""
    import tilelang

    logging.getLogger("tilelang").setLevel(logging.WARNING)
    if ON_GPU:
        functions = [gpu_function(*shape, rocm=ON_ROCM) for shape in shapes]
        kernels = tilelang.par_compile(functions, num_workers=min(len(shapes), os.cpu_count() or 1))
    else:
        legalise_bf16_storage()
        flags = list(COMPILE_FLAGS)
        kernels = [
            tilelang.compile(cpu_function(*shape), target="c", execution_backend="cython", compile_flags=flags)
            for shape in shapes
        ]
    _COMPILED.update(zip(shapes, kernels, strict=True))


def cpu_function(heads: int, query: str, cache: str) -> Any:
    """The kernel as plain loops: the CPU target has no shared memory, fragments or parallel loops."""
    import tilelang.language as T  # noqa: N812 (TileLang's own convention)

    H, L, D, B, acc = heads, KV_LORA_RANK, Q_CAT_DIM, TOPK_MULTIPLE, "float32"  # noqa: N806
    M, S, K = T.dynamic("m"), T.dynamic("s"), T.dynamic("k")  # noqa: N806

    @T.prim_func  # type: ignore[untyped-decorator]
    def main(  # type: ignore[no-untyped-def]
        Q: T.Tensor((M, H, D), query),  # type: ignore[valid-type]
        KV: T.Tensor((S, 1, D), cache),  # type: ignore[valid-type]
        Indices: T.Tensor((M, K), "int32"),  # type: ignore[valid-type]
        Scale: T.Tensor((1,), acc),  # type: ignore[valid-type]
        Output: T.Tensor((M, H, L), query),  # type: ignore[valid-type]
    ):
        with T.Kernel(M) as token:
            q = T.alloc_local((H, D), acc)
            kv = T.alloc_local((B, D), acc)
            s = T.alloc_local((H, B), acc)
            o = T.alloc_local((H, L), acc)
            highest = T.alloc_local((H,), acc)
            shrink = T.alloc_local((H,), acc)
            total = T.alloc_local((H,), acc)
            block_total = T.alloc_local((H,), acc)
            for h, d in T.grid(H, D):
                q[h, d] = T.cast(Q[token, h, d], acc)
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(highest, MASKED)
            for block in T.serial(K // B):
                for b, d in T.grid(B, D):
                    kv[b, d] = T.if_then_else(
                        Indices[token, block * B + b] >= 0,
                        T.cast(KV[T.max(Indices[token, block * B + b], 0), 0, d], acc),
                        0.0,
                    )
                for h, b in T.grid(H, B):
                    s[h, b] = 0.0
                for h, b, d in T.grid(H, B, D):
                    s[h, b] += q[h, d] * kv[b, d]
                for h, b in T.grid(H, B):
                    s[h, b] = T.if_then_else(Indices[token, block * B + b] >= 0, s[h, b] * Scale[0] * LOG2_E, MASKED)
                for h in T.serial(H):
                    shrink[h] = highest[h]
                T.reduce_max(s, highest, dim=1, clear=False)
                for h, b in T.grid(H, B):
                    s[h, b] = T.if_then_else(Indices[token, block * B + b] >= 0, T.exp2(s[h, b] - highest[h]), 0.0)
                T.reduce_sum(s, block_total, dim=1)
                for h in T.serial(H):
                    shrink[h] = T.exp2(shrink[h] - highest[h])
                    total[h] = total[h] * shrink[h] + block_total[h]
                for h, d in T.grid(H, L):
                    o[h, d] = o[h, d] * shrink[h]
                for h, b, d in T.grid(H, B, L):
                    o[h, d] += s[h, b] * kv[b, d]
            for h, d in T.grid(H, L):
                Output[token, h, d] = T.cast(T.if_then_else(total[h] > 0, o[h, d] / total[h], 0.0), query)

    return main


def gpu_function(heads: int, query: str, cache: str, *, rocm: bool) -> Any:
    """The kernel with matrix units, one thread block a token and head block.

    The tile sizes fit the shared memory: 64 x 576 bf16 queries and as many keys are 147 kB of Hopper's 227 kB; on ROCm
    16 x 576 and 32 x 576 are 55 kB of the 64 kB that gfx942 has.
    """
    import tilelang.language as T  # noqa: N812 (TileLang's own convention)

    H, L, R, acc = heads, KV_LORA_RANK, QK_ROPE_HEAD_DIM, "float32"  # noqa: N806
    B, threads, most_heads = (32, 128, 16) if rocm else (64, 256, 64)  # noqa: N806
    # matrix instructions take at least 16 rows
    HB = min(most_heads, max(16, 1 << (H - 1).bit_length()))  # noqa: N806
    mma = "float16" if query == "float16" else "bfloat16"
    M, S, K = T.dynamic("m"), T.dynamic("s"), T.dynamic("k")  # noqa: N806

    @T.prim_func  # type: ignore[untyped-decorator]
    def main(  # type: ignore[no-untyped-def]
        Q: T.Tensor((M, H, L + R), query),  # type: ignore[valid-type]
        KV: T.Tensor((S, 1, L + R), cache),  # type: ignore[valid-type]
        Indices: T.Tensor((M, K), "int32"),  # type: ignore[valid-type]
        Scale: T.Tensor((1,), acc),  # type: ignore[valid-type]
        Output: T.Tensor((M, H, L), mma),  # type: ignore[valid-type]
    ):
        with T.Kernel(M, T.ceildiv(H, HB), threads=threads) as (token, head_block):
            q_nope = T.alloc_shared((HB, L), mma)
            q_rope = T.alloc_shared((HB, R), mma)
            k_nope = T.alloc_shared((B, L), mma)
            k_rope = T.alloc_shared((B, R), mma)
            p = T.alloc_shared((HB, B), mma)
            s = T.alloc_fragment((HB, B), acc)
            o = T.alloc_fragment((HB, L), acc)
            highest = T.alloc_fragment((HB,), acc)
            shrink = T.alloc_fragment((HB,), acc)
            total = T.alloc_fragment((HB,), acc)
            block_total = T.alloc_fragment((HB,), acc)
            for h, d in T.Parallel(HB, L):
                q_nope[h, d] = T.if_then_else(
                    head_block * HB + h < H,
                    T.cast(Q[token, T.min(head_block * HB + h, H - 1), d], mma),
                    T.cast(0, mma),
                )
            for h, d in T.Parallel(HB, R):
                q_rope[h, d] = T.if_then_else(
                    head_block * HB + h < H,
                    T.cast(Q[token, T.min(head_block * HB + h, H - 1), L + d], mma),
                    T.cast(0, mma),
                )
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(highest, MASKED)
            for block in T.serial(K // B):
                for b, d in T.Parallel(B, L):
                    k_nope[b, d] = T.if_then_else(
                        Indices[token, block * B + b] >= 0,
                        T.cast(KV[T.max(Indices[token, block * B + b], 0), 0, d], mma),
                        T.cast(0, mma),
                    )
                for b, d in T.Parallel(B, R):
                    k_rope[b, d] = T.if_then_else(
                        Indices[token, block * B + b] >= 0,
                        T.cast(KV[T.max(Indices[token, block * B + b], 0), 0, L + d], mma),
                        T.cast(0, mma),
                    )
                T.clear(s)
                T.gemm(q_nope, k_nope, s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                T.gemm(q_rope, k_rope, s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                T.copy(highest, shrink)
                for h, b in T.Parallel(HB, B):
                    s[h, b] = T.if_then_else(Indices[token, block * B + b] >= 0, s[h, b] * Scale[0] * LOG2_E, MASKED)
                T.reduce_max(s, highest, dim=1, clear=False)
                for h, b in T.Parallel(HB, B):
                    s[h, b] = T.if_then_else(Indices[token, block * B + b] >= 0, T.exp2(s[h, b] - highest[h]), 0.0)
                T.reduce_sum(s, block_total, dim=1)
                for h in T.Parallel(HB):
                    shrink[h] = T.exp2(shrink[h] - highest[h])
                    total[h] = total[h] * shrink[h] + block_total[h]
                for h, d in T.Parallel(HB, L):
                    o[h, d] = o[h, d] * shrink[h]
                T.copy(s, p)
                T.gemm(p, k_nope, o, policy=T.GemmWarpPolicy.FullCol)
            for h, d in T.Parallel(HB, L):
                if head_block * HB + h < H:
                    Output[token, head_block * HB + h, d] = T.cast(
                        T.if_then_else(total[h] > 0, o[h, d] / total[h], 0.0), mma
                    )

    return main


def _provider() -> Provider:
    if importlib.util.find_spec("tilelang") is None:
        return Provider(
            "tilelang", "", missing="TileLang is not installed; install it: python -m pip install tilelang==0.1.15"
        )
    target = ("HIP" if ON_ROCM else "CUDA") if ON_GPU else "C target, bf16 stored through a legalising pass of ours"
    return Provider(
        "tilelang", f"tilelang {importlib.metadata.version('tilelang')}, {target}", consumer=TileLangConsumer()
    )


PROVIDER = _provider()
