"""The API key reaches the server it is meant for, and nothing else: records, logs, exception texts, other hosts."""

from __future__ import annotations

import json
import logging
import pathlib
import traceback

import pytest

from validation.client import Backend, Job, Prompt, Sampling, Secret, run_load
from validation.client.fake_server import FakeServer, Schedule
from validation.client.identity import read_identity
from validation.client.redaction import MASK, redact
from validation.discovery import load_all
from validation.records import Journal, Request

BACKENDS: dict[str, Backend] = load_all("scenarios/backends", "BACKEND")
KEY = "sk-9f8e7d6c5b4a39281706"
FAULTS = ["unauthorized", "failure", "redirect", "reset", "invalid_json", "cut_event", "server_error_event"]


def jobs(count: int) -> list[Job]:
    return [Job(Prompt(text="x"), Sampling(8, ignore_eos=True), "l", "a", 0, 0, "s", i) for i in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_key_is_sent_and_written_nowhere(
    backend: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "requests.jsonl"
    with (
        FakeServer(Schedule(tokens=8)) as elsewhere,
        FakeServer(
            Schedule(tokens=8, redirect_to=elsewhere.url, model=f"model-{KEY}"), dict(enumerate(FAULTS))
        ) as server,
        Journal(path) as journal,
    ):
        report = run_load(
            server.url, BACKENDS[backend], jobs(len(FAULTS) + 1), 1, journal.append, api_key=KEY, max_retries=0
        )
    assert all(KEY.encode() in request for request in server.seen)
    assert len(server.seen) == len(FAULTS) + 1
    assert elsewhere.seen == []
    written = path.read_text() + caplog.text + json.dumps(report.to_json()) + repr(report) + "".join(capfd.readouterr())
    assert "401" in written
    assert MASK in written
    assert KEY not in written


def test_the_key_is_not_in_what_a_server_says_about_itself() -> None:
    with FakeServer(Schedule(model=f"model-{KEY}")) as server:
        identity = read_identity(server.url, Secret(KEY))
    assert MASK in str(identity)
    assert KEY not in str(identity)


@pytest.mark.parametrize("key", ["", "two words", KEY + "\r\nX-Other: 1", KEY + "é"])
def test_a_key_that_no_header_holds_is_refused_unquoted(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        run_load("http://127.0.0.1:1", BACKENDS["sglang_native"], jobs(1), 1, lambda request: None, api_key=key)
    assert KEY not in str(caught.value)


def test_an_exception_on_the_way_does_not_show_the_key() -> None:
    def fail(request: Request) -> None:
        raise RuntimeError("the caller failed")

    secret = Secret(KEY)
    with FakeServer(Schedule(tokens=8)) as server, pytest.raises(RuntimeError) as caught:
        run_load(server.url, BACKENDS["sglang_native"], jobs(1), 1, fail, api_key=secret)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert KEY not in "".join(shown.format())


def test_a_key_split_over_two_deltas_is_hidden_in_the_text() -> None:
    assert redact({"text": KEY[:5] + KEY[5:], "n": 1, "list": [KEY]}, Secret(KEY)) == {
        "text": MASK,
        "n": 1,
        "list": [MASK],
    }


@pytest.mark.parametrize("show", [repr, str])
def test_a_secret_does_not_show_itself(show: object) -> None:
    assert callable(show)
    assert KEY not in show(Secret(KEY))
