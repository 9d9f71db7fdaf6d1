"""``pytest -m e2e`` as a user runs it, in its three forms: exit status and findings over real servers."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import pytest
from session_tools import PROBLEMS, Session, relay_command, run_session

from validation.baselines import load_baseline
from validation.client.fake_server import FakeServer, Schedule
from validation.e2e_tier import declared_plan
from validation.options import OptionError
from validation.profiles import EXIT_FAIL, EXIT_PASS, EXIT_UNDECIDED
from validation.records import Launch, Request
from validation.verdicts import Verdict

FEW = "--questions=10"
ACCURACY = (FEW, "-k", "accuracy")


def verdicts(session: Session) -> dict[str, tuple[Verdict, str]]:
    return {f.name.partition(".")[0]: (f.verdict, f.reason) for f in session.findings()}


def test_a_rehearsal_on_too_few_questions_cannot_show_the_margin(tmp_path: pathlib.Path) -> None:
    session = run_session(tmp_path, FEW, "--blocks=1", "--scenario=rehearsal-c1", "-k", "tokens or accuracy")
    assert session.status == EXIT_UNDECIDED, session.output
    tokens, accuracy = session.finding("tokens"), session.finding("accuracy")
    assert (tokens.verdict, accuracy.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert accuracy.reason == "interval_contains_margin"
    assert session.finding("latency").reason == "deselected"
    launches = [record for record in session.records() if isinstance(record, Launch)]
    assert [launch.arm for launch in launches].count("control") == 1
    assert len({launch.url for launch in launches}) == len(launches)
    assert all(launch.fresh for launch in launches)
    assert "Rehearsal not decided: accuracy" in session.output
    assert "signed off" not in session.output
    assert sorted(path.name for path in (session.folder / "logs").iterdir())[:2] == ["b0-baseline", "b0-candidate"]


def test_what_nobody_selected_is_not_run(engine_url: str, tmp_path: pathlib.Path) -> None:
    arms = (f"--server-url={engine_url}", f"--baseline-url={engine_url}")
    session = run_session(tmp_path, *arms, *PROBLEMS, FEW, "-k", "tokens")
    assert session.status == EXIT_UNDECIDED, session.output
    found = verdicts(session)
    assert found["tokens"] == (Verdict.NOT_RUN, "vacuous")  # two URLs bring no planted break
    assert found["accuracy"] == found["latency"] == (Verdict.NOT_RUN, "deselected")


def test_two_urls_are_compared(engine_url: str, planted_url: str, tmp_path: pathlib.Path) -> None:
    arms = (f"--server-url={planted_url}", f"--baseline-url={engine_url}")
    session = run_session(tmp_path, *arms, *PROBLEMS, *ACCURACY)
    assert session.status == EXIT_FAIL, session.output
    assert verdicts(session)["accuracy"][0] is Verdict.FAIL
    assert not any(r.fresh for r in session.records() if isinstance(r, Launch))


def test_a_planted_candidate_fails_tokens_and_accuracy(
    engine_url: str, planted_url: str, tmp_path: pathlib.Path
) -> None:
    commands = {"baseline": engine_url, "candidate": planted_url, "control": planted_url}
    arms = [f"--{name}-cmd={relay_command(url)}" for name, url in commands.items()]
    session = run_session(tmp_path, *arms, *PROBLEMS, "--questions=5", "-k", "tokens or accuracy")
    assert session.status == EXIT_FAIL, session.output
    found = verdicts(session)
    assert (found["tokens"][0], found["accuracy"][0]) == (Verdict.FAIL, Verdict.FAIL)
    assert "Rehearsal FAILED: tokens" in session.output


def test_two_worktrees_are_recorded_and_told_apart_in_the_report(engine_url: str, tmp_path: pathlib.Path) -> None:
    commits = {}
    for arm in ("baseline", "candidate"):
        (tmp_path / arm).mkdir()
        for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", f"--message={arm}"]):
            command = ["git", "-C", str(tmp_path / arm), "-c", "user.name=a", "-c", "user.email=a@b", *words]
            subprocess.run(command, check=True)
        command = ["git", "-C", str(tmp_path / arm), "rev-parse", "HEAD"]
        commits[arm] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "candidate" / "kernel.py").write_text("")  # planted: not committed
    arms = [f"--{arm}-cmd={relay_command(engine_url)}" for arm in commits]
    arms += [f"--{arm}-worktree={tmp_path / arm}" for arm in commits]
    session = run_session(tmp_path, *arms, *PROBLEMS, "--questions=3", "-k", "accuracy")
    builds = {r.arm: r.identity["build"] for r in session.records() if isinstance(r, Launch)}
    assert {arm: build["commit"] for arm, build in builds.items()} == commits
    assert [builds[arm]["dirty"] for arm in ("baseline", "candidate")] == [False, True]
    assert {arm: build["commit"] for arm, build in declared_plan(session.folder).builds.items()} == commits
    report = (session.folder / "report.md").read_text()
    for expected in ("build.commit", *commits.values(), "build.dirty"):
        assert expected in report
    image = ("--baseline-image=me/sglang:latest", "--gate=pr")
    refused = run_session(tmp_path / "candidate", *arms, *image, *PROBLEMS[:2])
    assert refused.status == pytest.ExitCode.USAGE_ERROR
    assert "--baseline-image: image me/sglang:latest can become another one" in refused.output
    assert not refused.folder.exists()


@pytest.fixture(scope="module")
def recorded(engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder whose ``baselines`` hold ``today``, recorded from the engine."""
    folder = tmp_path_factory.mktemp("recorded")
    session = run_session(folder, f"--server-url={engine_url}", *PROBLEMS, *ACCURACY, "--record=today")
    assert session.status == EXIT_UNDECIDED, session.output
    assert verdicts(session)["accuracy"] == (Verdict.INCONCLUSIVE, "no_baseline"), session.output
    return folder


