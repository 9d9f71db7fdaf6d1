"""The activation scale in both byte orders, from AITER's real kernel to a real GEMM."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from validation import scale_provider
from validation.discovery import ROOT, load_leaf
from validation.judging.scale_layout import CASES, GEMM_CASE
from validation.options import SETTINGS
from validation.records import Journal, KernelCell, Note
from validation.scale_cell import (
    ScaleCell,
    rehearse,
    run_bits,
    run_gemm,
    run_survival,
    symmetric_path_us,
)

case = load_leaf(ROOT / "kernels/cases/scale_layout.py")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: Any) -> None:
    """One test a declared cell."""
    matrix = metafunc.config.stash[SETTINGS].matrix
    for name, cells in (("bits_cell", case.bits_cells(matrix)), ("gemm_cell", case.gemm_cells(matrix))):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cells, ids=str)


@pytest.fixture(scope="module")
def version(journal: Journal) -> str:
    """Which AITER runs the cells; where none can, the judge is told what to install."""
    try:
        return scale_provider.describe()
    except ImportError as error:
        journal.append(Note("missing", str(error), {"cases": list(CASES)}))
        raise


def _assert_equal(record: KernelCell) -> None:
    unequal = [f"{check.name}: {check.detail}" for check in record.checks if not check.equal]
    assert not unequal, "\n".join(unequal)


@pytest.mark.kernel
def test_scale_needs_no_copy(bits_cell: ScaleCell, version: str, journal: Journal) -> None:
    record, counts = run_bits(bits_cell, scale_provider.aiter_quant, version, DEVICE)
    for count in counts:
        journal.append(count)
    journal.append(record)
    _assert_equal(record)


@pytest.mark.kernel
def test_tag_survives_as_documented(version: str, journal: Journal) -> None:
    record = run_survival(case.survival_cell(), scale_provider.aiter_quant, version, DEVICE)
    journal.append(record)
    _assert_equal(record)


@pytest.mark.kernel
def test_gemm_reads_either_scale_alike(gemm_cell: ScaleCell, version: str, journal: Journal) -> None:
    transposed = gemm_cell.consumer == "bpreshuffle"
    reason = scale_provider.bpreshuffle_unsupported() if transposed else ""
    if reason:
        rehearsal = rehearse(gemm_cell, scale_provider.aiter_quant, scale_provider.layout_reader, DEVICE)
        sentence = f"{scale_provider.LAYOUT_READER}: {reason}"
        journal.append(Note("scale_layout_rehearsal", sentence, rehearsal))
        journal.append(KernelCell(GEMM_CASE, str(gemm_cell), False, reason, {}, (), 0.0))
        assert rehearsal["tagged_equals_copied"]
        assert rehearsal["restrided_equals_copied"]
        assert rehearsal["lost_tag_is_wrong"] or gemm_cell.tokens == 1
        pytest.skip(f"NOT_APPLICABLE: {reason}")
    gemm = scale_provider.aiter_bpreshuffle if transposed else scale_provider.aiter_blockscale
    versions = {"producer": version, "consumer": f"{gemm.__name__}, {version}"}
    record = run_gemm(gemm_cell, scale_provider.aiter_quant, gemm, transposed, versions, DEVICE)
    journal.append(record)
    if not record.checks[0].equal:
        pytest.skip(f"NOT_RUN: {record.checks[0].detail}")
    _assert_equal(record)


@pytest.mark.kernel
@pytest.mark.kernel_bench
@pytest.mark.skipif(DEVICE.type != "cuda", reason="timing needs a GPU")
@pytest.mark.parametrize("tokens", [1, 4, 16, 64])
def test_cost_of_the_symmetric_path(tokens: int, journal: Journal) -> None:
    """What a default-layout consumer pays for a tagged scale: one copy back, for each width of the call sites."""
    cost_us = {str(groups): symmetric_path_us(tokens, groups) for groups in (4, 16, 48)}
    name = torch.cuda.get_device_name()
    sentence = f"copying a tagged scale of {tokens} tokens back, on {name}, graph-replayed"
    journal.append(Note("scale_layout_cost", sentence, {"tokens": tokens, "device": name, "us_by_groups": cost_us}))
    # one token: both layouts are the same bytes, and nothing is launched
    assert all((cost > 0) == (tokens > 1) for cost in cost_us.values())
