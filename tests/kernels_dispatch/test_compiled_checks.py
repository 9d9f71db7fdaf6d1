"""Reading assembly and judging it: every planted defect of a compiled kernel is named by its check."""

from __future__ import annotations

import dataclasses

import pytest

from validation.compiled import Compiled, amdgcn_facts, checks, ptx_facts, source_facts
from validation.judging.cross_compile import CASE, judge_cross_compile
from validation.records import KernelCell
from validation.verdicts import Verdict

AMDGCN = """
	buffer_store_dwordx4 v[0:3], v8, s[4:7], 0 offen
	buffer_store_dwordx4 v[0:3], v9, s[8:11], 0 offen
	buffer_store_short v1, v2, s[4:7], 0 offen
	global_load_dword v1, v2, s[4:5]
amdhsa.kernels:
  - .agpr_count:     0
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 0
    .sgpr_count:     51
    .sgpr_spill_count: 0
    .vgpr_count:     18
    .vgpr_spill_count: 0
"""
PTX = "@%p1 st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };\n @%p1 st.global.b16 [ %rd1 + 0 ], { %rs1 };\n"
RESOURCES = " Function k:\n  REG:42 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:744\n"
SOURCE = """
extern "C" __global__ void main_kernel(int* Q);
extern "C" __global__ void __launch_bounds__(128) main_kernel(int* Q) {
    x = *(uint4*)(Q + 8);
    y = *(fp8_e4_8_t*)(Q + 8);
    __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b);
    *(uint2*)(Output + 4) = y;
}
"""


def _amd(assembly: str = AMDGCN) -> Compiled:
    return Compiled("k", "gfx950", "test", amdgcn_facts(assembly), wide_store_bytes=16, wide_stores=2, seconds=0.0)


def _broken(compiled: Compiled) -> list[str]:
    return [check.name for check in checks(compiled) if not check.equal]


def test_amdgcn_facts_are_read() -> None:
    facts = amdgcn_facts(AMDGCN)
    assert (facts["vgprs"], facts["sgprs"], facts["stores_of_16_bytes"], facts["stores_of_2_bytes"]) == (18, 51, 2, 1)
    assert _broken(_amd()) == []


@pytest.mark.parametrize(
    ("good", "bad", "check"),
    [
        (".vgpr_spill_count: 0", ".vgpr_spill_count: 3", "vgpr_spills"),
        (".sgpr_spill_count: 0", ".sgpr_spill_count: 1", "sgpr_spills"),
        (".private_segment_fixed_size: 0", ".private_segment_fixed_size: 16", "scratch_bytes"),
        (".vgpr_count:     18", ".vgpr_count:     65", "vgprs"),
        ("buffer_store_dwordx4 v[0:3], v9", "buffer_store_dwordx2 v[0:1], v9", "stores_of_16_bytes"),
    ],
    ids=["vgpr_spill", "sgpr_spill", "scratch", "too_many_vgprs", "narrow_store"],
)
def test_defect_in_amdgcn_is_named(good: str, bad: str, check: str) -> None:
    assert good in AMDGCN
    assert _broken(_amd(AMDGCN.replace(good, bad))) == [check]


@pytest.mark.parametrize(
    ("good", "bad", "check"),
    [("STACK:0", "STACK:8", "stack_bytes"), ("LOCAL:0", "LOCAL:4", "local_bytes"), ("REG:42", "REG:65", "registers")],
)
def test_defect_in_cubin_is_named(good: str, bad: str, check: str) -> None:
    clean = Compiled("k", "sm_90", "test", ptx_facts(PTX, RESOURCES), 16, 1, 0.0)
    broken = dataclasses.replace(clean, facts=ptx_facts(PTX, RESOURCES.replace(good, bad)))
    assert clean.facts["stores_of_16_bytes"] == clean.facts["stores_of_2_bytes"] == 1
    assert (_broken(clean), _broken(broken)) == ([], [check])


@pytest.mark.parametrize(
    ("good", "bad", "check"),
    [
        ("(uint4*)(Q", "(uint2*)(Q", "query_load_bytes"),
        ("mfma", "fma", "matrix_instructions"),
        ("*(uint2*)(Output + 4)", "Output[4]", "output_store_bytes"),
    ],
)
def test_defect_in_generated_source_is_named(good: str, bad: str, check: str) -> None:
    clean = Compiled("k", "gfx942", "test", source_facts(SOURCE, 57344, 2), 16, 1, 0.0)
    broken = dataclasses.replace(
        clean, facts=source_facts(SOURCE.replace(good, bad).replace("fp8_e4_8", "x"), 57344, 2)
    )
    assert (_broken(clean), _broken(broken)) == ([], [check])


def test_too_much_shared_memory_for_the_target_is_named() -> None:
    facts = source_facts(SOURCE, 96256, 2)
    assert _broken(Compiled("k", "gfx942", "test", facts, 16, 1, 0.0)) == ["shared_bytes"]
    assert _broken(Compiled("k", "gfx950", "test", facts, 16, 1, 0.0)) == []


@pytest.mark.parametrize(
    ("assembly", "verdict", "reason"),
    [
        (AMDGCN, Verdict.PASS, "compiled_as_demanded"),
        (AMDGCN.replace(".vgpr_spill_count: 0", ".vgpr_spill_count: 3"), Verdict.FAIL, "compiled_worse"),
    ],
    ids=["clean", "spilling"],
)
def test_compiled_kernel_is_judged(assembly: str, verdict: Verdict, reason: str) -> None:
    cell = KernelCell(CASE, "k-gfx950", True, "", {}, checks(_amd(assembly)), 0.0)
    (finding,) = judge_cross_compile([cell], {CASE: {"cells": ["k-gfx950"], "path_proof": False}})
    assert (finding.verdict, finding.reason) == (verdict, reason)


def test_kernel_that_was_not_compiled_is_missed() -> None:
    (finding,) = judge_cross_compile([], {CASE: {"cells": ["k-gfx950"], "path_proof": False}, "cat_skip": {}})
    assert finding.verdict is Verdict.NOT_RUN


def test_assembly_without_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \.vgpr_count in its metadata"):
        amdgcn_facts("s_endpgm")
    with pytest.raises(ValueError, match="names no REG"):
        ptx_facts(PTX, "")
