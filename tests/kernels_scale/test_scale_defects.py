"""Planted defects of the scale layout, patches of AITER's kernel or of the dispatch, and rewrites that are none."""

from __future__ import annotations

import ast
import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import validation.scale_cell
import validation.scale_layout
from validation import scale_provider
from validation.discovery import ROOT, load_leaf
from validation.judging.scale_layout import GEMM_CASE, judge_scale_layout
from validation.records import KernelCell, PathCount
from validation.scale_cell import ScaleCell, rehearse, run_bits, run_gemm, run_survival
from validation.scale_layout import TAG_KEPT, WAYS, survival
from validation.scale_provider import GemmInputs, QuantInputs, QuantOutputs, aiter_blockscale, aiter_quant
from validation.verdicts import Verdict

case = load_leaf(ROOT / "kernels/cases/scale_layout.py")
CPU = torch.device("cpu")
SITE = case.survival_cell().site
THREE, ONE = ScaleCell(SITE, 3), ScaleCell(SITE, 1)
GEMM = ScaleCell(SITE, 3, consumer="blockscale")

Patch = Callable[[QuantOutputs, bool], QuantOutputs]


def _producer(patch: Patch) -> Callable[[QuantInputs, bool], QuantOutputs]:
    return lambda inputs, transpose_scale: patch(aiter_quant(inputs, transpose_scale), transpose_scale)


def _on_direct(change: Callable[[torch.Tensor], torch.Tensor], field: str = "scale") -> Patch:
    """Changes one output of the call with ``transpose_scale``, the one that the optimisation added."""

    def patch(outputs: QuantOutputs, transpose_scale: bool) -> QuantOutputs:
        if not transpose_scale:
            return outputs
        return dataclasses.replace(outputs, **{field: change(getattr(outputs, field))})

    return patch


