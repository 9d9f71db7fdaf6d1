"""What every form of the report shows, taken from a judgement: rungs, cells, texts, notes. Decides nothing."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from validation import profiles
from validation.judgement import Judgement
from validation.judging.kernel import CONTROL_PREFIX
from validation.records import KernelCell, Note
from validation.reporting.values import Table, flattened, is_list, shown, tables
from validation.verdicts import EVIDENCE_OF_TIER, Evidence, Finding, Verdict, worst

TITLES: Mapping[Evidence, str] = {
    Evidence.KERNEL_BITS: "Kernel bits",
    Evidence.PATH_PROOF: "Path proof",
    Evidence.DISPATCH: "Dispatch table",
    Evidence.TOKENS: "Tokens",
    Evidence.ACCURACY: "Accuracy",
    Evidence.LATENCY: "Latency",
    Evidence.TRACE: "Trace",
    Evidence.CLAIMS: "Author's figures",
}
SYMBOLS: Mapping[str, str] = {
    "PASS": "✓",
    "FAIL": "✗",
    "INCONCLUSIVE": "?",
    "NOT_RUN": "○",
    "NOT_APPLICABLE": "-",
    "CONSISTENT": "✓",
    "INCONSISTENT": "✗",
    "UNSUPPORTED": "?",
}
"""A shape for each verdict, so that none is told by colour alone."""
WORDS: Mapping[str, str] = {verdict: verdict.replace("_", " ").lower() for verdict in SYMBOLS}
SELF_TEST = "self_test"
"""Topic of the note in which the client records its own error."""
MAX_NOTE_VALUES = 500
"""Values of one note that a report repeats."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """One kind of evidence on the ladder."""

    evidence: Evidence
    required: bool
    verdict: str
    findings: tuple[Finding, ...]
    counts: str
    """Such as ``2 pass, 1 not run``."""

    @property
    def title(self) -> str:
        """The evidence in words."""
        return TITLES[self.evidence]


def ladder(judgement: Judgement) -> tuple[Rung, ...]:
    """A rung for each kind of evidence, gathered or not, claims last."""
    rungs = []
    for evidence in Evidence:
        required = profiles.is_required(evidence, judgement.profile)
        if evidence is Evidence.CLAIMS:
            verdicts = [audit.verdict.value for audit in judgement.audits]
            verdict = next((v for v in ("INCONSISTENT", "UNSUPPORTED", "CONSISTENT") if v in verdicts), "NOT_RUN")
            rungs.append(Rung(evidence, required, verdict, (), _counted(verdicts)))
            continue
        findings = tuple(f for f in judgement.findings if f.evidence is evidence)
        counts = _counted([f.verdict.value for f in findings])
        if not findings and not any(evidence in EVIDENCE_OF_TIER[tier] for tier in judgement.tiers):
            counts = "not part of this run"
        rungs.append(Rung(evidence, required, worst([f.verdict for f in findings]).value, findings, counts))
    return tuple(rungs)


def _counted(verdicts: Sequence[str]) -> str:
    counts = [(verdicts.count(v), WORDS[v]) for v in SYMBOLS if v in verdicts]
    return ", ".join(f"{count} {word}" for count, word in counts) or "none gathered"


def undecided(judgement: Judgement) -> tuple[Finding, ...]:
    """Every finding that was not gathered, does not apply or cannot decide, required or not."""
    settled = (Verdict.PASS, Verdict.FAIL)
    return tuple(f for f in judgement.findings if f.verdict not in settled)


def cell_result(cell: KernelCell) -> tuple[str, str]:
    """A kernel cell's own verdict and reason: its comparisons counted, nothing judged."""
    if not cell.applicable:
        return "NOT_APPLICABLE", cell.reason or "no reason was recorded"
    if not cell.checks:
        return "NOT_RUN", "no tensor was compared"
    bad = [f"{check.name}: {check.detail or 'differs'}" for check in cell.checks if not check.equal]
    blind = [name.partition(": ")[0] for name in bad if name.startswith(CONTROL_PREFIX)]
    bad = [name for name in bad if not name.startswith(CONTROL_PREFIX)]
    if bad:
        return "FAIL", "; ".join(bad)
    if blind:
        return "NOT_RUN", f"vacuous: the planted break {', '.join(blind)} was not seen"
    controls = sum(check.name.startswith(CONTROL_PREFIX) for check in cell.checks)
    seen = f", {controls} planted break{'s' * (controls > 1)} seen" if controls else ""
    return "PASS", f"{len(cell.checks) - controls} comparisons equal{seen}"


