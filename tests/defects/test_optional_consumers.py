"""Consumers that need not be installed: they attend as torch does, pass a cell, and are named where they are absent."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
import torch

from tests.defects.planting import CPU, TORCH, judged, paths
from validation.discovery import ROOT, load_leaf
from validation.kernel_cell import SOFTMAX_SCALE, Cell, default_setting, inapplicable, run_cell
from validation.kernel_variants import variant_of
from validation.operations import Consumer, Provider
from validation.verdicts import Verdict

SGLANG: Any = load_leaf(ROOT / "kernels/providers/sglang_tilelang.py")
AITER: Provider = load_leaf(ROOT / "kernels/providers/aiter_sparse_mla.py").PROVIDER
TREES = [pathlib.Path(part) for part in os.environ.get("SGLANG_TREES", "").split(os.pathsep) if part]
"""Folders with unpacked SGLang wheels; their own kernel runs where the variable names some."""
CELL = Cell("cat_skip", "producer", "consumer", 2, 16, "bf16", "bf16", topk=64)
TOLERANCE = 2**-6
"""Two units in the last place of bf16 outputs below 2: both round the weights, in another order."""


def _check(consumer: Provider) -> None:
    assert TORCH.producer is not None
    assert TORCH.consumer is not None
    assert consumer.consumer is not None
    setting = default_setting(CELL, CPU)
    q_cat = TORCH.producer.fused_qk_rope_cat_and_cache_mla(setting.inputs).q_cat
    indices = setting.indices.clone()
    indices[1, 50:] = -1
    attend: list[Consumer] = [TORCH.consumer, consumer.consumer]
    want, got = (c.sparse_mla(q_cat, setting.inputs.kv_cache, indices, SOFTMAX_SCALE).float() for c in attend)
    assert (want - got).abs().max() <= TOLERANCE
    record, counts = run_cell(CELL, variant_of(CELL), {"producer": TORCH, "consumer": consumer}, CPU)
    assert [finding.verdict for finding in judged(record, counts).findings] == [Verdict.PASS] * 2


@pytest.mark.parametrize("site", TREES, ids=lambda path: path.name)
def test_sglangs_own_kernel_attends_as_torch_and_passes_a_cell(site: pathlib.Path) -> None:
    provider = SGLANG.provider_of(site, site.name)
    assert "substituted" in provider.version
    _check(provider)


@pytest.mark.skipif(
    bool(AITER.consumer and AITER.consumer.unsupported(torch.bfloat16, torch.bfloat16)), reason="absent"
)
def test_aiters_own_attention_attends_as_torch_and_passes_a_cell() -> None:
    _check(AITER)


def test_a_folder_without_the_kernel_is_named(tmp_path: pathlib.Path) -> None:
    provider = SGLANG.provider_of(tmp_path, "0.4.0")
    reason = inapplicable(CELL, "", {"producer": TORCH, "consumer": provider})
    assert reason.startswith("SGLang 0.4.0 has none of kernels/ops/attention/dsa/tilelang_kernel.py")
    with pytest.raises(ValueError, match="a kernel that is not there was called"):
        provider.consumer.sparse_mla(*[torch.empty(1)] * 3, 1.0)


@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3fn"])
@pytest.mark.parametrize("provider", [AITER, SGLANG.provider_of(ROOT, "any")], ids=lambda provider: provider.name)
def test_another_dtype_than_bf16_does_not_apply(provider: Provider, dtype: str) -> None:
    cell = Cell("cat_skip", "producer", "consumer", 2, 16, dtype, dtype)
    assert inapplicable(cell, "", {"producer": TORCH, "consumer": provider})


def test_declared_cells_of_both_are_large_enough_for_them() -> None:
    case = load_leaf(ROOT / "kernels/cases/cat_skip.py")
    for matrix in ("default", "full"):
        cells = [cell for cell in case.cells(matrix) if cell.consumer in case.OPTIONAL]
        assert {cell.consumer for cell in cells} == set(case.OPTIONAL)
        assert min(cell.heads for cell in cells) >= 16
        assert len({str(cell) for cell in case.cells(matrix)}) == len(case.cells(matrix))


def test_too_few_heads_are_refused_in_one_sentence() -> None:
    assert paths(variant="prefix").unequal == {}
    with pytest.raises(ValueError, match="8 heads and 320 cache rows were given; expected multiples of 16"):
        paths(consumer=AITER.consumer)
