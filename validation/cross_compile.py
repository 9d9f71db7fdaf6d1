"""Compiles the kernels for gfx950, gfx942 and sm_90 without a GPU, in a process of its own.

AITER's Triton kernels are compiled to machine code from the launch arguments that AITER's own wrapper binds; our
TileLang kernel is lowered to HIP and CUDA source. Triton's interpreter and its compiler cannot share a process, so
``cross_compile`` starts ``python -m validation.cross_compile``, which prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from validation.compiled import WIDEST_ACCESS_BYTES, Compiled, amdgcn_facts, checks, ptx_facts, source_facts
from validation.discovery import ROOT, load_leaf
from validation.judging.cross_compile import CASE
from validation.records import KernelCell, KernelCheck

TIMEOUT_S = 120
TARGETS = {"gfx950": ("hip", "gfx950", 64), "gfx942": ("hip", "gfx942", 64), "sm_90": ("cuda", 90, 32)}
"""Backend, architecture and lanes of a wave or warp, as Triton's ``GPUTarget`` takes them."""
NATIVE_FP8 = {"gfx950": "float8_e4m3fn", "gfx942": "float8_e4m3fnuz", "sm_90": "float8_e4m3fn"}
TOKENS, HEADS = 4, 8
KV_LORA_RANK, QK_ROPE_HEAD_DIM = 512, 64
HIDDEN, Q_LORA_RANK = 6144, 2048
"""GLM-5's widths (its published config.json)."""

PRODUCER = "fused_qk_rope_cat_and_cache_mla"
QUANT = "fused_rms_fp8_group_quant"
TILELANG = "tilelang_sparse_mla"
KERNELS = (
    f"{PRODUCER}-bf16",
    f"{PRODUCER}-fp8",
    f"{QUANT}-n{HIDDEN}",
    f"{QUANT}-n{HIDDEN}-transposed",
    f"{QUANT}-n{Q_LORA_RANK}-transposed",
)
TILELANG_SOURCES = (("gfx950", "bf16"), ("gfx950", "fp8"), ("sm_90", "bf16"))
LACKING = {("3.6", "gfx942"): "Triton 3.6 cannot convert float32 to float8_e4m3fnuz"}
"""Release and target whose fp8 kernels the compiler itself cannot make: seen with 3.6.0, "PassManager::run failed" in
its AMD conversion; 3.9.0 makes them."""
CONTROLS = {
    "control_strided_query_stores_narrowly": "stores_of_16_bytes",
    "control_one_wave_a_row_breaks_the_register_bound": "vgprs",
}
"""Real compilations for gfx950 that must break the named check: one that they pass would be blind."""


class CompilerError(RuntimeError):
    """The kernels cannot be compiled here; the message says what to install."""


def declared_cells() -> list[str]:
    """The declared cells: every kernel on every target, and one for the controls."""
    return [
        *(f"{CASE}-{kernel}-{target}" for target in TARGETS for kernel in KERNELS),
        *(f"{CASE}-{TILELANG}-{dtype}-{target}" for target, dtype in TILELANG_SOURCES),
        f"{CASE}-controls-gfx950",
    ]