@dataclasses.dataclass(frozen=True)
class CellGroup:
    """The kernel cells of one case that the same libraries computed."""

    case: str
    providers: tuple[tuple[str, str], ...]
    """Role and library, with what was found of it."""
    compared: tuple[str, ...]
    """Every tensor or property compared in any of the cells."""
    counts: str
    unsettled: tuple[tuple[str, str, str], ...]
    """Cell, verdict and reason of each that failed or was not compared."""
    settled: tuple[tuple[str, str, str], ...]


def cell_groups(judgement: Judgement) -> tuple[CellGroup, ...]:
    """The kernel cells by case and libraries, in order of appearance."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[KernelCell]] = {}
    for cell in judgement.cells:
        groups.setdefault((cell.case, tuple(cell.providers.items())), []).append(cell)
    made = []
    for (case, providers), cells in groups.items():
        results = [(cell.cell, *cell_result(cell)) for cell in cells]
        compared = dict.fromkeys(check.name for cell in cells for check in cell.checks)
        bad = tuple(result for result in results if result[1] in ("FAIL", "NOT_RUN"))
        good = tuple(result for result in results if result[1] not in ("FAIL", "NOT_RUN"))
        made.append(CellGroup(case, providers, tuple(compared), _counted([r[1] for r in results]), bad, good))
    return tuple(made)


def self_tests(judgement: Judgement) -> tuple[Table, ...]:
    """The client's own error, as it measured it on a server of known step times."""
    return tuple(t for note in judgement.notes if note.topic == SELF_TEST for t in tables(note.data, note.sentence))


def note_data(note: Note) -> Mapping[str, Any]:
    """A note's data, or a word where it is long: a trace's counts belong to the raw records, not to a report."""
    if _leaves(note.data, MAX_NOTE_VALUES) <= MAX_NOTE_VALUES:
        return note.data
    return {"left_out": f"more than {MAX_NOTE_VALUES} values, see the raw records"}


def _leaves(data: Any, limit: int) -> int:
    """How many values ``data`` holds; stops counting above ``limit``."""
    if not isinstance(data, Mapping) and not is_list(data):
        return 1
    count = 1
    for item in data.values() if isinstance(data, Mapping) else data:
        count += _leaves(item, limit - count)
        if count > limit:
            break
    return count


def reproduce(judgement: Judgement) -> str:
    """The one command that makes this run again."""
    return shlex.join(judgement.run.command)


@dataclasses.dataclass(frozen=True)
class Texts:
    """One prompt on which the arms' answers differ: what the finding says of it, and the untrusted texts themselves."""

    label: str
    facts: str
    quoted: tuple[tuple[str, str], ...]


MAX_TEXTS = 50
"""Prompts quoted in full for one kind of evidence; the rest stands in findings.json and the raw records."""
LISTS_OF_PROMPTS = ("flips", "first_divergences")
"""Keys of ``Finding.numbers`` that list the prompts on which the arms differ. An item may hold the texts themselves
(``prompt_text``, ``reference_text``, ``candidate_text``: any key that ends in ``_text``) beside its numbers."""


def discordant_texts(judgement: Judgement) -> Mapping[str, tuple[Texts, ...]]:
    """Evidence to the prompts on which the arms' answers differ, with what the finding says about each."""
    found: dict[str, list[Texts]] = {}
    for finding in judgement.findings:
        for key in LISTS_OF_PROMPTS:
            items = finding.numbers.get(key)
            for item in items if is_list(items) else ():
                if isinstance(item, Mapping):
                    found.setdefault(finding.evidence.value, []).append(_texts(item))
    return {evidence: tuple(texts[:MAX_TEXTS]) for evidence, texts in found.items()}


def _texts(item: Mapping[str, Any]) -> Texts:
    named = [key for key in ("scenario", "question", "prompt") if key in item]
    quoted = [key for key in item if str(key).endswith("_text")]
    others = {key: value for key, value in item.items() if key not in (*named, *quoted)}
    return Texts(
        ", ".join(f"{key} {shown(item[key])}" for key in named) or "a prompt",
        "; ".join(f"{key.replace('_', ' ').replace('.', ', ')} {text}" for key, text in flattened(others)),
        tuple((str(key).removesuffix("_text").replace("_", " "), shown(item[key])) for key in quoted),
    )
