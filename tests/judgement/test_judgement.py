"""What the whole judgement adds to its judges: an inexact client, a failed arm, a missing header."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

from validation.discovery import ROOT
from validation.judgement import judge_records
from validation.records import Note, Record, RecordError, Request, Run, read_run
from validation.verdicts import Finding, Verdict

RECORDED = ROOT / "baselines" / "h200" / "tpot" / "run"
SAME_BUILD = ROOT / "baselines" / "h200" / "same_build" / "run"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """A real run: its latency verdict is a PASS."""
    return read_run(RECORDED)


def latency(records: list[Record]) -> Finding:
    return next(f for f in judge_records(records).findings if f.name == "latency.primary")


def self_test(**data: Any) -> Note:
    return Note("self_test", "planted", data)


def test_the_recorded_run_still_passes_and_is_a_rehearsal(records: list[Record]) -> None:
    assert latency(records).verdict is Verdict.PASS
    assert judge_records(records).headline.startswith("Rehearsal on CUDA")


@pytest.mark.parametrize("bias", [0.2, -0.2, None])
def test_an_inexact_client_is_refused_a_verdict(bias: float | None, records: list[Record]) -> None:
    finding = latency([*records, self_test(tpot_bias_percent=bias)])
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "client_error")
    assert finding.numbers["refused_verdict"] == "PASS"


def test_an_untested_client_is_refused_too(records: list[Record]) -> None:
    untested = [r for r in records if not (isinstance(r, Note) and r.topic == "self_test")]
    assert latency(untested).reason == "client_error"


def test_a_failed_arm_lets_nothing_pass(records: list[Record]) -> None:
    finding = latency([*records, Note("arm_failed", "the server did not stop")])
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "arm_failed")
    resumed = [*records, Note("arm_failed", "it did not start"), Note("resumed", "went on")]
    assert latency(resumed).verdict is Verdict.PASS


@pytest.mark.parametrize("folder", [RECORDED, SAME_BUILD], ids=["a gain", "none"])
def test_of_a_server_that_changed_nothing_is_said(folder: pathlib.Path) -> None:
    changed = Note("arm_failed", "the server became another one", {"reason": "server_changed"})
    finding = latency([*read_run(folder), changed])
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "server_changed")
    assert finding.sentence.startswith("the server became another one; TPOT falls by")


def test_the_recorded_negative_control_shows_no_gain() -> None:
    finding = latency(read_run(SAME_BUILD))
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "useful_gain_excluded")
    assert abs(finding.numbers["gain_percent"]) < 0.01


def test_requests_without_counts_are_named(records: list[Record]) -> None:
    bare = [
        dataclasses.replace(r, chunk_tokens=None, output_tokens=r.output_tokens + 1)
        if isinstance(r, Request) and r.output_tokens
        else r
        for r in records
    ]
    finding = latency(bare)
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "no_blocks")
    assert finding.sentence.endswith("Requests without a TPOT: 114 for no_counts.")


def test_records_without_a_header_are_refused(records: list[Record]) -> None:
    with pytest.raises(RecordError, match="no header record"):
        judge_records([r for r in records if not isinstance(r, Run)])


def test_judging_reads_nothing_but_records(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a judge opened a file")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    monkeypatch.setattr("time.time", refuse)
    monkeypatch.setattr("time.monotonic", refuse)
    assert judge_records(records).findings
