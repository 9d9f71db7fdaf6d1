"""A server that becomes another one while it is measured, over real sockets: no PASS comes of it, and it says why."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from session_tools import PROBLEMS, run_session
from turncoat import turncoat

from validation.profiles import EXIT_PASS, EXIT_UNDECIDED
from validation.records import Launch, Note, ScenarioRun
from validation.verdicts import Verdict

PASSES = (*PROBLEMS, "--questions=10", "-k", "tokens or accuracy", "--accuracy-floor=0.1")
"""Options with which the embedded engine passes."""


@pytest.mark.parametrize(
    ("becomes", "said"),
    [
        ({"model_path": "another"}, "model_path was 'checkpoint' and is 'another'"),
        ({"version": "0.5.13"}, "version was '0.5.12' and is '0.5.13'"),
        ({"weight_version": "step 2", "random_seed": 12}, "weight_version was 'default' and is 'step 2'"),
    ],
    ids=["model", "build", "weights"],
)
def test_a_server_that_becomes_another_cannot_pass(
    becomes: dict[str, Any], said: str, engine_url: str, tmp_path: pathlib.Path
) -> None:
    with turncoat(engine_url, after=4, becomes=becomes) as url:
        session = run_session(tmp_path, f"--server-url={url}", *PASSES)
        again = run_session(tmp_path, f"--server-url={url}", *PASSES, resume=True)
    assert session.status == EXIT_UNDECIDED, session.output
    accuracy = session.finding("accuracy")
    assert (accuracy.verdict, accuracy.reason) == (Verdict.INCONCLUSIVE, "server_changed")
    assert f"block 1, candidate, word-problems: the server became another one ({said})" in accuracy.sentence
    (note,) = (r for r in session.records() if isinstance(r, Note) and r.topic == "arm_failed")
    assert note.data == {"reason": "server_changed"}
    assert "Traceback" not in session.output
    # nothing that this run goes on with would be of one server
    assert again.status == pytest.ExitCode.USAGE_ERROR, again.output
    assert "cannot go on (block 1, candidate, word-problems: the server became another one" in again.output


def test_a_restart_of_the_same_server_is_noted_and_judged(engine_url: str, tmp_path: pathlib.Path) -> None:
    with turncoat(engine_url, after=4, becomes={"random_seed": 12}) as url:
        session = run_session(tmp_path, f"--server-url={url}", *PASSES)
    assert session.status == EXIT_PASS, session.output
    assert session.finding("accuracy").verdict is Verdict.PASS
    (note,) = (r for r in session.records() if isinstance(r, Note) and r.topic == "server_restarted")
    assert "was started again (random_seed was 11 and is 12) and names the same model and build" in note.sentence
    assert "server_restarted" in (session.folder / "report.md").read_text()
    assert [r.client["server_changed"] for r in session.records() if isinstance(r, ScenarioRun)] == [None]


def test_a_server_that_stays_itself_passes_and_tells_what_changes_its_steps(
    engine_url: str, tmp_path: pathlib.Path
) -> None:
    with turncoat(engine_url, after=4, becomes={}) as url:
        session = run_session(tmp_path, f"--server-url={url}", *PASSES)
    assert session.status == EXIT_PASS, session.output
    assert not [r for r in session.records() if isinstance(r, Note) and r.topic.startswith("server_")]
    launch = next(r for r in session.records() if isinstance(r, Launch))
    assert launch.identity["decoding"] == {"tp_size": 8, "speculative_algorithm": "EAGLE"}
