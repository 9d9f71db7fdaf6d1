"""A repair of Triton's CPU interpreter, so that its bf16 and fp8 arithmetic has the bits of IEEE rounding.

The stock interpreter (Triton 3.4 to 3.9) computes bf16 sums and products on the raw 16-bit integers, truncates float32
to bf16, and drops the carry when it rounds to fp8. Here conversions go through torch's casts (round to nearest, ties
to even), and each bf16 operation is computed in float32 and rounded once. The kernel under test is not touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

SENTENCE = (
    "AITER's Triton kernels ran in Triton's CPU interpreter with its bf16 and fp8 arithmetic repaired; "
    "the repair changes the interpreter, not the kernel"
)
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@functools.cache
def install() -> str:
    """Repair the interpreter of this process, once; returns the sentence a report must carry.

    Raises:
        RuntimeError: Triton's interpreter has not the parts the repair knows.
    """
    import triton
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    for owner, name in (
        (interpreter, "_convert_float"),
        (builder, "binary_op"),
        (builder, "unary_op"),
        (builder, "create_dot"),
    ):
        if not hasattr(owner, name):
            raise RuntimeError(
                f"the interpreter of Triton {triton.__version__} has no {name}; "
                "expected Triton 3.4 to 3.9, install 3.9.0"
            )
    stock_convert = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if rounding is not None and rounding != interpreter._ir.ROUNDING_MODE.RTNE:
            return stock_convert(data, source, target, rounding)
        return _to_numpy(_to_torch(data, _torch_dtype(source)).to(_torch_dtype(target))).reshape(np.shape(data))

    interpreter._convert_float = convert
    builder.binary_op = _rounded(builder.binary_op, 2, interpreter)
    builder.unary_op = _rounded(builder.unary_op, 1, interpreter)
    builder.create_dot = _wide_dot(builder.create_dot, interpreter)
    return SENTENCE


def _rounded(stock: Callable[..., Any], operands: int, interpreter: Any) -> Callable[..., Any]:
    """``stock``, but a bf16 operand is widened to float32 before the operation and the result rounded once after."""
    import triton.language as tl

    def operation(self: Any, *arguments: Any) -> Any:
        handles, function = arguments[:operands], arguments[operands]
        if all(handle.dtype.scalar != tl.bfloat16 for handle in handles):
            return stock(self, *arguments)
        wide = [_widen(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data for handle in handles]
        result = np.asarray(function(*wide))
        if result.dtype == np.bool_:
            return interpreter.TensorHandle(result, tl.int1)
        narrow = _to_numpy(_to_torch(result.astype(np.float32), torch.float32).to(torch.bfloat16))
        return interpreter.TensorHandle(narrow.reshape(result.shape), tl.bfloat16)

    return operation


def _wide_dot(stock: Callable[..., Any], interpreter: Any) -> Callable[..., Any]:
    """``stock``, but bf16 matrices are multiplied as float32: the stock interpreter multiplies their raw bits."""
    import triton.language as tl

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_widen(handle.data), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return stock(self, wide(a), wide(b), *others)

    return create_dot


def _widen(data: Any) -> Any:
    floats = _to_torch(data, torch.bfloat16).float()
    return floats.numpy().reshape(np.shape(data))


def _to_torch(data: Any, dtype: torch.dtype) -> torch.Tensor:
    array = np.ascontiguousarray(data)
    return torch.from_numpy(array.view(_SIGNED[array.dtype.itemsize]).copy()).view(dtype)


def _to_numpy(tensor: torch.Tensor) -> Any:
    size = tensor.element_size()
    return (
        tensor.contiguous()
        .view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
        .numpy()
        .view(_UNSIGNED[size])
    )


def _torch_dtype(dtype: Any) -> torch.dtype:
    import triton.language as tl

    known = {
        tl.bfloat16: torch.bfloat16,
        tl.float16: torch.float16,
        tl.float32: torch.float32,
        tl.float64: torch.float64,
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e5: torch.float8_e5m2,
        tl.float8e4b8: torch.float8_e4m3fnuz,
        tl.float8e5b16: torch.float8_e5m2fnuz,
    }
    if dtype not in known:
        raise RuntimeError(f"the interpreter was asked to convert {dtype}; expected a float type that torch knows")
    return known[dtype]
