"""A judgement as JUnit XML: FAIL is a failure, undecided required evidence an error, NOT_APPLICABLE skipped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from validation import profiles
from validation.judgement import Judgement
from validation.records import KernelCell
from validation.reporting import contents
from validation.reporting.escape import BLOCK_LIMIT, one_line, visible
from validation.verdicts import AuditResult, Evidence, Finding, Verdict


def to_junit(judgement: Judgement) -> str:
    """One suite for each kind of evidence with a case a finding, and one suite of kernel cells."""
    suites: list[ET.Element] = []
    for evidence in Evidence:
        findings = [f for f in judgement.findings if f.evidence is evidence]
        if findings:
            required = profiles.is_required(evidence, judgement.profile)
            suites.append(_suite(evidence.value, [_finding_case(f, required) for f in findings]))
    if judgement.cells:
        suites.append(_suite("kernel_cells", [_cell_case(cell) for cell in judgement.cells]))
    if judgement.audits:
        suites.append(_suite("claims", [_audit_case(audit) for audit in judgement.audits]))
    root = ET.Element("testsuites", {"name": "validation", **_totals(suites)})
    properties = ET.Element("properties")
    for name, value in (
        ("headline", judgement.headline),
        ("profile", judgement.profile.value),
        ("exit_status", str(judgement.exit_status)),
        ("run_id", judgement.run.run_id),
    ):
        ET.SubElement(properties, "property", {"name": name, "value": one_line(value, BLOCK_LIMIT)})
    for suite in suites:
        suite.set("timestamp", one_line(judgement.run.started_utc))
        root.append(suite)
    if suites:
        suites[0].insert(0, properties)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _finding_case(finding: Finding, required: bool) -> ET.Element:
    case = _case(finding.evidence.value, finding.name)
    text = f"{finding.verdict.value} ({finding.reason}): {finding.sentence}"
    if finding.verdict is Verdict.FAIL:
        _outcome(case, "failure", finding.reason, finding.sentence)
    elif finding.verdict is Verdict.NOT_APPLICABLE:
        _outcome(case, "skipped", finding.reason, text)
    elif finding.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_RUN):
        # Evidence that is only reported must not turn a build red, and must not look gathered either.
        _outcome(case, "error" if required else "skipped", finding.reason, text)
    detectable = "" if finding.detectable is None else f"\nSmallest detectable effect: {finding.detectable}"
    ET.SubElement(case, "system-out").text = visible(text + detectable)
    return case


def _cell_case(cell: KernelCell) -> ET.Element:
    case = _case(cell.case, cell.cell, seconds=cell.seconds)
    verdict, why = contents.cell_result(cell)
    if verdict == "FAIL":
        _outcome(case, "failure", "bits_differ", why)
    elif verdict == "NOT_RUN":
        _outcome(case, "error", "not_compared", why)
    elif verdict == "NOT_APPLICABLE":
        _outcome(case, "skipped", "not_applicable", why)
    return case


def _audit_case(audit: AuditResult) -> ET.Element:
    case = _case("claims", audit.name)
    ET.SubElement(case, "system-out").text = visible(f"{audit.verdict.value} ({audit.reason}): {audit.sentence}")
    return case


def _case(classname: str, name: str, seconds: float = 0.0) -> ET.Element:
    return ET.Element("testcase", {"classname": one_line(classname), "name": one_line(name), "time": f"{seconds:.3f}"})


def _outcome(case: ET.Element, tag: str, reason: str, sentence: str) -> None:
    element = ET.SubElement(case, tag, {"type": one_line(reason), "message": one_line(sentence)})
    element.text = visible(sentence)


def _suite(name: str, cases: list[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", {"name": name})
    suite.extend(cases)
    suite.attrib.update(_totals([suite]))
    return suite


def _totals(suites: list[ET.Element]) -> dict[str, str]:
    cases = [case for suite in suites for case in suite.iter("testcase")]
    totals = {"tests": str(len(cases))}
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        totals[attribute] = str(sum(case.find(tag) is not None for case in cases))
    totals["time"] = f"{sum(float(case.get('time', '0')) for case in cases):.3f}"
    return totals
