"""Bad input gets one sentence that names the option, the value and what was expected; exit status 4, never a skip."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import cast

import pytest

from validation.discovery import ROOT
from validation.e2e_setup import declare
from validation.options import OptionError, Settings, add_options, read_settings


def run_pytest(*options: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "scenarios",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--run-dir={folder}",
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


class Parsed:
    """What ``read_settings`` needs of pytest's configuration, without a session."""

    def __init__(self, words: list[str]) -> None:
        parser = pytest.Parser(_ispytest=True)
        add_options(parser)
        self.values = vars(parser.parse(words))

    def getoption(self, name: str) -> object:
        return self.values[name.removeprefix("--").replace("-", "_")]


def settings_of(*words: str) -> Settings:
    return read_settings(cast(pytest.Config, Parsed(list(words))))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--server-url", "127.0.0.1:30000"], "--server-url 127.0.0.1:30000 has no scheme or host; expected something"),
        (["--server-url", "ftp://host"], "expected something like http://"),
        (
            ["--server-url", "http://a", "--accuracy-scenario=word-problems", "--baseline", "nobody"],
            "--baseline nobody does not exist",
        ),
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
        (["--api-key", "two words"], "--api-key: the API key is empty or holds a blank"),
        (["--server-url", "https://host"], "--server-url https://host is https, which the client does not speak"),
        (["--control-cmd", "x"], "--control-cmd without --candidate-cmd was given"),
        (["--accuracy-floor", "0.9"], "--accuracy-floor with two arms was given"),
        (["--questions", "2000"], "word-problems has 1319 questions, 2000 were asked for; give --questions 1319"),
        (["--baseline-trace", "/nowhere.json"], "--baseline-trace /nowhere.json is no file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named_with_what_was_expected(options: list[str], expected: str) -> None:
    with pytest.raises(OptionError) as caught:
        declare(settings_of(*options))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--server-url", "127.0.0.1:30000"], "--server-url 127.0.0.1:30000 has no scheme or host; expected something"),
        (
            ["--server-url", "http://127.0.0.1:9", "--accuracy-scenario=word-problems"],
            "no server answers at http://127",
        ),
        (["--scenario", "9k9k-c1"], "scenario '9k9k-c1' is unknown; expected one of rehearsal-c1"),
    ],
    ids=["when configured", "when measured", "when declared"],
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


def test_an_option_that_does_not_fit_leaves_the_run_folder_free(tmp_path: pathlib.Path) -> None:
    run_pytest("-m", "e2e", "--scenario", "9k9k-c1", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("--api-key", "VALIDATION_API_KEY"),
        ("--baselines", "VALIDATION_BASELINES"),
        ("--gsm8k", "GSM8K_PATH"),
    ],
)
def test_an_option_goes_before_its_variable(
    option: str, variable: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "option").mkdir()
    (tmp_path / "variable").mkdir()
    option = {"VALIDATION_API_KEY": "--api-key", "VALIDATION_BASELINES": "--baselines", "GSM8K_PATH": "--gsm8k"}[
        variable
    ]
    monkeypatch.setenv(variable, str(tmp_path / "variable"))
    name = option.removeprefix("--").replace("-", "_")

    def value(settings: Settings) -> str:
        found = getattr(settings, name)
        return str(getattr(found, "value", found))

    assert value(settings_of()) == str(tmp_path / "variable")
    assert value(settings_of(option, str(tmp_path / "option"))) == str(tmp_path / "option")


def test_settings_do_not_show_the_key() -> None:
    assert "sesame" not in repr(settings_of("--api-key", "sesame"))


def test_a_broken_gsm8k_line_names_file_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"\n')
    with pytest.raises(OptionError, match=r"test\.jsonl.*line 2"):
        declare(settings_of("--accuracy-scenario", "gsm8k", f"--gsm8k={path}"))


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
