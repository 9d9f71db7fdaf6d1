"""Runs at the start of every Python process of a rehearsal: this folder is first on PYTHONPATH, which children inherit.

It only registers an import hook; the patches load when SGLang imports one of the modules they are for. A
``sitecustomize`` that this one hides is run as well.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent


def _run_hidden() -> None:
    places = [place for place in sys.path if pathlib.Path(place or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _suite() -> None:
    """Make ``validation`` importable by its place: its parent on sys.path would show SGLang our folder ``kernels``."""
    if importlib.util.find_spec("validation") is None:
        package = _HERE.parent.parent
        spec = importlib.util.spec_from_file_location(
            "validation", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"{package} is no package; expected the folder of the validation suite")
        module = importlib.util.module_from_spec(spec)
        sys.modules["validation"] = module
        spec.loader.exec_module(module)


class _Finder:
    """Hands an import on to the ordinary finder and runs the module's patch once its code has run."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if not name.startswith("sglang.srt."):
            return None
        _suite()
        from validation.sglang_rehearsal import patches

        return patches.patched_spec(name, path, target)


_run_hidden()
if os.environ.get("VALIDATION_SGLANG_REHEARSAL"):
    sys.meta_path.insert(0, _Finder)
