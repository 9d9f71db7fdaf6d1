"""Every command in the documentation exists: its options are known, its subcommand and its file are there."""

from __future__ import annotations

import configparser
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from validation.discovery import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
_INLINE = re.compile(r"`((?:pytest|python3?|tox)\s[^`]+)`")
_BLOCK = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)


def commands(page: pathlib.Path) -> list[str]:
    """The commands of one page: inline ones and lines of code blocks, continued lines joined."""
    text = page.read_text("utf-8")
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = [*_INLINE.findall(_BLOCK.sub("", text)), *lines]
    parts = [part.strip() for command in found for part in command.split("&&")]
    return [part for part in parts if part.startswith(("pytest ", "python ", "python3 ", "tox "))]


ALL = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """Every long option that pytest knows here, ours among them."""
    command = [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]+", text))


def test_the_pages_hold_commands() -> None:
    assert len(ALL) > 15


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_a_documented_command_exists(page: str, command: str, known_options: set[str]) -> None:
    words = shlex.split(command, comments=True)
    if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
        words = words[2:]
    if words[0] == "pytest":
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown = [option for option in options if option not in known_options]
        assert not unknown, f"{page} documents options that pytest does not know: {unknown}"
    elif words[0] == "tox":
        tox = configparser.ConfigParser()
        tox.read(ROOT / "tox.ini")
        names = words[words.index("-e") + 1].split(",")
        assert all(f"testenv:{name}" in tox for name in names), f"{page} documents an environment that tox.ini lacks"
    elif words[0] == "validation":
        asked = [sys.executable, "-m", "validation", words[1], "--help"]
        result = subprocess.run(asked, cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert result.returncode == 0, f"{page} documents a subcommand that does not exist: {words[1]}"
    elif "." in words[0] and not words[0].startswith("-"):
        place = ROOT / words[0].replace(".", "/") if not words[0].endswith(".py") else ROOT / words[0]
        runs = place.is_file() or place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
        installed_elsewhere = words[0].split(".")[0] in ("sglang", "vllm")
        assert runs or installed_elsewhere, f"{page} documents {words[0]}, which is not here"
