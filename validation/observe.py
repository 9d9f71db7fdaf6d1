"""What torch's dispatcher shows of the code that runs inside: allocations poisoned, operations counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

POISONS = (0xA5, 0x5A)
"""Byte patterns that outputs hold before a run: complements of each other, and no value that a kernel leaves often."""
_UNINITIALISED = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
)


class Poison(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills every tensor that is allocated uninitialised inside with one byte pattern."""

    def __init__(self, byte: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._byte = byte

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNINITIALISED and result.numel():
            result.view(torch.uint8).fill_(self._byte)
        return result


class CountOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are no views, how many of them are ``removed``, and the bytes that they allocate."""

    def __init__(self, removed: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._removed_op = removed
        self.launches = self.removed = self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.launches += 1
            self.removed += func is self._removed_op
            if isinstance(result, torch.Tensor):
                self.allocated_bytes += result.untyped_storage().nbytes()
        return result
