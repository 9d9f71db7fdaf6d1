"""What the concatenation costs on this GPU: ``pytest -m kernel_bench``. Never part of a verdict."""

from __future__ import annotations

import pytest
import torch

from validation.kernel_bench import LAYERS, NEEDS_GPU, bench, copy_bandwidth_gb_s, table
from validation.kernel_cell import DTYPES
from validation.operations import providers
from validation.records import Journal, Note

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_bench]


@pytest.fixture(scope="module")
def bandwidth_gb_s() -> float:
    """The device's copy bandwidth; a machine without GPU is an error, because a benchmark was asked for."""
    if not torch.cuda.is_available():
        pytest.fail(NEEDS_GPU, pytrace=False)
    return copy_bandwidth_gb_s()


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_cost_of_the_concatenation(
    dtype: str, bandwidth_gb_s: float, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = providers()["aiter"]
    if provider.producer is None:
        pytest.fail(f"the fused kernel cannot be timed: {provider.missing}", pytrace=False)
    reason = provider.producer.unsupported(DTYPES[dtype], DTYPES[dtype])
    if reason:
        pytest.skip(f"NOT_APPLICABLE: {reason}")
    rows = bench(provider.producer, dtype, bandwidth_gb_s)
    name = torch.cuda.get_device_name()
    sentence = f"fused kernel, concatenation and skip in {dtype} on {name}, graph-replayed medians"
    data = {
        "device": name,
        "copy_bandwidth_gb_s": bandwidth_gb_s,
        "layers": LAYERS,
        "producer": f"{provider.name} {provider.version}",
        "rows": [row.to_json() for row in rows],
    }
    journal.append(Note("kernel_bench", sentence, data))
    with capsys.disabled():
        print(f"\n{sentence}, copy bandwidth {bandwidth_gb_s:.0f} GB/s\n{table(rows)}")
    assert all(row.cat_us > 0 and row.fused_us > 0 for row in rows)
