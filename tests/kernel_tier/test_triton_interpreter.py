"""The repaired interpreter has the bits of torch's rounding, and the stock one has not: the repair is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from validation.discovery import ROOT

PROGRAM = """
import json, sys
import torch, triton, triton.language as tl
if sys.argv[1] == "repaired":
    from validation import triton_interpreter
    triton_interpreter.install()

@triton.jit
def arithmetic(x, y, total, product, negated, n: tl.constexpr):
    i = tl.arange(0, n)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(total + i, a + b)
    tl.store(product + i, a * b)
    tl.store(negated + i, -a)

@triton.jit
def convert(x, out, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))

g = torch.Generator().manual_seed(3)
x, y = (torch.randn(1024, generator=g).bfloat16() for _ in range(2))
outs = [torch.empty_like(x) for _ in range(3)]
arithmetic[(1,)](x, y, *outs, 1024)
wrong = {name: int((out.view(torch.int16) != want.view(torch.int16)).sum())
         for name, out, want in zip(("sum", "product", "negated"), outs, (x + y, x * y, 0 - x))}
wide = torch.randn(1024, generator=g) * 30
for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fnuz):
    out = torch.empty(1024, dtype=dtype)
    convert[(1,)](wide, out, 1024)
    bits = torch.int16 if out.element_size() == 2 else torch.uint8
    wrong[str(dtype)] = int((out.view(bits) != wide.to(dtype).view(bits)).sum())
print(json.dumps(wrong))
"""


def wrong_bits(mode: str, tmp_path: object) -> dict[str, int]:
    path = f"{tmp_path}/program.py"
    with open(path, "w") as file:
        file.write(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", path, mode]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    counts: dict[str, int] = json.loads(result.stdout)
    return counts


def test_the_repaired_interpreter_rounds_as_torch_does(tmp_path: object) -> None:
    assert set(wrong_bits("repaired", tmp_path).values()) == {0}


@pytest.mark.parametrize("what", ["sum", "product", "torch.bfloat16", "torch.float8_e4m3fn"])
def test_the_stock_interpreter_does_not(what: str, tmp_path: object) -> None:
    assert wrong_bits("stock", tmp_path)[what] > 0
