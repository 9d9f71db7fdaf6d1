"""Finds the installed AITER and imports its Triton files, on ROCm for real and elsewhere without ROCm.

PyPI's ``aiter`` is an unrelated asyncio library that installs into the same folder, and AITER itself comes as
``amd-aiter``, as a development install, in older trees and in newer ones. So it is known by content and signature.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import sys
import types
from collections.abc import Iterator

INSTALL = "python -m pip install --pre 'amd-aiter==0.1.7.post2.dev18'"
FUNCTION = "fused_qk_rope_cat_and_cache_mla"
_PARAMETERS = (
    "q_nope",
    "q_pe",
    "k_nope",
    "k_pe",
    "kv_cache",
    "slot_mapping",
    "pos",
    "cos",
    "sin",
    "k_scale",
    "is_neox",
)
_PLACES = ("ops/triton/fusions/fused_kv_cache.py", "ops/triton/fused_kv_cache.py")
"""Newer trees first; both were seen in the wild."""


class WrongAiter(ImportError):  # noqa: N818 (what was found, not what went wrong)
    """No AITER, or another package of its name; the message says which one and what to install."""


@dataclasses.dataclass(frozen=True)
class AiterTree:
    """One AITER on disk."""

    root: pathlib.Path
    module: str
    """The module that holds the fused kernel, e.g. ``aiter.ops.triton.fused_kv_cache``."""
    version: str
    parameters: tuple[str, ...]
    """Of the fused function. ``q_out_dtype`` among them is how AITER 2879's fp8 query output can be told."""
    sha256: str
    """Of the file that defines it."""

    def describe(self) -> str:
        """One line for a report."""
        fp8 = "with" if "q_out_dtype" in self.parameters else "without"
        return f"{self.version} ({self.module}, sha256 {self.sha256[:12]}, {fp8} q_out_dtype)"


def find_aiter() -> AiterTree:
    """The AITER that ``import aiter`` would reach.

    Raises:
        WrongAiter: none is installed, or what is installed is not AITER or lacks the fused kernel.
    """
    spec = _spec("aiter")
    locations = [pathlib.Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for root in locations:
        for place in _PLACES:
            if (root / place).is_file():
                return _tree(root, place)
    raise WrongAiter(f"{_what_is_there(locations)}; expected AITER with {FUNCTION}, install it: {INSTALL}")


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded.__spec__
    return importlib.util.find_spec(name)


def _tree(root: pathlib.Path, place: str) -> AiterTree:
    source = (root / place).read_bytes()
    parameters = _signature(source)
    missing = [name for name in _PARAMETERS if name not in parameters]
    if missing:
        raise WrongAiter(
            f"{root / place} defines {FUNCTION}({', '.join(parameters)}); expected the parameters "
            f"{', '.join(missing)} as well, install a known release: {INSTALL}"
        )
    module = "aiter." + place.removesuffix(".py").replace("/", ".")
    return AiterTree(root, module, _version(root), parameters, hashlib.sha256(source).hexdigest())


def _signature(source: bytes) -> tuple[str, ...]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == FUNCTION:
            arguments = node.args
            return tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
    return ()


def _version(root: pathlib.Path) -> str:
    for name in ("amd-aiter", "aiter"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            if pathlib.Path(str(found.locate_file("aiter"))).resolve() == root.resolve():
                return f"{name} {found.version}"
    return f"AITER of unknown version in {root.parent.name}"


def _what_is_there(locations: list[pathlib.Path]) -> str:
    for name in ("aiter", "amd-aiter"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            summary = found.metadata["Summary"] or "no summary"
            return f"the installed package {name} {found.version} ({summary}) is not AITER or lacks its Triton files"
    return (
        f"a package aiter of unknown origin at {locations[0]} is not AITER" if locations else "AITER is not installed"
    )


@contextlib.contextmanager
def aiter_modules(tree: AiterTree, on_rocm: bool, fp8: object = None) -> Iterator[None]:
    """Inside, ``import aiter.ops.triton.x`` works: AITER itself on ROCm, elsewhere its files in empty packages.

    ``aiter/__init__.py`` needs ROCm, and a failed import of it leaves residue; so off ROCm it is never tried. What was
    registered is removed on exit; imported functions keep working. ``fp8`` stands in for ``aiter.dtypes.fp8``.
    """
    if on_rocm:
        importlib.import_module("aiter")
        yield
        return
    before = {name for name in sys.modules if name == "aiter" or name.startswith("aiter.")}
    try:
        for name in ("aiter", "aiter.ops", "aiter.ops.triton"):
            if name not in sys.modules:
                _register(name, tree.root.joinpath(*name.split(".")[1:]))
        if fp8 is not None:
            vars(sys.modules["aiter"])["dtypes"] = types.SimpleNamespace(fp8=fp8)
        yield
    finally:
        for name in [n for n in sys.modules if (n == "aiter" or n.startswith("aiter.")) and n not in before]:
            del sys.modules[name]


def _register(name: str, place: pathlib.Path) -> None:
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
