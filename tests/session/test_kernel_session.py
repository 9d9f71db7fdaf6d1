"""`pytest -m kernel` as a user runs it: exit status, findings, JUnit and what a planted defect does to them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from validation.discovery import ROOT

PLANTED = """
import validation.operations as operations
operations.QUERY_PATHS["skip"] = lambda q_cat: {defect}
"""


def kernel_tier(
    folder: pathlib.Path, *options: str, defect: str = ""
) -> tuple[int, dict[str, dict[str, Any]], str, pathlib.Path]:
    """Exit status, findings by name, output and run folder of one session."""
    plugin = folder / "planted_defect.py"
    plugin.write_text(PLANTED.format(defect=defect) if defect else "")
    run = folder / "run"
    command = [sys.executable, "-m", "pytest", "-m", "kernel", "-q", "-p", "no:cacheprovider", f"--run-dir={run}"]
    result = subprocess.run(
        [*command, "-p", "planted_defect", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    findings = json.loads((run / "findings.json").read_text())["findings"] if (run / "findings.json").exists() else []
    return result.returncode, {f["name"]: f for f in findings}, result.stdout + result.stderr, run


def test_what_was_deselected_is_not_run_and_leaves_exit_status_6(tmp_path: pathlib.Path) -> None:
    status, findings, output, run = kernel_tier(tmp_path, "-k", "cat_skip-aiter-torch-m1-h8-bf16")
    assert status == 6, output
    bits = findings["kernel_bits.cat_skip"]
    assert (bits["verdict"], bits["reason"]) == ("NOT_RUN", "deselected")
    assert "Rehearsal not decided" in output
    assert f"report: {run / 'report.html'}" in output
    case = ElementTree.parse(run / "junit.xml").find(".//testcase[@name='kernel_bits.cat_skip']/error")
    assert case is not None
    assert case.get("type") == "deselected"


@pytest.mark.parametrize(
    ("defect", "finding", "reason"),
    [
        ("q_cat.clone()", "path_proof.cat_skip", "path_not_removed"),
        ("q_cat.roll(1, -1)", "kernel_bits.cat_skip", "bits_differ"),
    ],
    ids=["copy_left_in", "elements_shifted"],
)
def test_a_planted_defect_fails_with_exit_status_1(
    defect: str, finding: str, reason: str, tmp_path: pathlib.Path
) -> None:
    status, findings, output, _ = kernel_tier(tmp_path, "-k", "cat_skip-aiter-torch-m1-h8-bf16", defect=defect)
    assert status == 1, output
    assert (findings[finding]["verdict"], findings[finding]["reason"]) == ("FAIL", reason)
    assert "Rehearsal FAILED" in output


def test_reports_are_made_again_from_the_raw_records_alone(tmp_path: pathlib.Path) -> None:
    _, findings, _, run = kernel_tier(tmp_path, "-k", "torch_tie-aiter-torch-m3-h8-bf16")
    for name in ("findings.json", "report.md", "report.html", "junit.xml"):
        (run / name).unlink()
    command = [sys.executable, "-m", "validation", "report", str(run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 6, result.stderr
    again = json.loads((run / "findings.json").read_text())["findings"]
    assert {f["name"]: f for f in again} == findings
    verify = [sys.executable, "-m", "validation", "verify", str(run)]
    assert subprocess.run(verify, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 0
    document = json.loads((run / "findings.json").read_text())
    document["findings"][0]["verdict"] = "PASS"
    (run / "findings.json").write_text(json.dumps(document))
    assert subprocess.run(verify, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 1


def test_a_run_folder_is_never_written_over(tmp_path: pathlib.Path) -> None:
    kernel_tier(tmp_path, "-k", "torch_tie-aiter-torch-m3-h8-bf16")
    status, _, output, _ = kernel_tier(tmp_path, "-k", "torch_tie-aiter-torch-m3-h8-bf16")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "already holds a run" in output


def test_collecting_alone_makes_no_run(tmp_path: pathlib.Path) -> None:
    status, findings, _, run = kernel_tier(tmp_path, "--collect-only")
    assert (status, findings) == (0, {})
    assert not run.exists()
