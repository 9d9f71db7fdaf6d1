"""What a compiled kernel must look like, and how its facts are read from assembly and generated source. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping

from validation.records import KernelCheck

MAX_VGPRS = 64
"""CDNA3 and CDNA4 give a SIMD 512 vector registers a lane and at most 8 waves (LLVM's AMDGPU usage guide, gfx942 and
gfx950: 512 with unified AGPRs, 8 waves per EU): with at most 64 a wave, registers never lower the occupancy."""
MAX_REGISTERS = 64
"""sm_90 gives an SM 65,536 registers and 64 resident warps (CUDA programming guide, compute capability 9.0): 64 a
thread still leave 32 warps, as many as 32 resident blocks of one warp."""
SHARED_BYTES = {"gfx942": 65536, "gfx950": 163840, "sm_90": 232448}
"""Shared memory a block may use: 64 KiB LDS on CDNA3, 160 KiB on CDNA4 (AMD's ISA guides), 227 KiB on Hopper (CUDA
programming guide)."""
WIDEST_ACCESS_BYTES = 16
"""The widest vector access of a lane on all three targets (buffer_store_dwordx4, st.global.v4.b32)."""

_AMD_METADATA = {
    "vgprs": "vgpr_count",
    "agprs": "agpr_count",
    "sgprs": "sgpr_count",
    "vgpr_spills": "vgpr_spill_count",
    "sgpr_spills": "sgpr_spill_count",
    "shared_bytes": "group_segment_fixed_size",
    "scratch_bytes": "private_segment_fixed_size",
}
_AMD_BYTES = {
    "byte": 1,
    "short": 2,
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
    "b8": 1,
    "b16": 2,
    "b32": 4,
}
_C_BYTES = {"uint1": 4, "uint2": 8, "uint4": 16, "ulonglong2": 16, "ulonglong4": 32}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one target, or lowered to its source; ``facts`` are counts and bytes."""

    kernel: str
    target: str
    compiler: str
    facts: Mapping[str, int]
    wide_store_bytes: int
    """How wide each lane's stores of the row must be: the bytes of the row it holds, at most 16."""
    wide_stores: int
    """How many of them there must be at least: one for each tensor written."""
    seconds: float
    lacking: str = ""
    """Why this compiler cannot make the kernel for the target; empty where it did."""


def amdgcn_facts(assembly: str) -> dict[str, int]:
    """Registers, spills, scratch and store widths from AMDGPU assembly.

    Raises:
        ValueError: the kernel's metadata lack a figure.
    """
    facts = {}
    for fact, key in _AMD_METADATA.items():
        found = re.search(rf"^\s*-?\s*\.{key}:\s+(\d+)\s*$", assembly, re.MULTILINE)
        if found is None:
            raise ValueError(
                f"the assembly has no .{key} in its metadata; expected the output of LLVM's AMDGPU backend"
            )
        facts[fact] = int(found[1])
    stores = re.findall(r"^\s*(?:buffer|global|flat)_store_(\w+?)(?:_d16_hi)?\s", assembly, re.MULTILINE)
    return {**facts, **_widths(Counter(_AMD_BYTES.get(width, 0) for width in stores))}


def ptx_facts(ptx: str, resource_usage: str) -> dict[str, int]:
    """Store widths from PTX; registers, stack and local memory from ``cuobjdump --dump-resource-usage``.

    Raises:
        ValueError: the resource usage lacks a figure.
    """
    facts = {}
    for fact, key in (
        ("registers", "REG"),
        ("stack_bytes", "STACK"),
        ("local_bytes", "LOCAL"),
        ("shared_bytes", "SHARED"),
    ):
        found = re.search(rf"\b{key}:(\d+)", resource_usage)
        if found is None:
            raise ValueError(
                f"the resource usage names no {key}; expected the output of cuobjdump --dump-resource-usage"
            )
        facts[fact] = int(found[1])
    stores = re.findall(r"\bst\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfu](\d+)", ptx)
    return {**facts, **_widths(Counter(int(count or 1) * int(bits) // 8 for count, bits in stores))}


def source_facts(source: str, shared_bytes: int, query_bytes: int) -> dict[str, int]:
    """What generated HIP or CUDA source shows; ``query_bytes`` is the size of one query element."""
    return {
        "kernels": len(re.findall(r"__global__[^;{]*\{", source)),
        "matrix_instructions": len(re.findall(r"mfma_\w+|tl::mma_sync|tl::wgmma|tl::gemm", source)),
        "shared_bytes": shared_bytes,
        "widest_query_load_bytes": _widest(re.findall(r"= \*\((\w+)\*\)\(Q \+", source), query_bytes),
        "widest_output_store_bytes": _widest(re.findall(r"^\s*\*\((\w+)\*\)\(Output \+", source, re.MULTILINE), 2),
    }


def _widest(types: list[str], element_bytes: int) -> int:
    """The widest of some vector types, such as ``uint4`` or ``fp8_e4_8_t`` (8 elements)."""
    return max(
        (_C_BYTES.get(t) or int((re.findall(r"_(\d+)_t$", t) or ["1"])[0]) * element_bytes for t in types), default=0
    )


def _widths(stores: Counter[int]) -> dict[str, int]:
    return {f"stores_of_{width}_bytes": count for width, count in sorted(stores.items())}


def checks(compiled: Compiled) -> tuple[KernelCheck, ...]:
    """Every demand on ``compiled``, each with what was found."""
    facts = compiled.facts
    if "widest_query_load_bytes" in facts:
        return (
            _at_least("one_kernel", facts["kernels"], 1),
            _at_most("no_second_kernel", facts["kernels"], 1),
            _at_least("matrix_instructions", facts["matrix_instructions"], 1),
            _at_most("shared_bytes", facts["shared_bytes"], SHARED_BYTES[compiled.target]),
            _at_least("query_load_bytes", facts["widest_query_load_bytes"], compiled.wide_store_bytes),
            # a lane holds at least two neighbouring columns of the matrix unit's result
            _at_least("output_store_bytes", facts["widest_output_store_bytes"], 4),
        )
    wide = sum(
        count
        for fact, count in facts.items()
        if fact.startswith("stores_of_") and int(fact.split("_")[2]) >= compiled.wide_store_bytes
    )
    stores = _at_least(f"stores_of_{compiled.wide_store_bytes}_bytes", wide, compiled.wide_stores)
    if "registers" in facts:
        return (
            _at_most("stack_bytes", facts["stack_bytes"], 0),
            _at_most("local_bytes", facts["local_bytes"], 0),
            _at_most("registers", facts["registers"], MAX_REGISTERS),
            stores,
        )
    return (
        _at_most("vgpr_spills", facts["vgpr_spills"], 0),
        _at_most("sgpr_spills", facts["sgpr_spills"], 0),
        _at_most("scratch_bytes", facts["scratch_bytes"], 0),
        # from gfx90a on, the metadata's vgpr_count includes the accumulation registers
        _at_most("vgprs", facts["vgprs"], MAX_VGPRS),
        stores,
    )


def _at_most(name: str, found: int, bound: int) -> KernelCheck:
    return KernelCheck(name, found <= bound, "" if found <= bound else f"{found}, expected at most {bound}")


def _at_least(name: str, found: int, bound: int) -> KernelCheck:
    return KernelCheck(name, found >= bound, "" if found >= bound else f"{found}, expected at least {bound}")
