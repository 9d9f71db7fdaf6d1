"""AITER is known by content and signature; another package of its name is named, and importing leaves no residue."""

from __future__ import annotations

import pathlib
import sys

import pytest

from validation.aiter_tree import FUNCTION, WrongAiter, aiter_modules, find_aiter

SIGNATURE = "q_nope, q_pe, k_nope, k_pe, kv_cache, slot_mapping, pos, cos, sin, k_scale, is_neox"


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder that comes first on sys.path, with no aiter imported."""
    for name in [n for n in sys.modules if n == "aiter" or n.startswith("aiter.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(site: pathlib.Path, place: str, text: str) -> None:
    path = site / "aiter" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (site / "aiter" / "__init__.py").write_text("raise RuntimeError('this import needs ROCm')\n")


@pytest.mark.parametrize(
    ("place", "module"),
    [
        ("ops/triton/fused_kv_cache.py", "aiter.ops.triton.fused_kv_cache"),
        ("ops/triton/fusions/fused_kv_cache.py", "aiter.ops.triton.fusions.fused_kv_cache"),
    ],
    ids=["older_tree", "newer_tree"],
)
def test_both_layouts_are_found_and_described(site: pathlib.Path, place: str, module: str) -> None:
    write(site, place, f"def {FUNCTION}({SIGNATURE}, q_out_dtype=None): ...\n")
    tree = find_aiter()
    assert (tree.module, tree.root) == (module, site / "aiter")
    assert "with q_out_dtype" in tree.describe()


def test_a_tree_before_the_fp8_query_is_told_apart(site: pathlib.Path) -> None:
    write(site, "ops/triton/fused_kv_cache.py", f"def {FUNCTION}({SIGNATURE}): ...\n")
    assert "without q_out_dtype" in find_aiter().describe()


def test_another_package_of_the_name_is_refused_with_what_to_install(site: pathlib.Path) -> None:
    write(site, "itertools.py", "async def chain(): ...\n")
    with pytest.raises(WrongAiter, match=r"is not AITER.*install it: python -m pip install --pre 'amd-aiter=="):
        find_aiter()


def test_a_changed_signature_is_refused(site: pathlib.Path) -> None:
    write(site, "ops/triton/fused_kv_cache.py", f"def {FUNCTION}(q, k): ...\n")
    with pytest.raises(WrongAiter, match=r"expected the parameters q_nope"):
        find_aiter()


def test_off_rocm_the_package_itself_is_never_imported_and_nothing_stays(site: pathlib.Path) -> None:
    write(site, "ops/triton/fused_kv_cache.py", f"HERE = 1\ndef {FUNCTION}({SIGNATURE}): return HERE\n")
    with aiter_modules(find_aiter(), on_rocm=False):
        from aiter.ops.triton import fused_kv_cache

        function = getattr(fused_kv_cache, FUNCTION)
    assert function(*range(11)) == 1
    assert not [name for name in sys.modules if name == "aiter" or name.startswith("aiter.")]


def test_a_failure_inside_leaves_nothing_either(site: pathlib.Path) -> None:
    write(site, "ops/triton/fused_kv_cache.py", f"def {FUNCTION}({SIGNATURE}): ...\n")
    with pytest.raises(ModuleNotFoundError), aiter_modules(find_aiter(), on_rocm=False):
        import aiter.ops.triton.nothing  # noqa: F401
    assert "aiter" not in sys.modules
