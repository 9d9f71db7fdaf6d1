"""A finding cannot claim more than its evidence."""

from __future__ import annotations

import itertools

import pytest

from validation.verdicts import ONE_BIT, AuditResult, AuditVerdict, Effect, Evidence, Finding, Verdict, not_run, worst


def make(verdict: Verdict, **changes: object) -> Finding:
    fields: dict[str, object] = {
        "name": "kernel_bits.cat_skip",
        "evidence": Evidence.KERNEL_BITS,
        "verdict": verdict,
        "reason": "equal",
        "sentence": "all bits are equal",
        "records": 3,
        "numbers": {"cells": 3},
        "detectable": ONE_BIT,
    }
    return Finding(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"records": 0}, {"numbers": {}}, {"detectable": None}, {"reason": "All Good"}, {"reason": ""}, {"sentence": " "}],
    ids=["no_records", "no_numbers", "no_detectable_effect", "reason_no_code", "empty_reason", "empty_sentence"],
)
def test_pass_without_its_evidence_cannot_be_made(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="finding"):
        make(Verdict.PASS, **changes)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_decision_needs_records(verdict: Verdict) -> None:
    with pytest.raises(ValueError, match="0 records"):
        make(verdict, records=0)


def test_claims_are_audited_and_not_found() -> None:
    with pytest.raises(ValueError, match="AuditResult"):
        make(Verdict.PASS, evidence=Evidence.CLAIMS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_detectable_effect_is_a_finite_size(value: float) -> None:
    with pytest.raises(ValueError, match="detectable effect"):
        Effect(value, "percent", "90 % power")


def test_findings_and_audits_come_back_from_json() -> None:
    finding = make(Verdict.PASS)
    assert Finding.from_json(finding.to_json()) == finding
    missing = not_run("latency", Evidence.LATENCY, "deselected", "deselected by -k")
    assert Finding.from_json(missing.to_json()) == missing
    audit = AuditResult("change", AuditVerdict.CONSISTENT, "fits", "it fits", {"x": 1})
    assert AuditResult.from_json(audit.to_json()) == audit


def test_json_that_claims_more_than_its_evidence_is_refused() -> None:
    data = make(Verdict.PASS).to_json()
    data["records"] = 0
    with pytest.raises(ValueError, match="0 records"):
        Finding.from_json(data)


def test_the_worst_verdict_decides_in_any_order() -> None:
    order = [Verdict.FAIL, Verdict.NOT_RUN, Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.NOT_APPLICABLE]
    for first, second in itertools.combinations(order, 2):
        assert worst([first, second]) is worst([second, first]) is first
    assert worst([]) is Verdict.NOT_RUN
