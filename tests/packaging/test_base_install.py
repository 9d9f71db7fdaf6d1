"""Installing the base into a prepared environment changes no package that is there."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from typing import Any

from validation.discovery import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

VENDOR = ("torch", "triton", "tilelang", "amd-aiter", "sglang", "sgl-kernel", "transformers", "datasets", "vllm")


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)["project"]
    return data


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower()


def test_the_base_asks_for_lower_bounds_and_for_nothing_a_vendor_ships() -> None:
    for requirement in project()["dependencies"]:
        assert name_of(requirement) not in VENDOR
        assert re.fullmatch(r"[A-Za-z0-9._-]+>=[0-9.]+", requirement), (
            f"{requirement} could change an installed package"
        )


def test_an_environment_that_satisfies_the_bounds_is_left_alone() -> None:
    for requirement in project()["dependencies"]:
        name, _, bound = requirement.partition(">=")
        installed = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version(name))[:2])
        assert installed >= tuple(int(part) for part in bound.split("."))