def _bits(change: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: change(tensor.clone().view(dtype)).view(tensor.dtype).view(tensor.shape)


def _flip_one(bits: torch.Tensor) -> torch.Tensor:
    bits.view(-1)[1] ^= 1
    return bits


def _unwritten_tail(scale: torch.Tensor) -> torch.Tensor:
    scale.view(-1)[-1] = torch.empty(1, dtype=torch.float32)[0]
    return scale


DEFECTS: dict[str, tuple[ScaleCell, Patch, str]] = {
    "transposed_twice": (THREE, _on_direct(validation.scale_layout.materialised_bytes), "scale_bytes"),
    "swapped_scale_bytes": (THREE, _on_direct(lambda s: s.flip(-1)), "scale_bytes"),
    "one_flipped_bit_in_scale": (THREE, _on_direct(_bits(_flip_one, torch.int32)), "scale_bytes"),
    "one_flipped_bit_in_q": (THREE, _on_direct(_bits(_flip_one, torch.uint8), "q"), "q"),
    "scale_strides_describe_the_bytes_elsewhere": (THREE, _on_direct(validation.scale_layout.restrided), "scale_bytes"),
    "scale_through_bf16": (THREE, _on_direct(lambda s: s.bfloat16().float()), "scale_bytes"),
    "scale_in_another_dtype": (THREE, _on_direct(lambda s: s.double()), "scale_bytes"),
    "unquantized_through_fp16": (THREE, _on_direct(lambda u: u.half().bfloat16() * 1.01, "unquantized"), "unquantized"),
    "unwritten_tail": (THREE, _on_direct(_unwritten_tail), "repeat_scale"),
    "reciprocal_scale": (THREE, _on_direct(torch.reciprocal), "scale_bytes"),
    "one_token_permuted": (ONE, _on_direct(lambda s: s.flip(-1)), "one_token_same_bytes"),
    "one_token_group_dropped": (ONE, _on_direct(lambda s: torch.cat([s[:, 1:], s[:, :1]], -1)), "one_token_same_bytes"),
}
"""Cell, patch of the producer, and a check that must name it."""


def _unequal(record: KernelCell) -> list[str]:
    return [check.name for check in record.checks if not check.equal]


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_of_the_kernel_is_named(defect: str) -> None:
    cell, patch, check = DEFECTS[defect]
    record, _ = run_bits(cell, _producer(patch), "patched", CPU)
    assert check in _unequal(record)


def test_kernel_that_ignores_the_flag_is_named() -> None:
    record, _ = run_bits(THREE, lambda inputs, _: aiter_quant(inputs, False), "patched", CPU)
    assert {"scale_bytes", "scale_by_index", "control_misread_layout_differs"} <= set(_unequal(record))


DISPATCH_DEFECTS = {
    "tag_ignored_by_the_gemm": ("for_bpreshuffle", validation.scale_layout.materialised_bytes, "scale_bytes"),
    "copy_dropped_without_tag": ("for_bpreshuffle", lambda scale: scale, "scale_bytes"),
    "symmetric_path_missing": ("for_default", lambda scale: scale, "symmetric_path"),
    "copy_made_not_idempotent": (
        "materialised",
        validation.scale_layout.materialised_bytes,
        "successor_copy_idempotent",
    ),
    "restriding_by_groups": (
        "restrided",
        lambda scale: torch.as_strided(scale, scale.shape, (1, scale.shape[1])[::-1]),
        "scale_by_index",
    ),
    "restriding_copies": ("restrided", validation.scale_layout.default_layout, "restrided_copies_nothing"),
}
"""Function of the dispatch, what stands in its place, and the check that must name it."""


@pytest.mark.parametrize("defect", DISPATCH_DEFECTS)
def test_defect_of_the_dispatch_is_named(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, broken, check = DISPATCH_DEFECTS[defect]
    monkeypatch.setattr(validation.scale_cell, function, broken)
    record, _ = run_bits(THREE, aiter_quant, "AITER", CPU)
    assert check in _unequal(record)


EQUIVALENT: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "copy_by_permute": ("materialised_bytes", lambda s: s.permute(1, 0).contiguous().view(s.shape)),
    "copy_by_mt_clone": (
        "materialised_bytes",
        lambda s: s.mT.clone(memory_format=torch.contiguous_format).view(s.shape),
    ),
    "restriding_by_view": ("restrided", lambda s: s.view(s.shape[1], s.shape[0]).t()),
    "successor_copy_by_stride": ("materialised", lambda s: s.mT.contiguous().mT),
    "copy_back_by_reshape": ("default_layout", lambda s: s.reshape(s.shape[::-1]).mT.contiguous()),
    "copy_back_by_restriding": ("default_layout", lambda s: torch.as_strided(s, s.shape, (1, s.shape[0])).contiguous()),
}
"""Rewrites of the layout functions that change nothing and must not be flagged."""


@pytest.mark.parametrize("cell", [ONE, THREE], ids=["m1", "m3"])
@pytest.mark.parametrize("rewrite", EQUIVALENT)
def test_equivalent_rewrite_is_not_flagged(rewrite: str, cell: ScaleCell, monkeypatch: pytest.MonkeyPatch) -> None:
    name, same = EQUIVALENT[rewrite]
    for module in (validation.scale_layout, validation.scale_cell):
        monkeypatch.setattr(module, name, same)
    record, _ = run_bits(cell, aiter_quant, "AITER", CPU)
    assert _unequal(record) == []


def test_real_gemm_reads_both_paths_alike_and_sees_a_misread_scale() -> None:
    record = run_gemm(GEMM, aiter_quant, aiter_blockscale, False, {}, CPU)
    assert _unequal(record) == []
    assert {check.name for check in record.checks} >= {
        "output_tagged",
        "output_restrided",
        "control_misread_scale_is_seen",
    }


def test_lost_tag_on_the_way_to_a_real_gemm_is_named() -> None:
    def lossy(inputs: GemmInputs, x_scale: torch.Tensor) -> torch.Tensor:
        return aiter_blockscale(inputs, x_scale)

    def forgetful(scale: torch.Tensor) -> torch.Tensor:
        return scale.detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation.scale_cell, "for_default", forgetful)
        record = run_gemm(GEMM, aiter_quant, lossy, False, {}, CPU)
    assert "output_tagged" in _unequal(record)


def test_gemm_that_does_not_repeat_itself_is_not_run() -> None:
    runs = iter(range(100))

    def noisy(inputs: GemmInputs, x_scale: torch.Tensor) -> torch.Tensor:
        return aiter_blockscale(inputs, x_scale) + next(runs)

    record = run_gemm(GEMM, aiter_quant, noisy, False, {}, CPU)
    (finding,) = judge_scale_layout([record], [], {GEMM_CASE: {"cells": [str(GEMM)], "path_proof": False}})
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "nondeterministic_consumer")


def test_gemm_blind_to_the_scale_is_vacuous() -> None:
    record = run_gemm(GEMM, aiter_quant, lambda inputs, _: inputs.x.float() @ inputs.w.float().t(), False, {}, CPU)
    (finding,) = judge_scale_layout([record], [], {GEMM_CASE: {"cells": [str(GEMM)], "path_proof": False}})
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "vacuous")


