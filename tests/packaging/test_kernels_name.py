"""Our folder ``kernels`` and the PyPI distribution of that name, which transformers imports, leave each other alone."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from validation.discovery import ROOT

CHECK = """
import pathlib, sys
import pytest
status = pytest.main(["-q", "--collect-only", "-m", "kernel", "-p", "no:cacheprovider", "kernels/test_cells.py"])
assert status == 0, status
import kernels
print("imported", pathlib.Path(kernels.__file__).parent.parent)
from kernels import get_kernel
print("usable", callable(get_kernel))
"""


def test_the_distribution_is_what_import_finds_even_after_our_tests_were_collected() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    imported = next(line for line in result.stdout.splitlines() if line.startswith("imported "))
    assert pathlib.Path(imported.removeprefix("imported ")) != ROOT
    assert "usable True" in result.stdout
    assert "cat_skip-aiter-tilelang-m1-h8-bf16" in result.stdout


def test_our_folder_can_never_shadow_it() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "providers" / "aiter.py").exists(), "a provider named as its library would shadow it"
