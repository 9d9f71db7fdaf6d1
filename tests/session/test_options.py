"""Bad input gets one sentence that names the option, the value and what was expected; exit status 4, never a skip."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from validation.discovery import ROOT


def run_pytest(*options: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--run-dir={folder}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--server-url", "127.0.0.1:30000"], "--server-url 127.0.0.1:30000 has no scheme or host; expected something"),
        (["--server-url", "ftp://host"], "expected something like http://"),
        (["--server-url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--server-url", "http://127.0.0.1:9", "--baseline", "nobody"], "--baseline nobody does not exist"),
        (["--baseline", "nobody"], "--baseline without --server-url was given"),
        (["--baseline", "../x"], "--baseline '../x' is no name"),
        (["--scenario", "9k9k-c1"], "scenario '9k9k-c1' is unknown; expected one of rehearsal-c1"),
        (["--accuracy-scenario", "mmlu"], "scenario 'mmlu' is unknown; expected one of"),
        (["--candidate-cmd", "serve --port {port}"], "--candidate-cmd without --baseline-cmd was given"),
        (["--candidate-cmd", "serve {prot}", "--baseline-cmd", "x"], "expected only {port}, {gpus}, {logdir}"),
        (
            ["--server-url", "http://a", "--candidate-cmd", "x", "--baseline-cmd", "y"],
            "--server-url and --candidate-cmd was given; expected one of them",
        ),
        (["--backend", "grpc"], "--backend grpc is unknown; expected one of openai_chat, openai_completions"),
        (["--accuracy-floor", "93"], "--accuracy-floor 93 is no share"),
        (["--budget", "soon"], "--budget soon is no duration; expected a number with s, m or h"),
        (["--blocks", "0"], "--blocks 0 was given; expected a whole number of at least 1"),
        (["--gsm8k", "/nowhere/test.jsonl"], "--gsm8k /nowhere/test.jsonl does not exist"),
        (["--baseline-trace", "/nowhere.json"], "--baseline-trace /nowhere.json is no file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_usage_errors_of_one_sentence(
    options: list[str], expected: str, tmp_path: pathlib.Path
) -> None:
    result = run_pytest("-m", "e2e", *options, folder=tmp_path / "run")
    output = result.stdout + result.stderr
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, output
    assert expected in output
    assert "Traceback" not in output
    assert "skipped" not in output


def test_a_broken_gsm8k_line_names_file_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"\n')
    result = run_pytest("-m", "e2e", "--accuracy-scenario", "gsm8k", f"--gsm8k={path}", folder=tmp_path / "run")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "line 2" in result.stdout + result.stderr


def test_reruns_are_refused(tmp_path: pathlib.Path) -> None:
    plugin = tmp_path / "pretend_rerunfailures.py"
    plugin.write_text("def pytest_addoption(parser):\n    parser.addoption('--reruns', type=int)\n")
    command = [sys.executable, "-m", "pytest", "-m", "kernel", "-p", "pretend_rerunfailures", "--reruns", "2"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=with_path(tmp_path)
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "never retried until it is green" in result.stdout + result.stderr


def with_path(folder: pathlib.Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_measuring_tiers_refuse_workers(tmp_path: pathlib.Path) -> None:
    result = run_pytest("-m", "e2e", "-n", "2", folder=tmp_path / "run")
    assert result.returncode not in (0, 1)
    assert "-n 0" in result.stdout + result.stderr