def with_baseline(recorded: pathlib.Path, folder: pathlib.Path, **changed: object) -> pathlib.Path:
    """A folder with the recorded baseline, some of its keys changed."""
    data = json.loads((recorded / "baselines" / "today.json").read_text())
    (folder / "baselines").mkdir()
    (folder / "baselines" / "today.json").write_text(json.dumps({**data, **changed}))
    return folder


def test_a_server_is_judged_against_its_recorded_baseline(
    recorded: pathlib.Path, engine_url: str, tmp_path: pathlib.Path
) -> None:
    with_baseline(recorded, tmp_path)
    session = run_session(tmp_path, f"--server-url={engine_url}", *PROBLEMS, *ACCURACY, "--baseline=today")
    accuracy = session.finding("accuracy")
    assert (session.status, accuracy.verdict) == (EXIT_UNDECIDED, Verdict.INCONCLUSIVE), session.output
    assert "+0.00 points" in accuracy.sentence  # paired by question with what was recorded


def test_a_worse_server_fails_against_the_recorded_baseline(
    recorded: pathlib.Path, planted_url: str, tmp_path: pathlib.Path
) -> None:
    with_baseline(recorded, tmp_path)
    session = run_session(tmp_path, f"--server-url={planted_url}", *PROBLEMS, *ACCURACY, "--baseline=today")
    assert session.status == EXIT_FAIL, session.output
    assert session.finding("accuracy").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("changed", "options", "expected"),
    [
        ({"schema": 99}, [FEW], "--baseline today has schema version 99; expected 1, record it anew"),
        ({"model": "other"}, [FEW], "--baseline today was recorded for the model other, the server serves checkpoint"),
        (
            {},
            ["--questions=9"],
            "--baseline today cannot be compared: baseline today was recorded with questions_sha",
        ),
    ],
    ids=["schema", "model", "questions"],
)
def test_a_baseline_that_cannot_serve_is_refused_before_anything_is_measured(
    changed: dict[str, object],
    options: list[str],
    expected: str,
    recorded: pathlib.Path,
    engine_url: str,
    tmp_path: pathlib.Path,
) -> None:
    with_baseline(recorded, tmp_path, **changed)
    given = (f"--server-url={engine_url}", *PROBLEMS, *options, "-k", "accuracy", "--baseline=today")
    session = run_session(tmp_path, *given)
    assert session.status == pytest.ExitCode.USAGE_ERROR, session.output
    assert expected in session.output
    assert "Traceback" not in session.output
    if session.folder.exists():
        assert not any(isinstance(record, Request) for record in session.records())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "null"])
