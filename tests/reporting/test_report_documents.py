"""Every form of the report, of a judgement of every verdict."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import pathlib
import re
import xml.etree.ElementTree as ET
from typing import Any

import cmarkgfm
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import (
    ACCURACY_FAIL,
    AUDITS,
    EXAMPLES,
    HOSTILE,
    LATENCY_INCONCLUSIVE,
    PROPERTY,
    judgement,
    launches,
    passing,
    run,
)

from validation.judgement import Judgement
from validation.records import KernelCell, KernelCheck, Note
from validation.reporting import contents, environment, to_findings_json, to_html, to_junit, to_markdown, write_reports
from validation.reporting.findings_json import SCHEMA_FILE
from validation.reporting.markdown import MAX_BYTES
from validation.verdicts import Evidence, Finding, Verdict, not_run

EACH = pytest.mark.parametrize("name", EXAMPLES)
SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """The tags of a page, its visible text, and whether every tag is closed."""

    VOID = frozenset(
        {"meta", "link", "br", "hr", "img", "input", "circle", "line", "path", "rect", "polyline", "polygon"}
    )

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@EACH
def test_findings_json_fits_the_published_schema(name: str) -> None:
    document = to_findings_json(EXAMPLES[name])
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["findings"][0].update(verdict="MAYBE"),
        lambda d: d["findings"][0].update(records=0),
        lambda d: d["findings"][0].update(detectable=None),
        lambda d: d["findings"][0].update(numbers={}),
        lambda d: d.update(exit_status=2),
        lambda d: d.update(extra=1),
        lambda d: d.pop("headline"),
    ],
    ids=[
        "verdict",
        "pass_without_records",
        "pass_without_effect",
        "pass_without_numbers",
        "status",
        "extra",
        "missing",
    ],
)
def test_schema_refuses_more_than_the_evidence(edit: Any) -> None:
    document = to_findings_json(EXAMPLES["pass"])
    edit(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)


@EACH
def test_findings_round_trip(name: str) -> None:
    document = to_findings_json(EXAMPLES[name])
    for written in document["findings"]:
        assert Finding.from_json(written).name == written["name"]


@EACH
def test_html_is_well_formed_self_contained_and_scriptless(name: str) -> None:
    page = Page(to_html(EXAMPLES[name]))
    assert page.open == []
    assert not {"script", "iframe", "img", "link", "object", "embed", "form", "base"} & set(page.tags)
    names = {attribute for attribute, _ in page.attributes}
    assert not {a for a in names if a.startswith("on")}
    assert "src" not in names
    assert all(value.startswith("#") for attribute, value in page.attributes if attribute == "href")
    assert len(page.ids) == len(set(page.ids))
    assert {value[1:] for attribute, value in page.attributes if attribute == "href"} <= set(page.ids)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "hostile"])
def test_every_form_says_the_headline_every_sentence_and_the_command(name: str) -> None:
    j = EXAMPLES[name]
    page = " ".join(Page(to_html(j)).text.split())
    markdown = Page(cmarkgfm.github_flavored_markdown_to_html(to_markdown(j))).text.replace("\u200b", "")
    for text in (page, markdown):
        assert j.headline in text
        assert all(f.sentence in text for f in j.findings)
        assert all(a.sentence in text for a in j.audits)
        assert contents.reproduce(j) in text


def test_verdict_sentence_comes_first() -> None:
    j = EXAMPLES["fail"]
    assert to_markdown(j).splitlines()[0] == "## ✗ Pull request FAILED: accuracy.gsm8k"
    assert Page(to_html(j)).text.index(j.headline) < 200


def test_no_report_of_a_rehearsal_says_signed_off() -> None:
    j = EXAMPLES["rehearsal"]
    for text in (to_html(j), to_markdown(j), to_junit(j), json.dumps(to_findings_json(j))):
        assert "signed off" not in text.lower()


def test_hostile_text_stays_text_everywhere() -> None:
    j = EXAMPLES["hostile"]
    page = Page(to_html(j))
    assert "<script>alert(1)</script>" in page.text
    for text in (to_html(j), to_markdown(j), to_junit(j)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    rendered = cmarkgfm.github_flavored_markdown_to_html(to_markdown(j))
    markdown = Page(rendered.replace("<details>", "").replace("</details>", ""))
    assert not {"a", "img", "script"} & set(markdown.tags)


def junit_case(text: str, name: str) -> ET.Element:
    (case,) = [case for case in ET.fromstring(text).iter("testcase") if case.get("name") == name]
    return case


def outcome(case: ET.Element) -> tuple[str, str | None]:
    found = [(child.tag, child.get("type")) for child in case if child.tag != "system-out"]
    assert len(found) < 2
    return found[0] if found else ("passed", None)


@pytest.mark.parametrize(
    ("finding", "profile", "expected"),
    [
        (ACCURACY_FAIL, "pr", ("failure", "worse_than_margin")),
        (LATENCY_INCONCLUSIVE, "pr", ("error", "too_little_power")),
        (LATENCY_INCONCLUSIVE, "rehearsal", ("skipped", "too_little_power")),
        (not_run("t", Evidence.TOKENS, "vacuous", "Not seen."), "pr", ("error", "vacuous")),
        (not_run("t", Evidence.TRACE, "no_gpu", "None."), "pr", ("skipped", "no_gpu")),
        (Finding("t", Evidence.TOKENS, Verdict.NOT_APPLICABLE, "stock", "No."), "pr", ("skipped", "stock")),
        (passing(Evidence.TOKENS), "pr", ("passed", None)),
    ],
    ids=[
        "fail",
        "required_inconclusive",
        "reported_inconclusive",
        "required_not_run",
        "reported_not_run",
        "n_a",
        "pass",
    ],
)
def test_junit_outcome_of_a_finding(finding: Finding, profile: str, expected: tuple[str, str | None]) -> None:
    text = to_junit(judgement(finding, profile=profile))
    assert outcome(junit_case(text, finding.name)) == expected


def test_junit_has_a_case_for_each_kernel_cell() -> None:
    text = to_junit(EXAMPLES["fail"])
    assert outcome(junit_case(text, "M1-H8-bf16")) == ("passed", None)
    assert outcome(junit_case(text, "M16-H8-bf16")) == ("failure", "bits_differ")
    assert outcome(junit_case(text, "M1-H8-e4m3fnuz")) == ("skipped", "not_applicable")
    assert outcome(junit_case(text, "M64-H8-bf16")) == ("error", "not_compared")


def test_a_planted_break_that_was_not_seen_is_no_pass() -> None:
    checks = (KernelCheck("q_all", True), KernelCheck("control_unrotated", False, "not seen"))
    cell = KernelCell("cat_skip", "M1", True, "", {}, checks, 0.1)
    assert contents.cell_result(cell)[0] == "NOT_RUN"


@EACH
def test_junit_totals_are_right(name: str) -> None:
    root = ET.fromstring(to_junit(EXAMPLES[name]))
    for suite in [root, *root.iter("testsuite")]:
        cases = list(suite.iter("testcase"))
        assert suite.get("tests") == str(len(cases))
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(attribute) == str(sum(case.find(tag) is not None for case in cases))


def test_differences_between_the_arms_set_the_claimed_one_apart() -> None:
    changed = {"packages": {"torch": "2.12.0"}, "server_args": {"kv_cache_dtype": "bfloat16", "flag": True}}
    j = judgement(launches=launches(**changed))
    found = {d.key: d.kind for d in environment.differences(j)}
    assert found == {
        "query_path": "claimed",
        "packages.torch": "unclaimed",
        "server_args.flag": "unclaimed",
        "port": "varies",
    }
    (flag,) = [d for d in environment.differences(j) if d.key == "server_args.flag"]
    assert flag.values == {"cat": (), "skip": ("yes",)}


def test_a_key_that_one_launch_alone_changes_is_a_difference() -> None:
    changed = list(launches())
    changed[1] = dataclasses.replace(changed[1], identity={**changed[1].identity, "commit": "0f3c2d1"})
    found = {d.key: d.kind for d in environment.differences(judgement(launches=tuple(changed)))}
    assert found["commit"] == "unclaimed"


def test_the_planted_break_is_no_arm_of_the_comparison() -> None:
    control = dataclasses.replace(launches()[0], arm="control", identity={"query_path": "skip", "plant": "broken-rope"})
    j = judgement(launches=(*launches(), control))
    assert "plant" not in {d.key for d in environment.differences(j)}
    assert environment.arms(j.launches) == ("cat", "skip")


def test_what_is_the_same_in_every_launch_is_told_once() -> None:
    shared = {row[0]: row[1] for row in environment.shared_identity(judgement()).rows}
    assert shared == {"packages.torch": "2.13.0+cpu", "server_args.kv_cache_dtype": "bfloat16"}


def test_the_client_tells_its_own_error() -> None:
    for text in (to_html(judgement()), to_markdown(judgement())):
        assert "Client self-test" in text
        assert "0.004" in text


def test_long_notes_stay_in_the_raw_records() -> None:
    counts = Note("trace_counts", "Counted.", {"ranks": [{"kernels": [{"name": "k", "cells": [[1] * 78] * 50}]}]})
    (note,) = to_findings_json(judgement(notes=(counts,)))["notes"]
    assert note["data"] == {"left_out": "more than 500 values, see the raw records"}


def test_long_values_are_cut_in_tables_and_whole_in_findings_json() -> None:
    j = judgement(run=run(declared={"kernel_cells": {"cat_skip": ["M1-H8-bf16"] * 999}, "long": "x" * 9999}))
    assert "x" * 301 not in to_html(j)
    assert to_findings_json(j)["run"]["declared"]["long"] == "x" * 9999


def test_the_same_environment_has_no_difference() -> None:
    same = tuple(dataclasses.replace(launch, identity={"torch": "2.13"}) for launch in launches())
    assert environment.differences(judgement(launches=same)) == ()


def test_markdown_stays_short_whatever_the_run() -> None:
    long = "<" * 5000
    findings = [
        dataclasses.replace(
            passing(Evidence.TOKENS, f"tokens.{i}.{long}"), sentence=long, numbers={long: [{long: long}] * 99}
        )
        for i in range(200)
    ]
    cells = tuple(
        KernelCell(long, f"{long}{i}", True, "", {}, (KernelCheck("q", False, long),), 0.1) for i in range(3000)
    )
    j = Judgement(
        run(declared={f"{long}{i}": long for i in range(900)}, command=(long,) * 99),
        (*findings, ACCURACY_FAIL),
        AUDITS * 99,
        cells=cells,
    )
    text = to_markdown(j)
    assert len(text.encode()) < MAX_BYTES
    assert text.startswith("## ✗ Pull request FAILED: accuracy.gsm8k")
    assert "| Accuracy | required | ✗ fail |" in text
    assert "Left out for length" in text


def test_write_reports_writes_four_files_and_nothing_else(tmp_path: pathlib.Path) -> None:
    j = EXAMPLES["inconclusive"]
    assert write_reports(tmp_path / "run", j) == tmp_path / "run" / "report.html"
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()}
    assert written.keys() == {"report.md", "report.html", "findings.json", "junit.xml"}
    assert json.loads(written["findings.json"]) == to_findings_json(j)
    write_reports(tmp_path / "run", j)
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()} == written


def test_a_crash_leaves_the_old_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reports(tmp_path, EXAMPLES["pass"])
    before = (tmp_path / "report.html").read_bytes()

    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="no space"):
        write_reports(tmp_path, EXAMPLES["fail"])
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


WORDS = st.one_of(st.text(max_size=12), st.sampled_from([HOSTILE, "<b>", "|", "`"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)
PLOTTED = st.sampled_from(
    ["scenarios", "blocks", "flips", "accuracy", "first_divergences", "discordant", "runs", "stalls"]
)


@PROPERTY
@given(st.dictionaries(st.one_of(WORDS, PLOTTED), JSON, max_size=5), st.sampled_from(Evidence), WORDS)
def test_any_numbers_make_a_report(numbers: dict[str, Any], evidence: Evidence, text: str) -> None:
    if evidence is Evidence.CLAIMS:
        evidence = Evidence.LATENCY
    finding = dataclasses.replace(LATENCY_INCONCLUSIVE, evidence=evidence, numbers=numbers, sentence=f"x {text}")
    j = Judgement(run(provenance=numbers, declared=numbers), (finding,))
    jsonschema.validate(to_findings_json(j), SCHEMA, cls=jsonschema.Draft202012Validator)
    page = Page(to_html(j))
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    ET.fromstring(to_junit(j))
    to_markdown(j).encode()
