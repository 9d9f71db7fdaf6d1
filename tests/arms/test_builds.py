"""What an arm is, said on the command line: real git worktrees, real environments, images by digest and by tag."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import subprocess
import tempfile
import venv
from typing import Any

import pytest

from validation.arms import ArmError, CommandArm, Place
from validation.builds import Build, differs, is_one_build, said
from validation.e2e_plan import E2EPlan
from validation.e2e_setup import arms_of, declare, dry_run, plan_of
from validation.options import OptionError, Settings
from validation.profiles import Profile
from validation.records import SCHEMA, Journal, Run

FAKE_BUILD = pathlib.Path(__file__).parent / "fake_build.py"
DIGEST = "ghcr.io/someone/sglang@sha256:" + "0a" * 32


def git(folder: pathlib.Path, *arguments: str) -> str:
    """What git prints; commits have an author."""
    words = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def checkout(folder: pathlib.Path) -> pathlib.Path:
    """A repository with one commit, in which ``server.py`` is tracked."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "server.py").write_text("PATH = 'cat'\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=before")
    return folder


def worktree(of: pathlib.Path, folder: pathlib.Path, *, changed: bool) -> pathlib.Path:
    """A second worktree of the repository ``of``; with a commit of its own where it is ``changed``."""
    git(of, "worktree", "add", "--quiet", "--detach", str(folder.absolute()))
    if changed:
        (folder / "server.py").write_text("PATH = 'skip'\n")
        git(folder, "commit", "--quiet", "--all", "--message=after")
    return folder


