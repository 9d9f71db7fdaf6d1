"""The benchmark's arithmetic, its table and its refusal on a machine without GPU."""

from __future__ import annotations

import pytest
import torch

from validation import kernel_bench
from validation.kernel_bench import LAYERS, BenchRow, table
from validation.kernel_cell import Cell, default_setting

ROW = BenchRow("fp8_e4m3fn", 16, 8, fused_us=2.0, cat_us=2.5, fused_cat_us=4.25, fused_skip_us=2.0, bytes_us=0.05)


def test_a_step_saves_the_concatenation_of_every_layer() -> None:
    assert ROW.saving_per_step_us == LAYERS * 2.5
    assert ROW.to_json()["measured_saving_per_step_us"] == LAYERS * 2.25


def test_table_has_a_line_a_size_with_its_saving() -> None:
    lines = table([ROW, ROW]).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:5] == ["fp8_e4m3fn", "16", "8", "2.00", "2.50"]
    assert "195.0 (175.5 behind the fused kernel)" in lines[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("call", [kernel_bench.copy_bandwidth_gb_s, lambda: kernel_bench.graph_median_us([])])
def test_without_a_gpu_one_sentence_says_so(call: object) -> None:
    assert callable(call)
    with pytest.raises(RuntimeError, match="needs a GPU; this machine has none"):
        call()


def test_rotated_inputs_differ_and_do_not_share_a_cache() -> None:
    cell = Cell("bench", "", "", 2, 8, "bf16", "bf16")
    sets = kernel_bench._rotated(default_setting(cell, torch.device("cpu")).inputs)
    assert len({inputs.kv_cache.data_ptr() for inputs in sets}) == kernel_bench.SETS
    assert not torch.equal(sets[0].q_nope, sets[1].q_nope)
