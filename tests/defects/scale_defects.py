"""Defects of the activation scale's byte order and tag, on a quantisation in torch that stands for the fused kernel.

AITER's own kernel meets defects of this kind in the tests of the scale layout, which interpret it; here the judge does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

import validation.scale_cell
from tests.defects.planting import CPU, Defect, Outcome, Rewrite
from validation.judging.scale_layout import CASE, judge_scale_layout
from validation.scale_cell import ScaleCell, Site, run_bits, run_survival
from validation.scale_layout import TAG_KEPT, materialised_bytes, restrided
from validation.scale_provider import GROUP, QuantInputs, QuantOutputs
from validation.verdicts import Verdict

Scale = Callable[[torch.Tensor], torch.Tensor]
SITE = Site("planted", "a call site of 512 channels", 512, 576, with_unquantized=True)
LARGEST = 448.0
"""Of float8_e4m3fn."""


def quantise(inputs: QuantInputs, transpose_scale: bool, direct: Scale = lambda scale: scale) -> QuantOutputs:
    """Block quantisation with either byte order of the scale; ``direct`` changes the transposed one."""
    x = inputs.inp1.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * inputs.weight1.float()
    groups = x.view(len(x), -1, GROUP)
    scale = groups.abs().amax(-1).clamp_min(1e-12) / LARGEST
    q = (groups / scale[..., None]).view(x.shape).to(torch.float8_e4m3fn)
    written = direct(materialised_bytes(scale)) if transpose_scale else scale
    return QuantOutputs(q, written, x.to(inputs.inp1.dtype), None, None)


def _bits(direct: Scale = lambda scale: scale, *, tokens: int = 3, **dispatch: Scale) -> Outcome:
    """The bits of one cell with the kernel's transposed scale, or functions of the dispatch, replaced."""
    cell = ScaleCell(SITE, tokens)
    with mock.patch.dict(vars(validation.scale_cell), dispatch):
        record, counts = run_bits(cell, partial(quantise, direct=direct), "torch", CPU)
    declared = {CASE: {"cells": [str(cell)], "path_proof": tokens > 1}}
    findings = judge_scale_layout([record], counts, declared)
    return Outcome(findings, {check.name: check.detail for check in record.checks if not check.equal})


def _survival(documented: frozenset[str]) -> Outcome:
    with mock.patch.object(validation.scale_cell, "TAG_KEPT", documented):
        record = run_survival(ScaleCell(SITE, 3), quantise, "torch", CPU)
    findings = judge_scale_layout([record], [], {CASE: {"cells": [record.cell], "path_proof": False}})
    return Outcome(findings, {check.name: check.detail for check in record.checks if not check.equal})


def _differs(name: str, run: Callable[[], Outcome], check: str, likely: str = "") -> Defect:
    return Defect(name, "scale", run, f"kernel_bits.{CASE}", Verdict.FAIL, "bits_differ", check, likely)


def _one_flipped_bit(scale: torch.Tensor) -> torch.Tensor:
    scale.view(torch.int32)[1, 2] ^= 1
    return scale


def _unwritten_tail(scale: torch.Tensor) -> torch.Tensor:
    written = torch.empty_like(scale)
    written[:-1] = scale[:-1]
    return written


def _tagged(scale: torch.Tensor) -> torch.Tensor:
    return scale


DEFECTS = (
    _differs("tag_set_but_bytes_not_transposed", lambda: _bits(lambda s: s.view(s.shape[::-1]).t().contiguous()),
             "scale_bytes", "layout"),
    _differs("transposed_twice", lambda: _bits(materialised_bytes), "scale_bytes", "layout"),
    _differs("scale_bytes_swapped", lambda: _bits(lambda s: s.view(torch.uint8).view(3, -1, 4).flip(-1).reshape(3, -1)
             .view(torch.float32)), "scale_bytes", "value"),
    _differs("scale_groups_reversed", lambda: _bits(lambda s: s.flip(-1)), "scale_bytes", "order"),
    _differs("scale_with_one_flipped_bit", lambda: _bits(_one_flipped_bit), "scale_bytes", "rounding"),
    _differs("scale_through_bf16", lambda: _bits(lambda s: s.bfloat16().float()), "scale_bytes", "value"),
    _differs("scale_tail_unwritten", lambda: _bits(_unwritten_tail), "repeat_scale", "unwritten"),
    _differs("scale_as_its_reciprocal", lambda: _bits(torch.reciprocal), "scale_bytes", "value"),
    _differs("scale_strides_by_bytes_where_the_tag_stands", lambda: _bits(restrided), "scale_bytes"),
    _differs("one_token_permuted", lambda: _bits(lambda s: s.flip(-1), tokens=1), "one_token_same_bytes", "order"),
    _differs("tag_lost_before_the_gemm", lambda: _bits(for_bpreshuffle=materialised_bytes), "scale_bytes", "layout"),
    _differs("copy_dropped_without_a_tag", lambda: _bits(for_bpreshuffle=_tagged), "scale_bytes", "layout"),
    _differs("default_consumer_given_a_tagged_scale", lambda: _bits(for_default=_tagged), "symmetric_path", "layout"),
    _differs("successor_copy_not_idempotent", lambda: _bits(materialised=materialised_bytes),
             "successor_copy_idempotent"),
    _differs("restriding_copies", lambda: _bits(restrided=lambda s: restrided(s).clone()), "restrided_copies_nothing"),
    Defect("copy_left_in_the_skip_path", "scale", lambda: _bits(for_bpreshuffle=materialised_bytes),
           f"path_proof.{CASE}", Verdict.FAIL, "path_not_removed"),
    _differs("tag_believed_to_survive_detach", lambda: _survival(TAG_KEPT | {"detach"}), "tag_after_detach"),
    _differs("tag_believed_lost_in_a_tuple", lambda: _survival(TAG_KEPT - {"tuple"}), "tag_after_tuple"),
)  # fmt: skip

REWRITES = (
    Rewrite("scale_transposed_by_the_kernel", "scale", _bits),
    Rewrite("one_token_not_moved", "scale", lambda: _bits(tokens=1)),
    Rewrite("scale_written_into_a_workspace", "scale",
            lambda: _bits(lambda s: torch.cat([s.flatten(), s.flatten()])[: s.numel()].view(s.shape))),
    Rewrite("restriding_by_view", "scale", lambda: _bits(restrided=lambda s: s.view(s.shape[1], s.shape[0]).t())),
    Rewrite("successor_copy_by_mt", "scale", lambda: _bits(materialised=lambda s: s.mT.contiguous().mT)),
)  # fmt: skip
