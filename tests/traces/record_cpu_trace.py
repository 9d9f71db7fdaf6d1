"""Record the CPU trace in ``data/``: three decode steps of four small layers, each with one ``aten::cat``.

``python record_cpu_trace.py TARGET.json.gz`` (needs torch)
"""

from __future__ import annotations

import gzip
import pathlib
import sys
import tempfile

import torch

STEPS, LAYERS = 3, 4


def decode_step(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """One token through every layer: norm, projection, split, concatenation, activation."""
    for weight in weights:
        y = torch.nn.functional.layer_norm(x, (64,)) @ weight
        nope, rope = torch.split_with_sizes(y, [48, 16], dim=-1)
        x = x + torch.nn.functional.silu(torch.cat([nope, rope], dim=-1))
    return x.argmax(-1)


def main(target: pathlib.Path) -> None:
    """Write the trace."""
    torch.manual_seed(0)
    weights = [torch.randn(64, 64) for _ in range(LAYERS)]
    x = torch.randn(1, 64)
    decode_step(x, weights)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            with torch.profiler.record_function("step[DECODE bs=1]"):
                decode_step(x, weights)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        target.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