def test_a_file_that_is_no_baseline_is_refused(text: str, recorded: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "today.json").write_text(text)
    with pytest.raises(OptionError, match=r"--baseline today.*record it anew"):
        load_baseline(tmp_path, "today", declared_plan(recorded / "run"))


@pytest.mark.parametrize("changed", [{"latency": {"x": {}}}, {"latency": 3}, {"accuracy": {"runs": []}}])
def test_a_baseline_with_broken_figures_is_refused(
    changed: dict[str, object], recorded: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = with_baseline(recorded, tmp_path, **changed) / "baselines"
    with pytest.raises(OptionError, match=r"--baseline today cannot be read .*record it anew"):
        load_baseline(folder, "today", declared_plan(recorded / "run"))


def test_a_baseline_is_never_overwritten(recorded: pathlib.Path, engine_url: str, tmp_path: pathlib.Path) -> None:
    with_baseline(recorded, tmp_path)
    session = run_session(tmp_path, f"--server-url={engine_url}", *PROBLEMS, *ACCURACY, "--record=today")
    assert session.status == pytest.ExitCode.USAGE_ERROR
    assert "--record today exists already; expected a new name" in session.output
    assert not session.folder.exists()  # refused before anything was measured, and the folder may be given again


@pytest.mark.parametrize(
    ("floor", "status", "verdict"),
    [("0.1", EXIT_PASS, Verdict.PASS), ("0.999", EXIT_FAIL, Verdict.FAIL)],
    ids=["reached", "missed"],
)
def test_an_accuracy_floor_decides_a_single_server(
    floor: str, status: int, verdict: Verdict, engine_url: str, planted_url: str, tmp_path: pathlib.Path
) -> None:
    url = engine_url if verdict is Verdict.PASS else planted_url
    given = (f"--server-url={url}", *PROBLEMS, FEW, "-k", "tokens or accuracy", f"--accuracy-floor={floor}")
    session = run_session(tmp_path, *given)
    assert verdicts(session)["tokens"] == (Verdict.NOT_APPLICABLE, "one_server")
    accuracy = session.finding("accuracy")
    assert (session.status, accuracy.verdict) == (status, verdict), session.output


def test_a_command_that_dies_is_no_verdict(tmp_path: pathlib.Path, engine_url: str) -> None:
    arms = (f"--baseline-cmd={relay_command(engine_url)}", "--candidate-cmd=sh -c 'echo no such GPU; exit 3'")
    session = run_session(tmp_path, *arms, *PROBLEMS, *ACCURACY)
    assert session.status == EXIT_UNDECIDED, session.output
    assert "ended with status 3 before it was ready" in session.output
    assert "no such GPU" in session.output
    assert "Traceback" not in session.output
    assert verdicts(session)["accuracy"][0] in (Verdict.NOT_RUN, Verdict.INCONCLUSIVE)


def test_a_server_that_becomes_another_is_no_verdict(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(tokens=4, model="one")) as server:
        rename_after(server, 3, "another")
        session = run_session(tmp_path, f"--server-url={server.url}", *PROBLEMS, "--questions=6", "-k", "accuracy")
    assert session.status == EXIT_UNDECIDED, session.output
    assert "model_path was 'one' and is 'another'" in session.output
    assert "measure again" in session.output
    assert verdicts(session)["accuracy"][0] is Verdict.INCONCLUSIVE


def rename_after(server: FakeServer, requests: int, model: str) -> None:
    """Let the server call itself ``model`` once it has seen so many requests."""

    class Counting(list[bytes]):
        def append(self, item: bytes) -> None:
            super().append(item)
            if len(self) == requests:
                server.schedule = Schedule(tokens=4, model=model)

    server.seen = Counting()


def test_the_recorded_baseline_holds_no_path_of_this_machine(recorded: pathlib.Path) -> None:
    text = (recorded / "baselines" / "today.json").read_text()
    assert json.loads(text)["model"] == "checkpoint"
    assert shutil.which("python") not in json.loads(text)["command"]
