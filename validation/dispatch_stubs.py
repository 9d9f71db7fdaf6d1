"""Stands in for whatever an SGLang module imports, so that the module's own functions can run without a GPU."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

REAL = (
    "sglang.srt.layers.attention.base_attn_backend",
    "sglang.srt.layers.attention.dsa.dsa_backend_kpool",
    "sglang.srt.models.deepseek_common.utils",
)
"""Modules that take part in the decision beside the two under observation: executed as installed."""

STUBBED = ("sglang", "sgl_kernel", "aiter", "flashinfer", "deep_gemm")
"""Distributions that need a GPU or a long tail of packages; everything else is imported or fails."""


class Stub:
    """False, callable, empty, and has every attribute. Used as a decorator it leaves the function as it is."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Stub()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and (inspect.isfunction(args[0]) or inspect.isclass(args[0])):
            return args[0]
        return Stub()

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __contains__(self, item: object) -> bool:
        return False

    def __getitem__(self, key: object) -> Any:
        return Stub()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __or__(self, other: object) -> Any:
        return Stub()

    __ror__ = __or__

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Stub()


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for every name under ``STUBBED``: a real file where asked for and present, else an empty stand-in."""

    def __init__(self, site: pathlib.Path, real: Sequence[str]) -> None:
        self._site, self._real = site, frozenset(real)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in STUBBED:
            return None
        file = self._site / (fullname.replace(".", "/") + ".py")
        if fullname in self._real and file.is_file():
            return importlib.util.spec_from_file_location(fullname, file)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def stubbed_imports(site: pathlib.Path, under_observation: Sequence[str]) -> Iterator[None]:
    """Imports inside find stand-ins for ``STUBBED``, but for ``REAL`` and the modules under observation.

    The finder stays while functions run in this process, for imports inside them; use it in a process of its own.
    """
    sys.meta_path.insert(0, _StubFinder(site, (*REAL, *under_observation)))
    yield
