"""``--dry-run`` through pytest: the plan is printed, nothing is started, no folder is made."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from validation.discovery import ROOT
from validation.e2e_plan import E2EPlan
from validation.e2e_setup import dry_run as e2e_dry_run
from validation.e2e_setup import plan_of
from validation.options import OptionError, Settings
from validation.profiles import Profile


def dry_run(folder: pathlib.Path, *options: str, tiers: str = "e2e") -> subprocess.CompletedProcess[str]:
    folders = ["scenarios"] if tiers == "e2e" else []
    words = [
        *folders,
        "-q",
        "-m",
        tiers,
        "-p",
        "no:cacheprovider",
        f"--run-dir={folder / 'run'}",
        "--dry-run",
        *options,
    ]
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def two_builds(folder: pathlib.Path) -> list[str]:
    """Commands that would leave a mark if they ran."""
    touch = f'{sys.executable} -c \'open("{folder / "started"}", "w")\' {{port}}'
    return [f"--baseline-cmd={touch}", f"--candidate-cmd={touch}", "--accuracy-scenario=word-problems"]


def test_a_budget_is_planned_and_nothing_is_measured(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path, *two_builds(tmp_path), "--budget=90m")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Budget of 90 min: 1k1k-c4, at most" in result.stdout
    assert "smallest detectable gain" in result.stdout
    assert "nothing was measured" in result.stdout
    assert list(tmp_path.iterdir()) == []


def settings(**given: Any) -> Settings:
    """Two commands that nobody starts; fields of no interest are None."""
    nothing = {field.name: None for field in dataclasses.fields(Settings)}
    usual = {
        "profile": Profile.PR,
        "seed": 1,
        "baseline_cmd": "old {port}",
        "candidate_cmd": "new {port}",
        "baseline_stop_cmd": "",
        "candidate_stop_cmd": "",
        "scenarios": (),
        "accuracy_scenario": "word-problems",
        "runs": 1,
    }
    return Settings(**{**nothing, **usual, **given})


def test_a_larger_budget_takes_more_scenarios() -> None:
    plan = plan_of(settings(budget_s=40 * 3600.0))
    assert plan.latency_scenarios[:3] == ("1k1k-c4", "1k1k-c16", "8k1k-c4")
    assert plan.latency.scenarios == plan.latency_scenarios
    assert plan.max_blocks == plan.latency.max_blocks


def test_a_release_drops_no_scenario_for_a_budget() -> None:
    text = e2e_dry_run(settings(profile=Profile.RELEASE, budget_s=8 * 3600.0))
    assert "no room for" not in text
    assert text.count("latency: ") == 10


def test_a_plan_with_a_budget_survives_its_json() -> None:
    plan = plan_of(settings(budget_s=5400.0))
    assert E2EPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_given_scenarios_are_kept() -> None:
    assert plan_of(settings(budget_s=36000.0, scenarios=("8k1k-c8", "8k1k-c4"))).latency_scenarios == (
        "8k1k-c8",
        "8k1k-c4",
    )


def test_one_server_takes_half_the_time_of_two() -> None:
    one = settings(candidate_cmd=None, baseline_cmd=None, server_url="http://a")
    two = dataclasses.replace(one, baseline_url="http://b")
    blocks = [plan_of(dataclasses.replace(s, budget_s=5400.0, scenarios=("1k1k-c4",))).max_blocks for s in (one, two)]
    assert blocks == [31, 15]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"budget_s": 600.0},
            "--budget: a budget of 10 min buys 1 blocks of 1k1k-c4, too few for a first look; expected",
        ),
        ({"budget_s": 7200.0, "blocks": 5}, "--budget and --blocks were given; expected one of them"),
        ({"budget_s": 7200.0, "scenarios": ("rehearsal-c1",)}, "--budget: how long rehearsal-c1 takes is not recorded"),
        ({"budget_s": 7200.0, "scenarios": ("nine",)}, "scenario 'nine' is unknown"),
    ],
    ids=["short", "blocks", "unknown", "no-such"],
)
def test_a_budget_that_cannot_be_planned_is_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=re.escape(expected)):
        plan_of(settings(**given))


def test_a_refused_budget_is_a_usage_error_and_makes_no_folder(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path, *two_builds(tmp_path), "--budget=10m")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "too few for a first look" in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_budget_the_prospects_are_printed(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "form: embedded; arms: baseline, candidate, control" in result.stdout
    assert "smallest detectable gain" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_given_server_is_not_asked(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path, "--server-url=http://127.0.0.1:9", "--accuracy-scenario=word-problems")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "given servers are not restarted" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_workers_and_a_dry_run_exclude_each_other(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path, "-n2", tiers="kernel")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "-n 2 with --dry-run was given; expected -n 0" in result.stdout + result.stderr


def test_the_kernel_tier_has_a_dry_run_too(tmp_path: pathlib.Path) -> None:
    result = dry_run(tmp_path, tiers="kernel")
    assert result.returncode == 0
    assert "tests of kernel; nothing is measured" in result.stdout
    assert list(tmp_path.iterdir()) == []
