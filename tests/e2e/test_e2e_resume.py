"""Nothing is lost: a killed run goes on with the requests in flight, Ctrl-C leaves a valid run, a full disk says so."""

from __future__ import annotations

import pathlib
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from session_tools import PROBLEMS, Session, command_of, environment, run_session

from validation.client.fake_server import FakeServer, Schedule
from validation.discovery import ROOT
from validation.profiles import EXIT_UNDECIDED
from validation.records import Launch, Note, Request
from validation.verdicts import Verdict

QUESTIONS = 60
CONCURRENCY = 16
"""Of the scenario ``word-problems``: so many requests can be in flight."""
ACCURACY = (*PROBLEMS, f"--questions={QUESTIONS}", "-k", "accuracy")
SLOW = Schedule(tokens=4, step_ms=40)


def questions_seen(server: FakeServer) -> list[bytes]:
    """The body of every question that reached the server, in order."""
    return [request.partition(b"\r\n\r\n")[2] for request in server.seen if request.startswith(b"POST /generate")]


def cut_off(server: FakeServer, folder: pathlib.Path, sign: signal.Signals, *, after: int) -> Session:
    """Start the run, and send it ``sign`` once the server has seen ``after`` requests."""
    command = command_of(folder / "run", [f"--server-url={server.url}", *ACCURACY])
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:

        class Counting(list[bytes]):
            def append(self, item: bytes) -> None:
                super().append(item)
                if len(self) == after:
                    process.send_signal(sign)

        server.seen = Counting()
        output, _ = process.communicate(timeout=120)
    return Session(process.returncode, output, folder / "run")


def test_a_killed_run_goes_on_with_the_requests_in_flight(tmp_path: pathlib.Path) -> None:
    with FakeServer(SLOW) as server:
        killed = cut_off(server, tmp_path, signal.SIGKILL, after=40)
        assert killed.status == -signal.SIGKILL
        before = [r for r in killed.records() if isinstance(r, Request)]
        sent = len(questions_seen(server))
        assert 40 - 2 * CONCURRENCY <= len(before) < QUESTIONS
        session = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY, resume=True)
        asked = Counter(questions_seen(server))
    assert session.status == EXIT_UNDECIDED, session.output
    answered = [r for r in session.records() if isinstance(r, Request)]
    assert sorted(r.index for r in answered) == list(range(QUESTIONS))
    assert len(asked) == QUESTIONS
    # what was sent and has no record was in flight, and nothing else was asked again
    assert Counter(asked.values()) == {1: QUESTIONS - (sent - len(before)), 2: sent - len(before)}
    notes = {r.topic: r for r in session.records() if isinstance(r, Note)}
    assert notes["resumed_launch"].data["answered_before"] == len(before)
    for report in ("report.md", "report.html"):
        assert "the run was interrupted and resumed" in (session.folder / report).read_text()
    # the answers of both halves are one launch: the plan's one run an arm, not two
    assert session.finding("accuracy").reason == "no_baseline"
    assert len({r.launch_id for r in session.records() if isinstance(r, Launch)}) == 1


def test_a_finished_run_is_judged_again_without_a_request(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(tokens=4)) as server:
        first = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY)
        again = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY, resume=True)
        assert len(questions_seen(server)) == QUESTIONS
    assert again.status == first.status == EXIT_UNDECIDED
    assert again.finding("accuracy") == first.finding("accuracy")


def test_a_run_killed_before_its_summary_line_is_finished(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(tokens=4)) as server:
        first = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY)
        journal = first.folder / "raw" / "main.jsonl"
        lines = journal.read_text().splitlines(keepends=True)
        kept = [line for line in lines if '"kind": "scenario_run"' not in line]
        assert len(kept) == len(lines) - 1
        journal.write_text("".join(kept) + '{"kind": "requ')  # and the line it died in
        (first.folder / "manifest.json").unlink()  # a killed run has none
        again = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY, resume=True)
        assert len(questions_seen(server)) == QUESTIONS
    assert again.status == EXIT_UNDECIDED, again.output
    assert again.finding("accuracy") == first.finding("accuracy")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([*PROBLEMS, "--questions=59", "-k", "accuracy"], "was started with another e2e"),
        ([*ACCURACY, "--suite-seed=7"], "was started with seed 20240, these options say 7"),
        ([*PROBLEMS, f"--questions={QUESTIONS}"], "was started for accuracy, now tokens and accuracy and latency is"),
    ],
    ids=["questions", "seed", "selection"],
)
def test_other_options_than_the_run_began_with_are_refused(
    options: list[str], expected: str, finished: tuple[str, pathlib.Path]
) -> None:
    url, folder = finished
    session = run_session(folder, f"--server-url={url}", *options, resume=True)
    assert session.status == pytest.ExitCode.USAGE_ERROR, session.output
    assert expected in session.output
    assert "Traceback" not in session.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, pathlib.Path]]:
    """A server, and a folder with a run that it answered."""
    folder = tmp_path_factory.mktemp("finished")
    with FakeServer(Schedule(tokens=4)) as server:
        run_session(folder, f"--server-url={server.url}", *ACCURACY)
        yield server.url, folder


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    session = run_session(tmp_path, "--server-url=http://127.0.0.1:9", *ACCURACY, resume=True)
    assert session.status == pytest.ExitCode.USAGE_ERROR
    assert "holds no raw/*.jsonl; expected the folder of a run" in session.output


def test_ctrl_c_leaves_a_valid_partial_run(tmp_path: pathlib.Path) -> None:
    with FakeServer(SLOW) as server:
        session = cut_off(server, tmp_path, signal.SIGINT, after=30)
    assert session.status == pytest.ExitCode.INTERRUPTED, session.output
    found = {f.verdict for f in session.findings()}
    assert found <= {Verdict.INCONCLUSIVE, Verdict.NOT_RUN}
    assert session.finding("accuracy").verdict is Verdict.INCONCLUSIVE
    assert "the run was interrupted; what is missing is" in (session.folder / "report.md").read_text()
    assert "not decided" in session.output
    verify = [command_of(None, [])[0], "-m", "validation", "verify", str(session.folder)]
    assert subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, check=False).stdout == "nothing differs\n"


def at_most(size: int) -> Callable[[], None]:
    """Files of this process and its children may not grow beyond ``size`` bytes: a disk that fills up."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_clear_sentence(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(tokens=4)) as server:
        command = command_of(tmp_path / "run", [f"--server-url={server.url}", *ACCURACY])
        full = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=at_most(40_000),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        output = full.stdout + full.stderr
        assert full.returncode == pytest.ExitCode.INTERRUPTED, output
        assert f"the run folder {tmp_path / 'run'} cannot be written any more (File too large)" in output
        assert f"make room and go on with --resume {tmp_path / 'run'}" in output
        assert "Traceback" not in output
        assert "Exception ignored" not in output
        session = run_session(tmp_path, f"--server-url={server.url}", *ACCURACY, resume=True)
    assert session.status == EXIT_UNDECIDED, session.output
    assert {r.index for r in session.records() if isinstance(r, Request)} == set(range(QUESTIONS))
