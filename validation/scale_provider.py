"""AITER's fused quantisation and its block-scaled GEMMs, and the reader that rehearses one of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from validation import triton_interpreter
from validation.aiter_tree import aiter_modules, find_aiter
from validation.scale_layout import storage_order

ON_ROCM = torch.version.hip is not None
ON_GPU = torch.cuda.is_available()
GROUP = 128
"""Channels a scale covers: the 1x128 blocks of SGLang's call sites, and of the fp8 checkpoints."""
LAYOUT_READER = "layout reader, rehearsal only"


@dataclasses.dataclass(frozen=True)
class QuantInputs:
    """What ``fused_rms_fp8_group_quant`` takes at one call site."""

    inp1: torch.Tensor  # (M, N1) bf16, row stride of the projection it is a slice of
    weight1: torch.Tensor  # (N1,)
    inp2: torch.Tensor | None  # (M, N2)
    weight2: torch.Tensor | None  # (N2,)
    residual: torch.Tensor | None  # (M, N1)
    with_unquantized: bool


@dataclasses.dataclass(frozen=True)
class QuantOutputs:
    """What it gives."""

    q: torch.Tensor  # (M, N1) fp8
    scale: torch.Tensor  # (M, N1 / 128) float32
    unquantized: torch.Tensor | None  # (M, N1)
    out2: torch.Tensor | None  # (M, N2)
    residual: torch.Tensor | None  # (M, N1)


QuantProducer = Callable[[QuantInputs, bool], QuantOutputs]
"""Normalises, quantises, and writes the scale row-major or, where the flag is set, transposed, in one launch."""


@dataclasses.dataclass(frozen=True)
class GemmInputs:
    """A block-scaled product: x (M, K) fp8, w (N, K) fp8, w_scale (N / 128, K / 128) float32."""

    x: torch.Tensor
    w: torch.Tensor
    w_scale: torch.Tensor


Gemm = Callable[[GemmInputs, torch.Tensor], torch.Tensor]
"""A consumer: the inputs and x_scale (M, K / 128), in the byte order that it wants; (M, N) or its split-K parts."""


def describe() -> str:
    """Which AITER, and how its kernels run here; raises ``WrongAiter`` or ``RuntimeError`` where they cannot."""
    _require_interpreter()
    how = "compiled by Triton" if ON_GPU else "interpreted by Triton with repaired rounding"
    return f"{find_aiter().describe()}, {how}"


def aiter_quant(inputs: QuantInputs, transpose_scale: bool) -> QuantOutputs:
    """AITER's ``fused_rms_fp8_group_quant``, called as SGLang 0.5.12 calls it."""
    quantise = _function("fused_fp8_quant", "fused_rms_fp8_group_quant")
    with warnings.catch_warnings():
        # the interpreter computes with numpy, which warns of NaN inputs
        warnings.simplefilter("ignore", RuntimeWarning)
        (q, scale), unquantized, out2, residual = quantise(
            inputs.inp1,
            inputs.weight1,
            1e-6,
            inputs.inp2,
            inputs.weight2,
            None if inputs.inp2 is None else 1e-6,
            group_size=GROUP,
            dtype_quant=torch.float8_e4m3fn,
            res1=inputs.residual,
            output_unquantized_inp1=inputs.with_unquantized,
            transpose_scale=transpose_scale,
        )
    return QuantOutputs(q, scale, unquantized, out2, residual)


def aiter_blockscale(inputs: GemmInputs, x_scale: torch.Tensor) -> torch.Tensor:
    """AITER's Triton ``gemm_a8w8_blockscale``, which reads x_scale by its strides; its split-K parts (2, M, N) float32.

    Two parts and no reduction: with one part, and in its reduction kernel, AITER's own ``tl.assume`` lines are false
    (a stride of 0, program 0), which the interpreter refuses.
    """
    config = {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": GROUP,
        "GROUP_SIZE_M": 1,
        "NUM_KSPLIT": 2,
        "cache_modifier": "",
        "num_warps": 4,
        "num_stages": 2,
    }
    if ON_ROCM:
        config |= {"waves_per_eu": 2, "matrix_instr_nonkdim": 16}
    gemm = _function("gemm_a8w8_blockscale", "gemm_a8w8_blockscale")
    parts: torch.Tensor = gemm(inputs.x, inputs.w, x_scale, inputs.w_scale, config=config, skip_reduce=True)
    return parts


def aiter_bpreshuffle(inputs: GemmInputs, x_scale: torch.Tensor) -> torch.Tensor:
    """AITER's ``gemm_a8w8_blockscale_bpreshuffle`` (gfx95 only), which reads the bytes of the transposed scale."""
    aiter, shuffle = importlib.import_module("aiter"), importlib.import_module("aiter.ops.shuffle")
    weight = shuffle.shuffle_weight(inputs.w, (16, 16))
    output: torch.Tensor = aiter.gemm_a8w8_blockscale_bpreshuffle(
        inputs.x, weight, x_scale, inputs.w_scale, dtype=torch.bfloat16
    )
    return output


def bpreshuffle_unsupported() -> str:
    """Why the bpreshuffle GEMM cannot run here; empty where it can."""
    if ON_ROCM and torch.cuda.get_device_properties(0).gcnArchName.startswith("gfx95"):
        return ""
    return "the bpreshuffle GEMM is built for gfx95 alone"


def layout_reader(inputs: GemmInputs, x_scale: torch.Tensor) -> torch.Tensor:
    """What a bpreshuffle GEMM would compute, in torch, from the storage of ``x_scale``; proves nothing about a GEMM."""
    tokens, channels = inputs.x.shape
    groups = channels // GROUP
    scale = storage_order(x_scale).view(groups, tokens).t()
    x = inputs.x.float().view(tokens, groups, GROUP) * scale[:, :, None]
    w_scale = inputs.w_scale.repeat_interleave(GROUP, 0)[: inputs.w.shape[0]].repeat_interleave(GROUP, 1)
    return x.view(tokens, channels) @ (inputs.w.float() * w_scale).t()


@functools.cache
def _function(module: str, name: str) -> Callable[..., Any]:
    _require_interpreter()
    tree = find_aiter()
    folders = (
        tree.module.rpartition(".")[0],
        "aiter.ops.triton",
        "aiter.ops.triton.quant",
        "aiter.ops.triton.gemm.basic",
    )
    with aiter_modules(tree, ON_ROCM, fp8=torch.float8_e4m3fn):
        for folder in folders:
            try:
                function: Callable[..., Any] = getattr(importlib.import_module(f"{folder}.{module}"), name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{folder}.{module}".startswith(error.name):
                    raise
            else:
                if not ON_GPU:
                    triton_interpreter.install()
                return function
    raise ImportError(f"{tree.describe()} has no {module}.py in {', '.join(folders)}; install a release that has it")


def _require_interpreter() -> None:
    if ON_GPU or os.environ.get("TRITON_INTERPRET") == "1":
        return
    if "triton" in sys.modules:
        raise RuntimeError(
            "Triton was imported as a compiler on a machine without GPU; set TRITON_INTERPRET=1 before it is"
        )
    os.environ["TRITON_INTERPRET"] = "1"
