"""AITER's fused Triton kernel: compiled on ROCm and CUDA, interpreted on a CPU."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from validation import triton_interpreter
from validation.aiter_tree import FUNCTION, WrongAiter, aiter_modules, find_aiter
from validation.operations import FusedInputs, FusedOutputs, Provider

ON_ROCM = torch.version.hip is not None
ON_GPU = torch.cuda.is_available()


class AiterProducer:
    """``fused_qk_rope_cat_and_cache_mla`` as the installed AITER has it."""

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """NVIDIA has no fnuz formats; gfx942 has them, gfx950 and later have the OCP ones."""
        if ON_GPU and not ON_ROCM and torch.float8_e4m3fnuz in (query, cache):
            return "NVIDIA GPUs have no float8_e4m3fnuz"
        return ""

    def fused_qk_rope_cat_and_cache_mla(self, inputs: FusedInputs) -> FusedOutputs:
        """See ``validation.operations.Producer``."""
        # the interpreter computes in numpy, which warns of what IEEE arithmetic allows
        with np.errstate(all="ignore"):
            result = _function()(
                inputs.q_nope,
                inputs.q_pe,
                inputs.k_nope,
                inputs.k_pe,
                inputs.kv_cache,
                inputs.slots,
                inputs.positions,
                inputs.cos,
                inputs.sin,
                inputs.k_scale,
                inputs.is_neox,
                num_decode_toks_for_zeros=inputs.num_decode_toks_for_zeros,
                apply_scale=True,
                q_out_dtype=inputs.q_out_dtype,
            )
        q_cat, decode_q_pe, k_pe = result[:3]
        return FusedOutputs(q_cat, k_pe, decode_q_pe, result[4] if len(result) > 4 else None)


@functools.cache
def _function() -> Callable[..., Any]:
    with aiter_modules(find_aiter(), ON_ROCM):
        function: Callable[..., Any] = getattr(importlib.import_module(find_aiter().module), FUNCTION)
    if not ON_GPU:
        triton_interpreter.install()
    return function


def _provider() -> Provider:
    name = "aiter"
    try:
        tree = find_aiter()
    except WrongAiter as error:
        return Provider(name, "", missing=str(error))
    if importlib.util.find_spec("triton") is None:
        return Provider(name, "", missing="Triton is not installed; install it: python -m pip install triton==3.9.0")
    version = f"{tree.describe()}, compiled by Triton"
    if not ON_GPU:
        if os.environ.get("TRITON_INTERPRET") != "1" and "triton" in sys.modules:
            return Provider(name, "", missing="Triton was imported as a compiler; set TRITON_INTERPRET=1 before it is")
        os.environ["TRITON_INTERPRET"] = "1"
        version = f"{tree.describe()}, interpreted by Triton with repaired rounding"
    return Provider(name, version, producer=AiterProducer())


PROVIDER = _provider()
