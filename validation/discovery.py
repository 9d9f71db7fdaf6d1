"""Loads the leaf files that extend the suite: providers, cases, scenarios, server backends, one file each.

``kernels`` is also a distribution on PyPI that transformers imports, so nothing here is ever imported as ``kernels.x``:
a leaf is loaded by its path under a private name, and leaves import from ``validation`` only, never from each other.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""The checkout: ``kernels/``, ``scenarios/`` and ``baselines/`` lie beside ``validation/``."""


@functools.cache
def load_leaf(path: pathlib.Path) -> ModuleType:
    """The module in ``path``, executed once, registered as ``validation_leaf.<folder>_<stem>``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no leaf file {path}; expected one of the checkout's *.py files")
    name = f"validation_leaf_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} cannot be loaded as Python; expected a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_all(folder: str, attribute: str) -> dict[str, Any]:
    """Each leaf of ``folder`` (such as ``kernels/providers``) by its stem: its module-level ``attribute``.

    Raises:
        AttributeError: a leaf does not declare ``attribute``.
    """
    leaves = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.stem.startswith(("_", "test_", "conftest")):
            continue
        module = load_leaf(path)
        if not hasattr(module, attribute):
            raise AttributeError(
                f"{folder}/{path.name} declares no {attribute}; see CONTRIBUTING.md for what a leaf needs"
            )
        leaves[path.stem] = getattr(module, attribute)
    return leaves
