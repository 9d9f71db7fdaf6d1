"""An API key, given as an option or in the environment, reaches the server and no file or line of output."""

from __future__ import annotations

import pathlib
import shlex
import sys

import pytest
from session_tools import PROBLEMS, run_session

from validation.client.fake_server import FakeServer, Schedule
from validation.discovery import ROOT

KEY = "sk-e41f7702c9b85d"
ACCURACY = (*PROBLEMS, "--questions=4", "-k", "accuracy")


def files_with(key: str, folder: pathlib.Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


@pytest.mark.parametrize("given", ["option", "two words", "environment"])
@pytest.mark.parametrize("fault", ["", "unauthorized"])
def test_the_key_is_written_nowhere(given: str, fault: str, tmp_path: pathlib.Path) -> None:
    options = {"option": [f"--api-key={KEY}"], "two words": ["--api-key", KEY], "environment": []}[given]
    extra = {"VALIDATION_API_KEY": KEY} if given == "environment" else {}
    faults = {1: fault} if fault else {}
    with FakeServer(Schedule(tokens=4, model=f"model-of-{KEY}"), faults) as server:
        session = run_session(
            tmp_path, f"--server-url={server.url}", *ACCURACY, "--record=secret", "-l", *options, extra=extra
        )
        assert server.seen
        assert all(f"Authorization: Bearer {KEY}".encode() in request for request in server.seen)
    assert (session.folder / "report.html").exists(), session.output
    assert (tmp_path / "baselines" / "secret.json").exists(), session.output
    assert KEY not in session.output
    assert files_with(KEY, tmp_path) == []


def test_a_key_in_a_command_is_written_nowhere(tmp_path: pathlib.Path) -> None:
    build = ROOT / "tests" / "arms" / "fake_build.py"
    command = f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(build))} --port {{port}} --api-key {KEY}"
    arms = [f"--baseline-cmd={command}", f"--candidate-cmd={command} --die 'no {KEY}'"]
    session = run_session(tmp_path, *arms, *ACCURACY, f"--api-key={KEY}")
    assert (session.folder / "logs").exists(), session.output
    assert KEY not in session.output
    assert files_with(KEY, tmp_path) == []


def test_a_key_that_no_header_holds_is_refused_unquoted(tmp_path: pathlib.Path) -> None:
    session = run_session(tmp_path, "--server-url=http://127.0.0.1:9", *ACCURACY, "--api-key=sesame open")
    assert session.status == pytest.ExitCode.USAGE_ERROR
    assert "--api-key: the API key is empty or holds a blank" in session.output
    assert "sesame" not in session.output
