"""AITER's own sparse MLA attention in Triton: compiled on ROCm and CUDA, interpreted on a CPU for the smallest cells.

Optional: a machine whose AITER lacks the kernel reports its cells as not applicable, by name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch

from validation import triton_interpreter
from validation.aiter_tree import AiterTree, WrongAiter, aiter_modules, find_aiter
from validation.operations import KV_LORA_RANK, Provider

NAME = "aiter_sparse_mla"
FUNCTION = "unified_attention_sparse_mla"
FOLDERS = ("ops/triton/attention", "ops/triton")
"""Where AITER keeps its attention kernels: newer trees first."""
ON_ROCM = torch.version.hip is not None
ON_GPU = torch.cuda.is_available()
BLOCK = 32
"""Cache rows a block, and so the kernel's tile: 32 x 576 bf16 are 36 kB of shared memory, which all targets have."""
HEADS_MULTIPLE = 16
"""The kernel takes 16 heads a program and would leave any others out."""


class AiterSparseMla:
    """``unified_attention_sparse_mla`` as the installed AITER has it, or why it is not there."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why it cannot run here: not installed, or not in bf16, the one dtype that its docstring gives."""
        if self._missing:
            return self._missing
        if (query, cache) != (torch.bfloat16, torch.bfloat16):
            return f"AITER's {FUNCTION} is documented for bfloat16 alone"
        return ""

    def prepare(self, shapes: Collection[tuple[int, torch.dtype, torch.dtype]]) -> None:
        """Triton compiles on first use."""

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """See ``validation.operations.Consumer``; every token is a sequence of one query.

        Raises:
            ValueError: the heads are no multiple of 16, or the cache rows none of ``BLOCK``.
        """
        tokens, heads, width = q_all.shape
        if heads % HEADS_MULTIPLE or kv_cache.shape[0] % BLOCK:
            raise ValueError(
                f"{heads} heads and {kv_cache.shape[0]} cache rows were given; expected multiples of {HEADS_MULTIPLE} "
                f"and {BLOCK}"
            )
        output = torch.empty(tokens, heads, KV_LORA_RANK, dtype=q_all.dtype, device=q_all.device)
        starts = torch.arange(tokens + 1, dtype=torch.int32, device=q_all.device)
        lengths = torch.full((tokens,), kv_cache.shape[0], dtype=torch.int32, device=q_all.device)
        # the kernel takes a block table and does not read it: its indices are rows of the cache
        block_table = torch.zeros(tokens, 1, dtype=torch.int32, device=q_all.device)
        with np.errstate(all="ignore"):
            _function()(
                q_all,
                kv_cache.view(-1, BLOCK, 1, width),
                output,
                starts,
                1,
                lengths,
                kv_cache.shape[0],
                softmax_scale,
                indices.contiguous(),
                block_table,
                KV_LORA_RANK,
            )
        return output


@functools.cache
def _function() -> Callable[..., Any]:
    folder = _folder(find_aiter())
    if folder is None:
        raise WrongAiter(f"{find_aiter().describe()} has no {FUNCTION}; ask unsupported() first")
    with aiter_modules(find_aiter(), ON_ROCM):
        module = importlib.import_module(f"aiter.{folder.replace('/', '.')}.{FUNCTION}")
    function: Callable[..., Any] = getattr(module, FUNCTION)
    if not ON_GPU:
        triton_interpreter.install()
    return function


def _folder(tree: AiterTree) -> str | None:
    return next((folder for folder in FOLDERS if (tree.root / folder / f"{FUNCTION}.py").is_file()), None)


def _provider() -> Provider:
    try:
        tree = find_aiter()
    except WrongAiter as error:
        return _absent(str(error))
    if importlib.util.find_spec("triton") is None:
        return _absent("Triton is not installed; install it: python -m pip install triton==3.9.0")
    if _folder(tree) is None:
        return _absent(f"{tree.describe()} has no {FUNCTION}")
    how = "compiled by Triton"
    if not ON_GPU:
        if os.environ.get("TRITON_INTERPRET") != "1" and "triton" in sys.modules:
            return _absent("Triton was imported as a compiler; set TRITON_INTERPRET=1 before it is")
        os.environ["TRITON_INTERPRET"] = "1"
        how = "interpreted by Triton with repaired rounding"
    return Provider(NAME, f"{tree.describe()}, {FUNCTION} {how}", consumer=AiterSparseMla(""))


def _absent(reason: str) -> Provider:
    return Provider(NAME, "not installed", consumer=AiterSparseMla(reason))


PROVIDER = _provider()
