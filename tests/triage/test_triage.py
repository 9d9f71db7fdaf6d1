"""Triage: nothing is cleared without a contradiction that can be named."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.triage import Relation, TableError, as_text, main, read_table, triage

TABLE = read_table()
FORWARD = "python/sglang/srt/models/deepseek_common/attention_forward_methods/forward_mla.py"
BACKEND = "python/sglang/srt/layers/attention/nsa_backend.py"
BOTH = (FORWARD, BACKEND)


@pytest.mark.parametrize(
    ("job", "relation"),
    [
        ("accuracy-test-1-gpu-amd (linux.rocm.gpu.gfx942.1)", Relation.CANNOT),
        ("mla-test-1-gpu-amd", Relation.GATED),
        ("unit-test-backend-8-gpu-amd", Relation.GATED),
        ("unit-test-sgl-kernel-amd", Relation.CANNOT),
        ("nightly-accuracy-8-gpu-mi355", Relation.MAY_TOUCH),
        ("stage-b-test-4-npu-a3", Relation.GATED),
        ("stage-c-test-8-gpu-h200", Relation.GATED),
        ("pr-test-rust", Relation.CANNOT),
        ("lint", Relation.CANNOT),
        ("a-job-nobody-described", Relation.UNKNOWN),
    ],
)
def test_failures_of_the_seed_change(job: str, relation: Relation) -> None:
    (answer,) = triage(BOTH, [job], TABLE).failed
    assert answer.relation is relation, answer.reason


@pytest.mark.parametrize(
    ("evidence", "relation"),
    [
        ("kernel_bits", Relation.CANNOT),
        ("e2e, embedded engine", Relation.CANNOT),
        ("e2e, two builds on gfx95", Relation.TOUCHES),
        ("e2e, two builds on CUDA", Relation.GATED),
        ("dispatch", Relation.TOUCHES),
    ],
)
def test_evidence_that_touches_the_seed_change(evidence: str, relation: Relation) -> None:
    (answer,) = [a for a in triage(BOTH, [], TABLE).evidence if a.name == evidence]
    assert answer.relation is relation, answer.reason


def test_a_shared_file_clears_nobody_who_loads_it() -> None:
    shared = "python/sglang/srt/layers/communicator.py"
    (answer,) = triage([*BOTH, shared], ["accuracy-test-1-gpu-amd"], TABLE).failed
    assert answer.relation is Relation.TOUCHES
    assert answer.reason.startswith("communicator.py, the closest of 3 changed files: ")


def test_an_unknown_file_clears_nobody() -> None:
    answers = triage([*BOTH, "python/sglang/srt/new_module.py"], ["accuracy-test-1-gpu-amd", "lint"], TABLE).failed
    assert {a.relation for a in answers} == {Relation.UNKNOWN}
    assert all("does not know this file" in a.reason for a in answers)


def test_no_changed_file_clears_nobody() -> None:
    (answer,) = triage([], ["lint"], TABLE).failed
    assert answer.relation is Relation.UNKNOWN


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.lists(st.text(max_size=30), max_size=4))
def test_whatever_is_not_in_the_table_is_not_cleared(changed: list[str], failed: list[str]) -> None:
    unheard = [f"unheard-of/{name}.py" for name in changed]
    answer = triage(unheard, failed, TABLE)
    assert {a.relation for a in answer.failed} <= {Relation.UNKNOWN}
    text = as_text(answer)
    assert all(line.isprintable() for line in text.split("\n"))


def test_the_reason_names_the_contradiction() -> None:
    (answer,) = triage([BACKEND], ["stage-c-test-8-gpu-h200"], TABLE).failed
    assert "takes effect for hardware rocm alone, and this runs cuda" in answer.reason


def test_text_counts_what_needs_a_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--changed", *BOTH, "--failed", "lint", "mystery\x1b[2J", "mla-test-1-gpu-amd"]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 failures are excluded; 1 need a look." in said
    assert "\x1b" not in said
    assert said.index("mystery") < said.index("mla-test") < said.index("- lint")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ('{"schema": 2}', "no triage table of schema 1"),
        ('{"schema": 1}', "entry without 'subject'"),
        (
            json.dumps(
                {
                    "schema": 1,
                    "subject": "x",
                    "paths": [
                        {"pattern": "*", "loaded_where": {"hardware": "rocm"}, "effective_where": {}, "why": "x"}
                    ],
                    "jobs": [],
                    "evidence": [],
                }
            ),
            "expected an object of non-empty lists",
        ),
        (json.dumps({"schema": 1, "subject": 3, "paths": [], "jobs": [], "evidence": []}), "expected a text"),
    ],
    ids=["json", "schema", "missing", "conditions", "text"],
)
def test_a_bad_table_gets_one_sentence(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(TableError, match=expected):
        read_table(path)
    assert main(["--changed", "x", "--table", str(path)]) == 4
    assert expected in capsys.readouterr().out
