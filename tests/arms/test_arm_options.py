"""The options that say what an arm is, how long it may take, and where it runs: one sentence for what does not fit."""

from __future__ import annotations

import pathlib
import re
import subprocess
from typing import cast

import pytest

from validation.arms import READY_TIMEOUT_S, CommandArm
from validation.e2e_setup import arms_of
from validation.options import OptionError, Settings, add_options, read_settings

COMMANDS = ("--baseline-cmd=old {port}", "--candidate-cmd=new {port}", "--accuracy-scenario=word-problems")
DIGEST = "me/sglang@sha256:" + "b1" * 32


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


def timeouts(settings: Settings) -> set[float]:
    return {arm.ready_timeout_s for arm in arms_of(settings) if isinstance(arm, CommandArm)}


def test_a_server_has_forty_minutes_unless_told_otherwise() -> None:
    assert timeouts(settings_of(*COMMANDS)) == {READY_TIMEOUT_S} == {2400.0}
    assert timeouts(settings_of(*COMMANDS, "--ready-timeout=90m")) == {5400.0}
    assert timeouts(settings_of()) == {120.0}
    assert timeouts(settings_of("--ready-timeout", "10 m")) == {600.0}


def test_gpus_may_be_given_as_several_sets() -> None:
    assert settings_of(*COMMANDS).gpus == ()
    assert settings_of(*COMMANDS, "--gpus=0,1", "--gpus", "2,3").gpus == ("0,1", "2,3")


def test_a_worktree_and_an_image_reach_their_arms(tmp_path: pathlib.Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    settings = settings_of(
        "--baseline-cmd=docker run {image} {port}",
        "--candidate-cmd=serve {port}",
        f"--baseline-image={DIGEST}",
        f"--candidate-worktree={tmp_path}",
    )
    baseline, candidate = (arm.build for arm in arms_of(settings) if isinstance(arm, CommandArm))
    assert (baseline.image, baseline.worktree) == (DIGEST, None)
    assert (candidate.image, candidate.worktree) == ("", tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([*COMMANDS, "--ready-timeout=soon"], "--ready-timeout soon is no duration; expected a number with s, m or h"),
        ([*COMMANDS, "--ready-timeout=0m"], "--ready-timeout 0m is no duration"),
        (["--server-url=http://a", "--ready-timeout=5m"], "--ready-timeout with a server's URL was given; expected a"),
        (
            [*COMMANDS, "--candidate-image=me/sglang:latest"],
            "--candidate-image: image me/sglang:latest can become another one under the same name; expected NAME@",
        ),
        ([*COMMANDS, f"--candidate-image={DIGEST}"], "one of --candidate-image and {image} alone was given; expected"),
        (
            ["--baseline-cmd=docker run {image}", "--candidate-cmd=b"],
            "one of --baseline-image and {image} alone was given; expected both",
        ),
        ([*COMMANDS, "--control-cmd=run {image}"], "{image} in --control-cmd without --candidate-image was given"),
        ([f"--baseline-image={DIGEST}"], "a worktree, an environment or an image without commands was given; expected"),
        (["--server-url=http://a", "--candidate-env=."], "--candidate-env: . holds no bin/python; expected the folder"),
        ([*COMMANDS, "--baseline-worktree=/nowhere"], "--baseline-worktree: /nowhere is no git worktree with a commit"),
        (["--server-url=http://a", "--block-design=quadruple"], "--block-design=quadruple with a server's URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_said_in_one_sentence(options: list[str], expected: str) -> None:
    with pytest.raises(OptionError, match=re.escape(expected)) as caught:
        settings_of(*options)
    assert "\n" not in str(caught.value)
