"""What TileLang's C target needs to run a kernel that was written for a GPU's types."""

from __future__ import annotations

import functools
from typing import Any

COMPILE_FLAGS = ("-O3", "-march=native", "-fno-strict-aliasing")
"""Without -O3 a kernel is 4 to 5 times slower; TileLang's own code breaks strict aliasing."""


@functools.cache
def legalise_bf16_storage() -> None:
    """Let TileLang's C target store bf16 as 16-bit integers: its code generator knows no bf16 of its own."""
    import tvm_ffi
    from tilelang import tvm
    from tilelang.jit.adapter.wrapper import TLCPUSourceWrapper
    from tvm import tirx

    stock = tvm.ffi.get_global_func("target.build.tilelang_c")

    def build(module: Any, target: Any) -> Any:
        return stock(tirx.transform.BF16StorageLegalize()(module), target)

    tvm_ffi.register_global_func("target.build.tilelang_c", f=build, override=True)
    TLCPUSourceWrapper._TYPE_MAP = {**TLCPUSourceWrapper._TYPE_MAP, "bfloat16": "uint16_t"}