def test_layout_reader_rehearses_and_never_makes_a_cell() -> None:
    rehearsal = rehearse(GEMM, aiter_quant, scale_provider.layout_reader, CPU)
    assert rehearsal["reader"] == "layout reader, rehearsal only"
    assert (
        rehearsal["tagged_equals_copied"]
        is rehearsal["restrided_equals_copied"]
        is rehearsal["lost_tag_is_wrong"]
        is True
    )
    broken = rehearse(GEMM, lambda inputs, _: aiter_quant(inputs, False), scale_provider.layout_reader, CPU)
    assert broken["tagged_equals_copied"] is False


def test_evidence_of_one_site_passes_with_its_path_proof() -> None:
    record, counts = run_bits(THREE, aiter_quant, "AITER", CPU)
    findings = judge_scale_layout([record], counts, {"scale_layout": {"cells": [str(THREE)], "path_proof": True}})
    assert [(finding.name, finding.verdict) for finding in findings] == [
        ("kernel_bits.scale_layout", Verdict.PASS),
        ("path_proof.scale_layout", Verdict.PASS),
    ]
    assert [(count.path, count.removed, count.launches) for count in counts] == [("cat", 1, 1), ("skip", 0, 0)]


def test_copy_left_in_the_skip_path_fails_its_proof() -> None:
    record, counts = run_bits(THREE, aiter_quant, "AITER", CPU)
    cat = next(count for count in counts if count.path == "cat")
    left_in: list[PathCount] = [cat, dataclasses.replace(cat, path="skip")]
    finding = judge_scale_layout([record], left_in, {"scale_layout": {"cells": [str(THREE)], "path_proof": True}})[1]
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "path_not_removed")


def test_one_token_moves_nothing_on_either_path() -> None:
    record, counts = run_bits(ONE, aiter_quant, "AITER", CPU)
    assert (_unequal(record), counts) == ([], [])


def test_tag_is_lost_on_every_way_that_makes_a_new_tensor_and_the_bytes_with_it() -> None:
    inputs = validation.scale_cell.quant_inputs(THREE, CPU)
    rows = survival(aiter_quant(inputs, False).scale, aiter_quant(inputs, True).scale)
    assert {row.operation for row in rows if row.tag_kept} == TAG_KEPT
    assert {row.operation for row in rows if row.bytes_right} == TAG_KEPT
    assert all(row.strides_right for row in rows)
    assert len(rows) == len(WAYS)


def test_survival_cell_says_what_is_documented_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation.scale_cell, "TAG_KEPT", TAG_KEPT | {"detach"})
    assert _unequal(run_survival(THREE, aiter_quant, "AITER", CPU)) == ["tag_after_detach"]


def test_copy_of_the_first_change_is_not_idempotent() -> None:
    scale = torch.arange(12, dtype=torch.float32).view(3, 4)
    once = validation.scale_layout.materialised_bytes(scale)
    assert not torch.equal(once, validation.scale_layout.materialised_bytes(once))
    assert not torch.equal(scale, validation.scale_layout.materialised_bytes(once))


def test_the_seven_call_sites_are_declared() -> None:
    declared = case.CASE.declared("default")
    assert len(case.SITES) == 7
    assert all(any(site.name in name for name in declared["scale_layout"]["cells"]) for site in case.SITES)
    assert set(declared) == {"scale_layout", "scale_layout_gemm"}


TREES = [pathlib.Path(part) for part in os.environ.get("SGLANG_TREES", "").split(os.pathsep) if part]


@pytest.mark.parametrize("site", TREES, ids=lambda path: path.name)
def test_layout_functions_are_those_of_the_release(site: pathlib.Path) -> None:
    """The release's own functions, taken from its source, give the bytes and strides of ours."""
    source = (site / "sglang/srt/layers/quantization/fp8_utils.py").read_text()
    names = ("materialize_bpreshuffle_fp8_scale", "view_aiter_fused_rms_transposed_fp8_scale")
    nodes: list[ast.stmt] = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in names]
    theirs: dict[str, Any] = {}
    exec(compile(ast.Module(nodes, []), "fp8_utils", "exec"), {"torch": torch}, theirs)
    scale = torch.rand(3, 4)
    for ours, name in zip(
        (validation.scale_layout.materialised, validation.scale_layout.restrided), names, strict=True
    ):
        if name in theirs:
            want, got = theirs[name](scale), ours(scale)
            assert (want.stride(), want.tolist()) == (got.stride(), got.tolist())
    copies = "x_scale.transpose(-1, -2).contiguous().view(*x_scale.shape)"
    assert theirs or copies in source
