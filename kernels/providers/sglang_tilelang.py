"""SGLang's own ``tilelang_sparse_fwd``: the kernel file of the installed release, loaded without the rest of SGLang.

Its three questions about the platform are answered here, so that nothing else of SGLang is imported. On a CPU it is
asked for the ROCm kernels, and four TileLang attributes are substituted. Optional: a machine without SGLang or TileLang
reports its cells as not applicable, by name.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import pathlib
import types
from collections.abc import Callable, Collection
from typing import Any
from unittest import mock

import torch

from validation.operations import Provider
from validation.tilelang_cpu import COMPILE_FLAGS, legalise_bf16_storage

NAME = "sglang_tilelang"
ON_GPU = torch.cuda.is_available()
ON_ROCM = torch.version.hip is not None
PLACES = (
    "kernels/ops/attention/dsa/tilelang_kernel.py",
    "srt/layers/attention/dsa/tilelang_kernel.py",
    "srt/layers/attention/nsa/tilelang_kernel.py",
)
"""Newest first: 0.5.23 and 0.5.12 were seen with the first and the last."""
TOPK = 2048
"""The one length that 0.5.12 accepts; shorter index lists are padded with -1."""
LEAST_HEADS = 16
"""The kernels pad their head block to 16 rows and read as many."""
SUBSTITUTED = "tilelang.jit and alloc_shared, alloc_fragment and Parallel of tilelang.language substituted"


class SglangTileLang:
    """``tilelang_sparse_fwd`` of one release, or why there is none."""

    def __init__(self, file: pathlib.Path | None, missing: str = "") -> None:
        self._file, self._missing = file, missing

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """Why it cannot run here. fp8 is for ROCm, as a pair; elsewhere the kernels are written for bf16."""
        if self._missing:
            return self._missing
        if query == cache == torch.bfloat16:
            return ""
        if ON_GPU and ON_ROCM and query == cache == _rocm_fp8():
            return ""
        return (
            "SGLang's TileLang kernels take bfloat16, and on ROCm the fp8 format of the GPU, for query and cache alike"
        )

    def prepare(self, shapes: Collection[tuple[int, torch.dtype, torch.dtype]]) -> None:
        """TileLang compiles on first use, as in SGLang."""

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """See ``validation.operations.Consumer``.

        Raises:
            ValueError: there is no SGLang, there are fewer than 16 heads, or more than 2048 indices a token.
        """
        if self._file is None:
            raise ValueError(f"a kernel that is not there was called: {self._missing}; ask unsupported() first")
        if q_all.shape[1] < LEAST_HEADS or indices.shape[-1] > TOPK:
            raise ValueError(
                f"{q_all.shape[1]} heads and {indices.shape[-1]} indices were given; expected at least {LEAST_HEADS} "
                f"heads and at most {TOPK} indices"
            )
        padded = torch.nn.functional.pad(indices, (0, TOPK - indices.shape[-1]), value=-1)
        function = _module(self._file).tilelang_sparse_fwd
        # the partial kernels give (1, M, H, 512), as SGLang's caller expects
        output: torch.Tensor = function(q_all, kv_cache, padded.unsqueeze(1), softmax_scale)
        return output.squeeze(0)


@functools.cache
def _module(file: pathlib.Path) -> Any:
    """The kernel file, executed with SGLang's platform questions answered and, on a CPU, TileLang substituted."""
    import tilelang

    logging.getLogger("tilelang").setLevel(logging.WARNING)
    spec = importlib.util.spec_from_file_location("sglang_tilelang_kernel", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded as Python; expected SGLang's tilelang_kernel.py")
    module = importlib.util.module_from_spec(spec)
    gcn = torch.cuda.get_device_properties(0).gcnArchName if ON_GPU and ON_ROCM else ""
    quantisation = types.SimpleNamespace(is_fp8_fnuz=lambda: gcn.startswith("gfx94"))
    answers: dict[str, Any] = {
        "sglang.srt.utils": types.SimpleNamespace(
            is_hip=lambda: ON_ROCM or not ON_GPU, is_gfx95_supported=lambda: gcn.startswith("gfx95")
        ),
        "sglang.srt.layers.quantization.fp8_kernel": quantisation,
        "sglang.kernels.ops.quantization.fp8_kernel": quantisation,
    }
    with mock.patch.dict("sys.modules", answers):
        if ON_GPU:
            spec.loader.exec_module(module)
        else:
            legalise_bf16_storage()
            with mock.patch.object(tilelang, "jit", _jit_for_cpu(tilelang.jit)):
                spec.loader.exec_module(module)
            vars(module)["T"] = _language_for_cpu()
    return module


def _jit_for_cpu(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``tilelang.jit`` for the C target; what the decorator says of warps and of CUDA's compiler does not apply."""
    # vectors of bf16 are more than the C target can convert
    configs = {"tirx.disable_vectorize": True}
    return lambda out_idx=None, **_: stock(
        out_idx=out_idx,
        target="c",
        execution_backend="cython",
        pass_configs=configs,
        compile_flags=list(COMPILE_FLAGS),
    )


def _language_for_cpu() -> types.ModuleType:
    """``tilelang.language`` with shared memory and fragments as local arrays, and parallel loops as plain ones.

    Local arrays of bf16 are float32 instead: the C target's pipeline loses the others (TileLang 0.1.15).
    """
    import tilelang.language as T  # noqa: N812 (TileLang's own convention)

    def local(shape: Any, dtype: Any) -> Any:
        return T.alloc_local(shape, "float32" if str(dtype) == "bfloat16" else dtype)

    language = types.ModuleType(T.__name__)
    vars(language).update(vars(T))
    vars(language).update(alloc_shared=local, alloc_fragment=local, Parallel=T.grid)
    return language


def _rocm_fp8() -> torch.dtype:
    fnuz = torch.cuda.get_device_properties(0).gcnArchName.startswith("gfx94")
    return torch.float8_e4m3fnuz if fnuz else torch.float8_e4m3fn


def provider_of(site: pathlib.Path, version: str) -> Provider:
    """The provider of the release whose ``sglang`` folder lies in ``site`` (an unpacked wheel will do)."""
    for place in PLACES:
        if (site / "sglang" / place).is_file():
            how = ("ROCm" if ON_ROCM else "CUDA") if ON_GPU else f"C target, {SUBSTITUTED}"
            file = site / "sglang" / place
            return Provider(NAME, f"SGLang {version} ({place}), {how}", consumer=SglangTileLang(file))
    return _absent(f"SGLang {version} has none of {', '.join(PLACES)}")


def _absent(reason: str) -> Provider:
    return Provider(NAME, "not installed", consumer=SglangTileLang(None, reason))


def _provider() -> Provider:
    if importlib.util.find_spec("tilelang") is None:
        return _absent("TileLang is not installed; install it: python -m pip install tilelang==0.1.15")
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return _absent("SGLang is not installed; install it: python -m pip install 'sglang>=0.5.12'")
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return provider_of(pathlib.Path(next(iter(spec.submodule_search_locations))).parent, version)


PROVIDER = _provider()
