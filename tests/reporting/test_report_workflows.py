"""The CI files: every option they pass exists, every action is pinned, nothing is retried or swallowed."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest

from validation.options import add_options

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
FILES["action.yml"] = (ROOT / "action.yml").read_text(encoding="utf-8")
EACH = pytest.mark.parametrize("name", FILES)


@EACH
def test_every_action_is_pinned_by_commit(name: str) -> None:
    for used in re.findall(r"^\s*(?:- )?uses: (.+)$", FILES[name], re.MULTILINE):
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


@EACH
def test_nothing_is_retried_or_swallowed(name: str) -> None:
    text = FILES[name]
    assert "continue-on-error" not in text
    assert "pull_request_target" not in text
    assert not re.search(r"retry|--reruns|\|\| true", re.sub(r"#.*", "", text))


@EACH
def test_no_text_of_others_is_pasted_into_a_script(name: str) -> None:
    """Expressions go through ``env``: pasted into a script, a title or a branch name would be code."""
    for script in re.findall(r"run: \|\n((?: {8,}.*\n|\n)+)", FILES[name]):
        assert "${{" not in script


class Options:
    """Collects what ``add_options`` declares."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def getgroup(self, *_: str) -> Options:
        return self

    def addoption(self, name: str, **_: object) -> None:
        self.names.add(name)


@EACH
def test_every_option_of_a_pytest_command_exists(name: str) -> None:
    known = Options()
    add_options(known)  # type: ignore[arg-type]
    used = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", " ".join(re.findall(r"options\+?=\((.*)\)", FILES[name]))))
    assert used <= known.names
    if name in ("gpu.yml", "release.yml", "action.yml"):
        assert {"--gate", "--run-dir", "--candidate-cmd", "--baseline-cmd"} <= used


def test_inputs_of_the_action_are_all_used() -> None:
    text = FILES["action.yml"]
    declared = re.findall(r"^  ([a-z0-9-]+):\n    description", text.partition("\noutputs:")[0], re.MULTILINE)
    assert len(declared) > 8
    assert [name for name in declared if f"inputs.{name} }}}}" not in text] == []


STUB = """#!/bin/sh
if [ "$2" = pytest ]; then
  printf '%s\\n' "$@" > "$CALLED"
  mkdir -p "$FOLDER/run"
  echo '## report' > "$FOLDER/run/report.md"
  printf '{"headline": "a\\\\nstatus=0"}' > "$FOLDER/run/findings.json"
  exit 6
fi
exec python3 "$@"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action's script is bash")
def test_the_script_of_the_action_passes_options_and_status_through(tmp_path: pathlib.Path) -> None:
    (script,) = re.findall(r"id: run\n(?:.*\n)*?      run: \|\n((?:        .*\n)+)", FILES["action.yml"])
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "FOLDER": str(tmp_path),
        "SUITE": str(tmp_path),
        "CALLED": str(tmp_path / "called"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "GATE": "pr",
        "MARKERS": "kernel or e2e",
        "CANDIDATE_CMD": "serve --port {port}; echo $HOME",
        "BASELINE_CMD": "serve",
        "SERVER_URL": "",
        "BASELINE_URL": "",
        "GSM8K": str(tmp_path),
        "EXTRA": "--budget 90m",
    }
    text = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text], env=environment, check=False
    )
    assert done.returncode == 6, "an undecided run is red"
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [
        *("-m", "pytest", "-m", "kernel or e2e", "--gate", "pr", f"--run-dir={tmp_path}/run"),
        *("--candidate-cmd", "serve --port {port}; echo $HOME", "--baseline-cmd", "serve"),
        *(f"--gsm8k={tmp_path}", "--budget", "90m"),  # pytest takes an existing path alone for a folder of tests
    ]
    output = (tmp_path / "output").read_text().splitlines()
    assert output == ["status=6", f"folder={tmp_path}/run", 'headline="a\\nstatus=0"']
    assert (tmp_path / "summary").read_text() == "## report\n"
