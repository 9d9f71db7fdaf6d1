"""Where a run happened: packages, commit, processor, GPUs, driver, clocks. Read once, before anything is measured."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

from validation import __version__
from validation.discovery import ROOT

PACKAGES = (
    "torch",
    "triton",
    "pytorch-triton-rocm",
    "tilelang",
    "amd-aiter",
    "aiter",
    "sglang",
    "sgl-kernel",
    "sglang-kernel",
    "vllm",
    "transformers",
    "datasets",
    "requests",
    "scipy",
    "numpy",
    "pytest",
    "starlette",
    "uvicorn",
    "tokenizers",
)


def provenance() -> dict[str, Any]:
    """Everything a reader needs to repeat the run, as JSON data; what cannot be read is left out."""
    found: dict[str, Any] = {
        "validation": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": _packages(),
        "gpus": _gpus(),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
        return result.stdout.strip()
    return ""


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> list[dict[str, str]]:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        names = fields.replace(".", "_").split(",")
        return [
            dict(zip(names, (part.strip() for part in line.split(",")), strict=False)) for line in output.splitlines()
        ]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["rocm-smi", "--showproductname", "--showdriverversion", "--csv"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return [{"rocm_smi": line} for line in output.splitlines() if line.strip()]
    return []