def environment(folder: pathlib.Path, **versions: str) -> pathlib.Path:
    """A virtual environment without pip, in which packages of these versions seem to be installed."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, version in versions.items():
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture(autouse=True)
def _own_node(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's lock lies in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def settings(**given: Any) -> Settings:
    """Two commands that nobody starts; fields of no interest are None."""
    nothing = {field.name: None for field in dataclasses.fields(Settings)}
    usual = {
        "profile": Profile.PR,
        "seed": 1,
        "baseline_cmd": "serve {port}",
        "candidate_cmd": "serve {port}",
        "baseline_stop_cmd": "",
        "candidate_stop_cmd": "",
        "control_stop_cmd": "",
        "scenarios": (),
        "accuracy_scenario": "word-problems",
        "runs": 1,
    }
    return Settings(**{**nothing, **usual, **given})


def test_a_worktree_tells_its_commit_and_whether_it_was_changed(tmp_path: pathlib.Path) -> None:
    build = Build(checkout(tmp_path / "sglang"))
    clean = build.identity()
    assert clean == {"worktree": "sglang", "commit": git(tmp_path / "sglang", "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "sglang" / "server.py").write_text("PATH = 'skip'\n")  # planted: the commit is not what runs
    dirty = build.identity()
    assert dirty["dirty"] is True
    assert len(dirty["changes_sha256"]) == 64
    assert said(dirty) == f"commit {clean['commit'][:12]} with uncommitted changes"
    assert not is_one_build(clean, dirty)
    (tmp_path / "sglang" / "server.py").write_text("PATH = 'other'\n")
    assert not is_one_build(dirty, build.identity())  # two changes of one commit are two builds


def test_a_new_file_makes_a_worktree_dirty_and_its_environment_does_not(tmp_path: pathlib.Path) -> None:
    build = Build(checkout(tmp_path / "sglang"))
    environment(tmp_path / "sglang" / ".venv")
    for ignores in (tmp_path / "sglang" / ".venv").glob(".gitignore"):
        ignores.unlink()  # newer Pythons write one
    assert build.identity()["dirty"] is False
    (tmp_path / "sglang" / "kernel.py").write_text("")
    now = build.identity()
    assert now["dirty"] is True
    assert differs({**now, "dirty": False}, now) == ""  # servers write files; that is not another build


def test_two_worktrees_of_one_repository_are_told_apart(tmp_path: pathlib.Path) -> None:
    base = checkout(tmp_path / "base")
    same = worktree(base, tmp_path / "same", changed=False)
    after = worktree(base, tmp_path / "after", changed=True)
    found = [Build(folder).identity() for folder in (base, same, after)]
    assert is_one_build(found[0], found[1])
    assert not is_one_build(found[0], found[2])
    assert differs(found[0], found[2]) == f"commit was {found[0]['commit']} and is {found[2]['commit']}"


def test_git_reads_the_worktree_and_not_the_repository_of_a_hook(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkout(tmp_path / "base")
    after = worktree(base, tmp_path / "after", changed=True)
    monkeypatch.setenv("GIT_DIR", str(base / ".git"))
    assert Build(after).identity()["commit"] != Build(base).identity()["commit"]


def test_an_arm_runs_in_its_worktree_with_its_environment_first(tmp_path: pathlib.Path) -> None:
    folder = checkout(tmp_path / "sglang")
    environment(folder / ".venv", torch="9.8.7", sglang="0.5.12")
    look = f"command -v python > $1/python; pwd > $1/folder; exec python -I -S {shlex.quote(str(FAKE_BUILD))} --port $0"
    arm = CommandArm(
        "candidate",
        f"sh -c {shlex.quote(look)} {{port}} {{logdir}}",
        f"sh -c {shlex.quote('pwd > $0/stopped_in')} {{logdir}}",
        build=Build(folder),
    )
    logs = tmp_path / "logs"
    with arm.session(Place(logs, "2,3"), print) as server:
        assert (logs / "python").read_text().strip() == str(folder / ".venv" / "bin" / "python")
        assert (logs / "folder").read_text().strip() == str(folder)
    assert (logs / "stopped_in").read_text().strip() == str(folder)
    build = server.identity["build"]
    assert build["versions"] == {"torch": "9.8.7", "sglang": "0.5.12"}
    assert (build["worktree"], build["dirty"]) == ("sglang", False)
    assert server.identity["gpus"] == "2,3"
    json.dumps(server.identity)


def test_an_environment_given_apart_comes_before_the_worktrees_own(tmp_path: pathlib.Path) -> None:
    folder = checkout(tmp_path / "sglang")
    environment(folder / ".venv", torch="1.0")
    build = Build(folder, environment(tmp_path / "rocm", torch="2.0"))
    assert build.identity()["versions"] == {"torch": "2.0"}
    variables = build.variables()
    assert variables is not None
    assert variables["PATH"].startswith(f"{tmp_path / 'rocm' / 'bin'}:")
    assert variables["VIRTUAL_ENV"] == str(tmp_path / "rocm")


def test_an_image_is_filled_in_and_told(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", f"sh -c 'echo runs $0; exit 3' {DIGEST[:7]}{{image}}", build=Build(image=DIGEST))
    with (
        pytest.raises(ArmError, match=f"its last line: runs {DIGEST[:7]}{DIGEST}"),
        arm.session(Place(tmp_path), print),
    ):
        raise AssertionError("it was called ready")
    assert Build(image=DIGEST).identity() == {"image": DIGEST}


def test_an_environment_that_breaks_later_is_an_arms_error(tmp_path: pathlib.Path) -> None:
    build = Build(environment=environment(tmp_path / "env"))
    (tmp_path / "env" / "bin" / "python").unlink()
    arm = CommandArm("baseline", "python", build=build)
    with pytest.raises(ArmError, match=r"baseline: .* does not tell its versions"), arm.session(Place(tmp_path), print):
        raise AssertionError("it was called ready")


@pytest.mark.parametrize(
    "image",
    [
        "lmsysorg/sglang:latest",
        "lmsysorg/sglang",
        "lmsysorg/sglang@sha256:" + "0a" * 31,
        "lmsysorg/sglang@sha256:" + "0A" * 32,
        "sha256:" + "0a" * 32,
        DIGEST + " --privileged",
    ],
)
def test_an_image_that_could_become_another_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="can become another one under the same name; expected NAME@sha256:"):
        Build(image=image)


def test_folders_that_are_no_builds_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no git worktree with a commit"):
        Build(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no bin/python; expected the folder of a virtual environment"):
        Build(environment=tmp_path / "empty")
    (tmp_path / "empty" / ".git").write_text("gitdir: /nowhere\n")  # a worktree whose repository was moved
    with pytest.raises(ValueError, match=r"is no git worktree with a commit \(.*not a git repository"):
        Build(tmp_path / "empty")


# -- as the run declares them ------------------------------------------------------------------------------------------


def two_worktrees(folder: pathlib.Path) -> tuple[Build, Build]:
    base = checkout(folder / "base")
    return Build(base), Build(worktree(base, folder / "after", changed=True))


def test_the_run_declares_both_builds_and_the_plan_says_them(tmp_path: pathlib.Path) -> None:
    baseline, candidate = two_worktrees(tmp_path)
    given = settings(baseline_build=baseline, candidate_build=candidate, control_cmd="serve {port} broken")
    plan = E2EPlan.from_json(json.loads(json.dumps(declare(given)["e2e"])))
    commits = {"baseline": baseline.identity()["commit"], "candidate": candidate.identity()["commit"]}
    assert {arm: build["commit"] for arm, build in plan.builds.items()} == commits
    assert "build.commit" in plan.claimed_difference
    assert f"candidate: serve {{port}} (commit {commits['candidate'][:12]})" in dry_run(given)
    assert [getattr(arm, "build", None) for arm in arms_of(given)] == [baseline, candidate, candidate]


def test_what_a_server_writes_does_not_change_what_was_declared(tmp_path: pathlib.Path) -> None:
    baseline, candidate = two_worktrees(tmp_path)
    given = settings(baseline_build=baseline, candidate_build=candidate)
    before = declare(given)
    (tmp_path / "after" / "nohup.out").write_text("ready\n")
    assert declare(given) == before  # a run may be resumed
    (tmp_path / "after" / "server.py").write_text("PATH = 'other'\n")
    assert declare(given) != before


@pytest.mark.parametrize("profile", [Profile.PR, Profile.RELEASE])
def test_one_build_as_both_arms_is_refused(profile: Profile, tmp_path: pathlib.Path) -> None:
    base = checkout(tmp_path / "base")
    pairs = [
        (Build(base), Build(worktree(base, tmp_path / "same", changed=False))),
        (Build(image=DIGEST), Build(image=DIGEST)),
    ]
    for baseline, candidate in pairs:
        given = settings(profile=profile, baseline_build=baseline, candidate_build=candidate)
        said_so = r"baseline and candidate are one build \(.*\) with one command; expected two, or --gate=rehearsal"
        with pytest.raises(OptionError, match=said_so):
            plan_of(given)
        plan_of(dataclasses.replace(given, candidate_cmd="serve {port} --skip"))  # a flag makes two arms
        plan_of(dataclasses.replace(given, profile=Profile.REHEARSAL))  # an A/A, which signs nothing off
        plan_of(dataclasses.replace(given, baseline_build=None))  # of which nothing was said


def recorded(folder: pathlib.Path, given: Settings) -> pathlib.Path:
    """A run folder that holds the header of ``given`` alone."""
    with Journal(folder / "raw" / "main.jsonl") as journal:
        journal.append(Run("r", SCHEMA, "", "rehearsal", ("e2e",), 1, (), json.loads(json.dumps(declare(given))), {}))
    return folder


def test_a_same_build_run_of_two_builds_is_refused(tmp_path: pathlib.Path) -> None:
    baseline, candidate = two_worktrees(tmp_path)
    two = settings(profile=Profile.REHEARSAL, baseline_build=baseline, candidate_build=candidate)
    with pytest.raises(OptionError, match=r"--same-build: .* compares two builds \(commit \w{12} and commit \w{12}\)"):
        declare(settings(same_build=recorded(tmp_path / "two", two)))
    one = dataclasses.replace(two, candidate_build=baseline)
    declare(settings(same_build=recorded(tmp_path / "one", one)))
    declare(settings(same_build=recorded(tmp_path / "unsaid", settings())))
    with pytest.raises(OptionError, match=r"--same-build: .* holds no raw/\*\.jsonl"):
        declare(settings(same_build=tmp_path))
