"""A judgement as Markdown for a pull request comment and a CI job summary: verdict, ladder, then the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from validation.judgement import Judgement
from validation.reporting import contents, environment, values
from validation.reporting.contents import SYMBOLS, WORDS
from validation.reporting.escape import BLOCK_LIMIT, markdown, markdown_block, markdown_code
from validation.verdicts import Finding

MAX_BYTES = 60_000
"""GitHub refuses a comment of more than 65,536 characters (REST API, issue comments); some room is left to a header."""
MAX_LISTED = 40
"""Rows of one table; a reviewer reads the rest in report.html."""


def to_markdown(judgement: Judgement) -> str:
    """The report, of fewer than ``MAX_BYTES`` bytes whatever the run; sections that do not fit are named at the end."""
    parts: list[str] = []
    left_out: list[str] = []
    used = 0
    for title, lines in _sections(judgement):
        if not lines:
            continue
        text = "\n".join([*([f"### {title}", ""] if title else []), *lines, "", ""])
        size = len(text.encode())
        if used + size > MAX_BYTES - 1000:
            left_out.append(title)
            continue
        used += size
        parts.append(text)
    if left_out:
        parts.append(f"Left out for length, see `report.html`: {', '.join(left_out)}.\n")
    return "".join(parts)


def _sections(judgement: Judgement) -> Iterator[tuple[str, list[str]]]:
    yield "", [_headline(judgement), "", *_ladder(judgement)]
    yield "Findings", list(_findings(judgement.findings))
    yield "Not run, or not decided", list(_undecided(contents.undecided(judgement)))
    yield "Numbers", list(_numbers(judgement.findings))
    yield "Kernel cells", list(_cells(judgement))
    yield "Author's figures, re-derived (does not gate)", list(_audits(judgement))
    yield "Differences between the arms", list(_differences(judgement))
    yield "What was compared", list(_key_values(values.flattened(judgement.run.provenance)))
    yield "Thresholds, declared before the run", list(_key_values(values.flattened(judgement.run.declared)))
    yield (
        "Client self-test",
        [
            line
            for table in contents.self_tests(judgement)
            for line in (f"{markdown(table.title)}:", "", *_key_values((row[0], row[1]) for row in table.rows), "")
        ],
    )
    yield "Notes", [f"- **{markdown(note.topic)}**: {markdown(note.sentence)}" for note in judgement.notes[:MAX_LISTED]]
    yield "How to reproduce", [markdown_block(contents.reproduce(judgement), BLOCK_LIMIT)]


def _headline(judgement: Judgement) -> str:
    mark = {0: "PASS", 1: "FAIL"}.get(judgement.exit_status, "INCONCLUSIVE")
    return f"## {SYMBOLS[mark]} {markdown(judgement.headline, 1000)}"


def _ladder(judgement: Judgement) -> Iterator[str]:
    run = judgement.run
    yield (
        f"Run {markdown_code(run.run_id)}, {markdown_code(run.started_utc)}, profile {judgement.profile.value}, "
        f"exit status {judgement.exit_status}."
    )
    yield ""
    rows = [
        (rung.title, "required" if rung.required else "reported", _verdict(rung.verdict), rung.counts)
        for rung in contents.ladder(judgement)
    ]
    yield from _table(("evidence", "in this profile", "verdict", "findings"), rows)


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    rows = [
        (
            _verdict(f.verdict.value),
            markdown_code(f.name),
            markdown_code(f.reason),
            markdown(f.sentence, 600),
            "" if f.detectable is None else markdown(str(f.detectable)),
        )
        for f in findings
    ]
    yield from _table(("verdict", "finding", "reason", "in words", "smallest detectable effect"), rows)


def _undecided(findings: Sequence[Finding]) -> Iterator[str]:
    for f in findings[:MAX_LISTED]:
        yield f"- {_verdict(f.verdict.value)} {markdown_code(f.name)} ({markdown(f.reason)}): {markdown(f.sentence)}"
    if len(findings) > MAX_LISTED:
        yield f"- and {len(findings) - MAX_LISTED} more in `report.html`"


def _numbers(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        laid_out = values.tables(finding.numbers, finding.name)
        if not laid_out or finding.verdict.value == "NOT_APPLICABLE":
            continue
        yield f"<details><summary>{markdown(finding.name)}</summary>"
        yield ""
        for table in laid_out:
            if table.title and table.title != finding.name:
                yield f"{markdown(table.title)}:"
                yield ""
            rows = [tuple(markdown(cell, 120) for cell in row[:12]) for row in table.rows]
            yield from _table([markdown(column, 60) for column in table.columns[:12]], rows, table.more)
            yield ""
        yield "</details>"
        yield ""


def _cells(judgement: Judgement) -> Iterator[str]:
    groups = contents.cell_groups(judgement)
    for group in groups:
        libraries = "; ".join(f"{role}: {provider}" for role, provider in group.providers)
        yield f"- {markdown_code(group.case)}: {group.counts}. {markdown(libraries, 600)}"
    rows = [
        (_verdict(verdict), markdown_code(group.case), markdown_code(cell), markdown(why))
        for group in groups
        for cell, verdict, why in (*group.unsettled, *(row for row in group.settled if row[1] != "PASS"))
    ]
    if rows:
        yield ""
        yield from _table(("result", "case", "cell", "why"), rows)


def _audits(judgement: Judgement) -> Iterator[str]:
    rows = [(_verdict(a.verdict.value), markdown_code(a.name), markdown(a.sentence, 600)) for a in judgement.audits]
    if rows:
        yield from _table(("verdict", "claim", "in words"), rows)


def _differences(judgement: Judgement) -> Iterator[str]:
    names = environment.arms(judgement.launches)
    found = environment.differences(judgement)
    if len(names) < 2:
        yield "Fewer than two arms were launched."
        return
    if not found:
        yield "None was found in what the arms say of themselves."
        return
    rows = [
        (
            f"**{d.kind}**" if d.kind == "unclaimed" else d.kind,
            markdown_code(d.key, 120),
            *(", ".join(markdown_code(value, 120) for value in d.values[arm][:4]) or "absent" for arm in names),
        )
        for d in found
    ]
    yield from _table(("difference", "key", *(markdown(name, 60) for name in names)), rows)


def _key_values(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = [(markdown(key, 120), markdown(value)) for key, value in pairs]
    if rows:
        yield from _table(("key", "value"), rows)


def _verdict(verdict: str) -> str:
    return f"{SYMBOLS[verdict]} {WORDS[verdict]}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], more: int = 0) -> Iterator[str]:
    """GitHub's table syntax; the cells are Markdown already."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows[:MAX_LISTED]:
        yield f"| {' | '.join(row)} |"
    more += max(0, len(rows) - MAX_LISTED)
    if more:
        yield ""
        yield f"{more} more rows in `report.html` or `findings.json`."