def cross_compile() -> tuple[list[KernelCell], list[Compiled]]:
    """Compile everything in a process of its own; the cells for the judge, and the facts behind them.

    Raises:
        CompilerError: a library is missing or unknown to us, or the process failed; the message says which.
    """
    # the environment of the caller may ask for the interpreter; contraction of products and sums is Triton's default
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    with tempfile.TemporaryDirectory() as cache:
        # compiled afresh: what lies in a cache was compiled by who knows which release
        environment["TRITON_CACHE_DIR"] = cache
        done = subprocess.run(
            [sys.executable, "-m", "validation.cross_compile"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        raise CompilerError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return _cells([Compiled(**data) for data in json.loads(done.stdout.splitlines()[-1])])


def _cells(everything: list[Compiled]) -> tuple[list[KernelCell], list[Compiled]]:
    controls = [item for item in everything if item.kernel in CONTROLS]
    compiled = [item for item in everything if item.kernel not in CONTROLS]
    records = [
        KernelCell(CASE, f"{CASE}-{item.kernel}-{item.target}", False, item.lacking, {}, (), 0.0)
        if item.lacking
        else _cell(f"{CASE}-{item.kernel}-{item.target}", item.compiler, checks(item), item.seconds)
        for item in compiled
    ]
    seconds = sum(item.seconds for item in controls)
    records.append(_cell(f"{CASE}-controls-gfx950", controls[0].compiler, tuple(map(_control, controls)), seconds))
    return records, everything


def _control(item: Compiled) -> KernelCheck:
    broken = [check.name for check in checks(item) if not check.equal]
    seen = broken == [CONTROLS[item.kernel]]
    return KernelCheck(item.kernel, seen, "" if seen else f"broke {broken}, expected {CONTROLS[item.kernel]} alone")


def _cell(name: str, compiler: str, found: tuple[KernelCheck, ...], seconds: float) -> KernelCell:
    return KernelCell(CASE, name, True, "", {"compiler": compiler}, found, seconds)


def main() -> int:
    """Compile everything in this process and print it."""
    try:
        results = [*_triton_kernels(), *_tilelang_sources()]
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps([dataclasses.asdict(result) for result in results]))
    return 0


@dataclasses.dataclass(frozen=True)
class _Launch:
    """One launch that a wrapper asked for: the kernel, its arguments, and what it writes."""

    name: str
    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    row_elements: int
    element_bytes: int
    wide_stores: int


def _triton_kernels() -> Iterator[Compiled]:
    import triton

    compiler = f"Triton {triton.__version__}"
    release = ".".join(triton.__version__.split(".")[:2])
    for target in TARGETS:
        for launch in _launches(NATIVE_FP8[target]):
            lacking = LACKING.get((release, target), "") if launch.element_bytes == 1 else ""
            if lacking:
                yield Compiled(launch.name, target, compiler, {}, 0, 0, 0.0, lacking)
            else:
                yield _compile(launch, target, compiler)
    producer, quant = _launches(NATIVE_FP8["gfx950"], strided=True)[0], _launches(NATIVE_FP8["gfx950"])[2]
    strided, one_wave = CONTROLS
    yield _compile(dataclasses.replace(producer, name=strided), "gfx950", compiler)
    options = {**quant.options, "num_warps": 1}
    # the stores stay as wide as the kernel's own: only the registers may give it away
    one = dataclasses.replace(quant, name=one_wave, options=options, row_elements=quant.row_elements // 16)
    yield _compile(one, "gfx950", compiler)


def _launches(fp8: str, strided: bool = False) -> list[_Launch]:
    """What AITER's wrappers launch for ``KERNELS``; ``strided`` spaces the query output's elements."""
    import torch

    quantised = getattr(torch, fp8)
    launches = []
    for name, dtype, size in ((f"{PRODUCER}-bf16", torch.bfloat16, 2), (f"{PRODUCER}-fp8", quantised, 1)):
        width = KV_LORA_RANK + QK_ROPE_HEAD_DIM
        apart = 2 if strided else 1
        q_out = torch.empty(TOKENS, HEADS, width * apart, dtype=dtype)[..., ::apart]
        captured = _capture(_aiter_module("kv"), f"_{PRODUCER}_kernel")
        getattr(_aiter_module("kv"), PRODUCER)(
            torch.zeros(TOKENS, HEADS, KV_LORA_RANK, dtype=torch.bfloat16),
            torch.zeros(TOKENS, HEADS, QK_ROPE_HEAD_DIM, dtype=torch.bfloat16),
            torch.zeros(TOKENS, 1, KV_LORA_RANK, dtype=torch.bfloat16),
            torch.zeros(TOKENS, 1, QK_ROPE_HEAD_DIM, dtype=torch.bfloat16),
            torch.zeros(64, 1, width, dtype=dtype),
            torch.arange(TOKENS),
            torch.arange(TOKENS),
            torch.zeros(128, QK_ROPE_HEAD_DIM // 2, dtype=torch.bfloat16),
            torch.zeros(128, QK_ROPE_HEAD_DIM // 2, dtype=torch.bfloat16),
            torch.ones(1),
            False,
            q_out=q_out,
        )
        # the row of 512 goes to q_out and to the cache
        launches.append(captured.launch(name, KV_LORA_RANK, size, wide_stores=2))
    for name, columns, transposed in (
        (f"{QUANT}-n{HIDDEN}", HIDDEN, False),
        (f"{QUANT}-n{HIDDEN}-transposed", HIDDEN, True),
        (f"{QUANT}-n{Q_LORA_RANK}-transposed", Q_LORA_RANK, True),
    ):
        captured = _capture(_aiter_module("quant"), f"_{QUANT}_kernel")
        getattr(_aiter_module("quant"), QUANT)(
            torch.zeros(TOKENS, columns, dtype=torch.bfloat16),
            torch.ones(columns, dtype=torch.bfloat16),
            1e-6,
            group_size=128,
            dtype_quant=quantised,
            transpose_scale=transposed,
        )
        launches.append(captured.launch(name, 1 << (columns - 1).bit_length(), 1, wide_stores=1))
    return launches


class _Capture:
    """Stands where the wrapper finds its kernel, and keeps the launch instead of making it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: self._calls.append((arguments, options))

    def launch(self, name: str, row_elements: int, element_bytes: int, wide_stores: int) -> _Launch:
        """The one launch that was captured."""
        ((arguments, options),) = self._calls
        return _Launch(name, self.kernel, arguments, options, row_elements, element_bytes, wide_stores)


def _capture(module: Any, kernel_name: str) -> _Capture:
    kernel = getattr(module, kernel_name)
    captured = _Capture(kernel.kernel if isinstance(kernel, _Capture) else kernel)
    setattr(module, kernel_name, captured)
    return captured


@functools.cache
def _aiter_module(which: str) -> Any:
    import torch

    from validation.aiter_tree import aiter_modules, find_aiter

    tree = find_aiter()
    folder = tree.module.rpartition(".")[0]
    # newer trees keep both files under fusions/, and the quantisation under quant/
    names = {"kv": [tree.module], "quant": [f"{folder}.fused_fp8_quant", "aiter.ops.triton.quant.fused_fp8_quant"]}
    with aiter_modules(tree, torch.version.hip is not None, fp8=torch.float8_e4m3fn):
        for name in names[which]:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not name.startswith(error.name):
                    raise
    raise ImportError(f"{tree.describe()} has none of {', '.join(names[which])}; install a release that has one")


def _compile(launch: _Launch, target: str, compiler: str) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    try:
        from triton.runtime.jit import create_function_from_signature
    except ImportError as error:
        raise ImportError(f"Triton {triton.__version__} binds launches in a way unknown here; install 3.9.0") from error
    backend, architecture, lanes = TARGETS[target]
    gpu = GPUTarget(backend, architecture, lanes)
    maker = make_backend(gpu)
    started = time.perf_counter()
    options = {"debug": False, **launch.options}
    bound, specialization, _ = create_function_from_signature(launch.kernel.signature, launch.kernel.params, maker)(
        *launch.arguments, **options
    )
    packed, signature, constants, attributes = launch.kernel._pack_args(maker, options, bound, specialization, None)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    built = triton.compile(source, target=gpu, options=packed.__dict__)
    facts = amdgcn_facts(built.asm["amdgcn"]) if backend == "hip" else ptx_facts(built.asm["ptx"], _resources(built))
    lane_elements = max(1, launch.row_elements // (built.metadata.num_warps * lanes))
    return Compiled(
        launch.name,
        target,
        compiler,
        facts,
        wide_store_bytes=min(WIDEST_ACCESS_BYTES, lane_elements * launch.element_bytes),
        wide_stores=launch.wide_stores,
        seconds=round(time.perf_counter() - started, 3),
    )


def _resources(built: Any) -> str:
    """What ``cuobjdump``, which comes with Triton, says about the cubin."""
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder, "kernel.cubin")
        cubin.write_bytes(built.asm["cubin"])
        return subprocess.run(
            [str(tool), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout


def _tilelang_sources() -> Iterator[Compiled]:
    import tilelang
    from tilelang import tvm

    leaf = load_leaf(ROOT / "kernels/providers/tilelang_mla.py")
    for target, name in TILELANG_SOURCES:
        hip = target.startswith("gfx")
        dtype, size = ("bfloat16", 2) if name == "bf16" else (NATIVE_FP8[target], 1)
        started = time.perf_counter()
        function = leaf.gpu_function(16, dtype, dtype, rocm=hip)
        with tvm.target.Target({"kind": "hip", "mcpu": target} if hip else {"kind": "cuda", "arch": target}):
            lowered = tilelang.lower(function)
        (device,) = lowered.device_mod.functions.values()
        yield Compiled(
            f"{TILELANG}-{name}",
            target,
            f"TileLang {tilelang.__version__}, lowered to {'HIP' if hip else 'CUDA'} source",
            source_facts(lowered.kernel_source, int(device.attrs["dyn_shared_memory_buf"]), size),
            # eight neighbouring elements a lane: 64 lanes read the 512 of a row
            wide_store_bytes=8 * size,
            wide_stores=1,
            seconds=round(time.perf_counter() - started, 3),
        )


if __name__ == "__main__":
    sys.exit(main())
