"""Integrity: an untouched run verifies, and each way of touching one is told by name."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from report_examples import ACCURACY_FAIL, AUDITS, HOSTILE, NOTES, replaced, run

from validation import integrity
from validation.judgement import Judgement
from validation.records import Journal, Note, RecordError, Run, read_run
from validation.reporting import write_reports
from validation.verdicts import Effect, Evidence, Finding, Verdict


def judge(folder: pathlib.Path) -> Judgement:
    """A judge of a few lines: one finding, whose number is the mean of the recorded values."""
    records = read_run(folder)
    declared = next(record for record in records if isinstance(record, Run))
    values = [record.data["tpot_ms"] for record in records if isinstance(record, Note) and record.topic == "tpot"]
    mean = Finding(
        "latency.primary",
        Evidence.LATENCY,
        Verdict.PASS,
        "gain_shown",
        f"TPOT falls to {sum(values) / len(values):.2f} ms.",
        len(values),
        {"mean_tpot_ms": sum(values) / len(values), "values": values},
        Effect(0.1, "ms", "by hand"),
    )
    return Judgement(declared, replaced(mean), AUDITS, NOTES)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    with Journal(tmp_path / "raw" / "run.jsonl") as journal:
        journal.append(run())
    with Journal(tmp_path / "raw" / "latency.jsonl") as journal:
        for value in (3.675, 3.692, 3.680):
            journal.append(Note("tpot", "measured", {"tpot_ms": value}))
    (tmp_path / "raw" / "trace.json.gz").write_bytes(b"\x1f\x8b not a trace")
    write_reports(tmp_path, judge(tmp_path))
    integrity.write_manifest(tmp_path)
    return tmp_path


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_untouched_run_verifies(folder: pathlib.Path) -> None:
    digest = integrity.write_manifest(folder)
    assert integrity.verify(folder, judge, digest) == []
    assert integrity.write_manifest(folder) == digest


def test_every_raw_record_has_its_digest(folder: pathlib.Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert len(manifest["files"]["raw/latency.jsonl"]["records"]) == 3
    assert manifest["files"]["raw/trace.json.gz"].keys() == {"sha256", "bytes"}
    assert manifest["files"].keys() >= {"report.html", "report.md", "findings.json", "junit.xml"}


Touch = Callable[[pathlib.Path], Any]
TOUCHED: dict[str, tuple[Touch, list[str]]] = {
    "number_in_findings": (
        lambda f: edit(f / "findings.json", '"mean_tpot_ms": 3.682', '"mean_tpot_ms": 3.482'),
        ["findings.json was changed", "findings.latency.primary.numbers.mean_tpot_ms is 3.48"],
    ),
    "verdict_in_findings": (
        lambda f: edit(f / "findings.json", '"verdict": "PASS"', '"verdict": "FAIL"'),
        ['.verdict is "FAIL"; recomputed, it is "PASS"'],
    ),
    "raw_record": (
        lambda f: edit(f / "raw" / "latency.jsonl", "3.692", "3.392"),
        ["raw/latency.jsonl was changed: record 2 is not", "mean_tpot_ms is 3.68"],
    ),
    "raw_record_removed": (
        lambda f: edit(
            f / "raw" / "latency.jsonl", (f / "raw" / "latency.jsonl").read_text().splitlines()[2] + "\n", ""
        ),
        ["raw/latency.jsonl was changed: it has 2 records, the manifest says 3"],
    ),
    "raw_file_missing": (
        lambda f: (f / "raw" / "latency.jsonl").unlink(),
        ["raw/latency.jsonl is missing", "cannot be recomputed"],
    ),
    "other_raw_file": (
        lambda f: (f / "raw" / "trace.json.gz").write_bytes(b"another"),
        ["raw/trace.json.gz was changed: its SHA-256 is"],
    ),
    "raw_file_added": (
        lambda f: shutil.copy(f / "raw" / "latency.jsonl", f / "raw" / "more.jsonl"),
        ["raw/more.jsonl was added"],
    ),
    "report": (
        lambda f: edit(f / "report.html", "Pull request passed", "Release signed off"),
        ["report.html was changed", "report.html is not what the raw records give"],
    ),
    "report_missing": (
        lambda f: (f / "report.md").unlink(),
        ["report.md is missing: the manifest", "report.md is missing; write"],
    ),
    "findings_missing": (lambda f: (f / "findings.json").unlink(), ["findings.json is missing"]),
    "findings_not_json": (lambda f: (f / "findings.json").write_text("{"), ["findings.json is not JSON"]),
    "manifest_missing": (lambda f: (f / "manifest.json").unlink(), ["manifest.json is missing"]),
    "manifest_not_json": (lambda f: (f / "manifest.json").write_text("[" * 100_000), ["manifest.json was changed"]),
    "manifest_schema": (
        lambda f: edit(f / "manifest.json", '"schema": 1', '"schema": 9'),
        ["manifest.json was changed"],
    ),
    "manifest_entry": (lambda f: edit(f / "manifest.json", '"bytes": ', '"bytes": 1'), ["manifest.json was changed"]),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_a_touched_run_is_told_by_name(folder: pathlib.Path, name: str) -> None:
    touch, expected = TOUCHED[name]
    touch(folder)
    found = integrity.verify(folder, judge)
    for sentence in expected:
        assert any(sentence in said for said in found), found
    assert all(said.isprintable() for said in found)


def test_a_rewritten_manifest_is_caught_by_its_digest(folder: pathlib.Path) -> None:
    digest = integrity.write_manifest(folder)
    edit(folder / "raw" / "latency.jsonl", "3.692", "3.392")
    write_reports(folder, judge(folder))
    (folder / "manifest.json").unlink()
    integrity.write_manifest(folder)
    assert integrity.verify(folder, judge) == [], "nothing inside the folder can show it"
    (said,) = integrity.verify(folder, judge, digest)
    assert "manifest.json was changed" in said


@pytest.mark.parametrize("name", ["raw_record", "raw_record_removed", "raw_file_missing", "other_raw_file"])
def test_a_changed_raw_record_is_not_blessed_by_making_the_reports_again(folder: pathlib.Path, name: str) -> None:
    before = (folder / "manifest.json").read_bytes()
    TOUCHED[name][0](folder)
    with pytest.raises(integrity.IntegrityError, match="raw records are only ever added"):
        integrity.write_manifest(folder)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_resumed_run_adds_records_and_makes_its_reports_again(folder: pathlib.Path) -> None:
    with Journal(folder / "raw" / "latency.jsonl") as journal:
        journal.append(Note("tpot", "measured", {"tpot_ms": 3.7}))
    write_reports(folder, judge(folder))
    integrity.write_manifest(folder)
    assert integrity.verify(folder, judge) == []


def test_another_machine_may_move_the_last_digit(folder: pathlib.Path) -> None:
    findings = json.loads((folder / "findings.json").read_bytes())
    (mean,) = [f for f in findings["findings"] if f["name"] == "latency.primary"]
    mean["numbers"]["mean_tpot_ms"] *= 1 + 1e-14
    (folder / "findings.json").write_text(json.dumps(findings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    integrity.write_manifest(folder)
    assert integrity.verify(folder, judge) == []


def test_links_are_not_followed(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.jsonl"
    outside.write_text("{}\n")
    (folder / "raw" / "link.jsonl").symlink_to(outside)
    integrity.write_manifest(folder)
    assert "link.jsonl" not in (folder / "manifest.json").read_text()
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(outside)
    assert any("report.html is missing" in said for said in integrity.verify(folder, judge))


def test_paths_in_the_manifest_are_names_and_never_opened(folder: pathlib.Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["../../../../etc/passwd"] = {"sha256": "0", "bytes": 1}
    manifest["files"][f"raw/{HOSTILE[:40]}"] = "no entry"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = integrity.verify(folder, judge)
    assert any(said.startswith("../../../../etc/passwd is missing") for said in found)


def test_raw_records_that_cannot_be_read_are_a_difference(folder: pathlib.Path) -> None:
    def broken(_: pathlib.Path) -> Judgement:
        raise RecordError("run.jsonl line 1: a run record does not fit its schema")

    assert any("cannot be recomputed" in said for said in integrity.verify(folder, broken))


def test_another_verdict_is_told_once_and_not_by_every_report(folder: pathlib.Path) -> None:
    def stricter(path: pathlib.Path) -> Judgement:
        judged = judge(path)
        return Judgement(judged.run, replaced(ACCURACY_FAIL), judged.audits, judged.notes)

    found = integrity.verify(folder, stricter)
    assert any('headline is "Pull request passed' in said for said in found)
    assert not any("is not the report" in said for said in found)


def test_without_minisign_there_is_one_sentence(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(integrity.SignatureError, match="minisign is not installed; install it"):
        integrity.sign(folder, folder / "key")


def test_the_signature_is_asked_of_minisign(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "Wrong password\x1b[2J\n")

    monkeypatch.setattr(shutil, "which", lambda _: "minisign")
    monkeypatch.setattr(subprocess, "run", fake)
    with pytest.raises(integrity.SignatureError, match=r"minisign refused: Wrong password\\x1b"):
        integrity.sign(folder, folder / "key")
    assert asked[0][:4] == ["minisign", "-S", "-s", str(folder / "key")]
    with pytest.raises(integrity.SignatureError, match=r"holds no manifest\.json\.minisig"):
        integrity.check_signature(folder, folder / "key.pub")


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is optional and not installed here")
def test_a_real_signature_breaks_with_the_manifest(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    secret, public = tmp_path / "key", tmp_path / "key.pub"
    subprocess.run(
        ["minisign", "-G", "-W", "-s", secret, "-p", public], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    assert integrity.sign(folder, secret).is_file()
    integrity.check_signature(folder, public)
    edit(folder / "manifest.json", '"schema": 1', '"schema": 2')
    with pytest.raises(integrity.SignatureError, match="minisign refused"):
        integrity.check_signature(folder, public)
