"""Helpers of the end-to-end tests: pytest as a user runs it, and what its run folder says."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from validation.discovery import ROOT
from validation.records import Record, read_run
from validation.verdicts import Finding

RELAY = pathlib.Path(__file__).parent / "relay.py"
TESTS = "scenarios/test_e2e.py"
PROBLEMS = ("--accuracy-scenario=word-problems", "--scenario=rehearsal-c1", "--gate=rehearsal")


@dataclasses.dataclass(frozen=True)
class Session:
    """One pytest session that has ended."""

    status: int
    output: str
    folder: pathlib.Path

    def finding(self, name: str) -> Finding:
        """The finding whose name starts with ``name``."""
        found = [f for f in self.findings() if f.name.startswith(name)]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} findings are named {name}...\n{self.output}")
        return found[0]

    def findings(self) -> list[Finding]:
        """What ``findings.json`` holds."""
        data: dict[str, Any] = json.loads((self.folder / "findings.json").read_text())
        return [Finding.from_json(finding) for finding in data["findings"]]

    def records(self) -> list[Record]:
        """The raw records."""
        return read_run(self.folder)


def command_of(folder: pathlib.Path | None, options: Sequence[str]) -> list[str]:
    """The words of ``pytest -m e2e`` with ``options``; the run goes to ``folder`` unless it is resumed."""
    own = [] if folder is None else [f"--run-dir={folder}"]
    return [sys.executable, "-m", "pytest", "-m", "e2e", TESTS, "-p", "no:cacheprovider", *own, *options]


def environment(folder: pathlib.Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """This one, with a node lock and baselines of the test's own."""
    own = {"TMPDIR": str(folder), "VALIDATION_BASELINES": str(folder / "baselines"), "OMP_NUM_THREADS": "1"}
    return {**{k: v for k, v in os.environ.items() if k != "CI"}, **own, **(extra or {})}


def run_session(
    folder: pathlib.Path, *options: str, resume: bool = False, extra: dict[str, str] | None = None
) -> Session:
    """Run ``pytest -m e2e``; its run folder is ``folder / "run"``."""
    target = folder / "run"
    result = subprocess.run(
        command_of(None if resume else target, [*options, *([f"--resume={target}"] if resume else [])]),
        cwd=ROOT,
        env=environment(folder, extra),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Session(result.returncode, result.stdout + result.stderr, target)


def relay_command(url: str) -> str:
    """A command that serves ``{port}`` with what ``url`` answers: a fresh launch that costs nothing."""
    return f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(RELAY))} {{port}} {url}"
