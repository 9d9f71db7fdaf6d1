"""The SGLang sources that the patches are for, told apart by fingerprints of the patched functions."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Mapping

_MLA = "srt/models/deepseek_common/attention_forward_methods/forward_mla.py"
_NSA = "srt/layers/attention/nsa_backend.py"
_WEIGHTS = "srt/model_loader/weight_utils.py"

PATCHED = {
    f"{_MLA}:DeepseekMLAForwardMixin.forward_absorb_prepare": "rotates, unless the fused path does",
    f"{_MLA}:DeepseekMLAForwardMixin.forward_absorb_core": "calls the fused kernel",
    f"{_MLA}:DeepseekMLAForwardMixin._skip_rope_for_nsa_tilelang_fused": "is replaced",
    f"{_NSA}:NativeSparseAttnBackend.forward_decode": "skips the concatenation where _is_hip is set",
    f"{_WEIGHTS}:initialize_dummy_weights": "is replaced with --sane-dummy",
}
"""Functions that the patches replace or rely on: file and qualified name, and why."""


@dataclasses.dataclass(frozen=True)
class Release:
    """One release whose patched functions were read and run."""

    version: str
    status: str
    """``run``: servers were started with the patches; ``same source``: its patched functions equal such a release's."""
    fingerprints: Mapping[str, str]


KNOWN = (
    Release(
        "0.5.12",
        "run",
        {
            f"{_MLA}:DeepseekMLAForwardMixin.forward_absorb_prepare": "013cc932c3bf5f72",
            f"{_MLA}:DeepseekMLAForwardMixin.forward_absorb_core": "9dd28bdf226b7911",
            f"{_MLA}:DeepseekMLAForwardMixin._skip_rope_for_nsa_tilelang_fused": "1c9e39fc96e7cc1c",
            f"{_NSA}:NativeSparseAttnBackend.forward_decode": "c74f68b2a7de34f2",
            f"{_WEIGHTS}:initialize_dummy_weights": "4bb19672e7fda27a",
        },
    ),
)

READ_ONLY = {
    "0.5.13.post1": "renames the nsa backend to dsa and reads the cache through a forward context",
    "0.5.14": "renames the nsa backend to dsa and reads the cache through a forward context",
}
"""Releases whose patched functions were compared with a known release's and differ; nothing was run with them."""


class UnknownReleaseError(RuntimeError):
    """No SGLang, or one that the patches do not know; the message says which and what to install."""


def installed_release() -> Release:
    """The known release whose sources are the installed ones.

    Raises:
        UnknownReleaseError: SGLang is missing, of another release, or its patched functions were changed.
    """
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise UnknownReleaseError(f"sglang is not installed; install a known release: pip install {_expected()}")
    package = pathlib.Path(next(iter(spec.submodule_search_locations)))
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        raise UnknownReleaseError(
            f"sglang in {package} is no installed package and names no release; install one: pip install {_expected()}"
        ) from None
    return check(package, version)


def check(package: pathlib.Path, version: str) -> Release:
    """The known release that ``package``, an installed folder ``sglang`` of ``version``, is; raises as above."""
    release = next((known for known in KNOWN if known.version == version), None)
    if release is None:
        why = f", which {READ_ONLY[version]}" if version in READ_ONLY else ""
        raise UnknownReleaseError(
            f"sglang {version} is installed{why}; the patches were run with {_expected()}, install that"
        )
    found = fingerprints(package)
    changed = [name for name, digest in release.fingerprints.items() if found.get(name) != digest]
    if changed:
        raise UnknownReleaseError(
            f"sglang {version} in {package} differs from that release in {', '.join(changed)}; expected its own "
            "sources, install it afresh"
        )
    return release


def fingerprints(package: pathlib.Path) -> dict[str, str]:
    """Each patched function's fingerprint; those that ``package`` lacks are left out."""
    found = {}
    for name in PATCHED:
        file, _, qualified = name.partition(":")
        path = package / file
        node = _function(ast.parse(path.read_bytes()), qualified.split(".")) if path.is_file() else None
        if node is not None:
            found[name] = hashlib.sha256(_shape(node).encode()).hexdigest()[:16]
    return found


def _function(node: ast.AST, names: list[str]) -> ast.AST | None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name == names[0]:
            return child if len(names) == 1 else _function(child, names[1:])
    return None


def _shape(node: object) -> str:
    """The tree as text: no positions, comments or docstrings, and the same under every Python (``ast.dump`` is not)."""
    if isinstance(node, list):
        return f"[{','.join(_shape(item) for item in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            value = node.body[1:]
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
            fields.append(f"{name}={_shape(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _expected() -> str:
    return " or ".join(f"sglang=={known.version}" for known in KNOWN)
