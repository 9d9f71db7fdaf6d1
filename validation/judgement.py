"""From a run's raw records to its judgement: every judge called once. Pure but for ``judge_folder``."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from validation import profiles
from validation.e2e_plan import BASELINE, CANDIDATE, E2EPlan
from validation.gsm8k import SCORERS
from validation.judging import cross_compile, scale_layout
from validation.judging.absolute_saving import absolute_savings, with_savings
from validation.judging.accuracy import judge_accuracy
from validation.judging.accuracy_arms import RecordedAccuracy
from validation.judging.claims import audit, claims_from_json, facts_from_json
from validation.judging.dispatch import judge_dispatch
from validation.judging.kernel import judge_kernels
from validation.judging.latency import PRIMARY, judge_latency, measure_blocks
from validation.judging.single_server import ScenarioBaseline, judge_against_baseline
from validation.judging.tokens import judge_tokens
from validation.judging.tpot import measure_runs, tpot_obstacles
from validation.judging.trace import KernelCount, RankCounts, TraceClaim, judge_trace, unreadable
from validation.profiles import Profile
from validation.records import (
    KernelCell,
    Launch,
    Note,
    PathCount,
    Question,
    Record,
    RecordError,
    Request,
    Run,
    ScenarioRun,
    read_run,
)
from validation.verdicts import AuditResult, Evidence, Finding, Tier, Verdict, not_run

CLIENT_SHARE = 10
"""A latency verdict is refused when the client's own TPOT error exceeds the smallest useful gain divided by this."""


REHEARSAL_MARK = "rehearsal on CUDA"
"""What ``validation.sglang_rehearsal`` makes its servers say of themselves."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A run, judged: all that a report may know."""

    run: Run
    findings: tuple[Finding, ...]
    audits: tuple[AuditResult, ...] = ()
    notes: tuple[Note, ...] = ()
    launches: tuple[Launch, ...] = ()
    cells: tuple[KernelCell, ...] = ()
    paths: tuple[PathCount, ...] = ()

    @property
    def profile(self) -> Profile:
        """The profile that the run declared."""
        return Profile(self.run.profile)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that the run declared."""
        return tuple(Tier(name) for name in self.run.tiers)

    @property
    def exit_status(self) -> int:
        """0, 1 or 6; see ``validation.profiles``."""
        return profiles.exit_status(self.findings, self.profile)

    @property
    def headline(self) -> str:
        """The verdict sentence."""
        return profiles.headline(self.findings, self.profile, self.tiers, self.rehearsed_on)

    @property
    def rehearsed_on(self) -> str:
        """``CUDA`` where a server says that it rehearses there what only ROCm does; else empty."""
        marked = any(REHEARSAL_MARK in json.dumps(dict(launch.identity)) for launch in self.launches)
        return "CUDA" if marked else ""


def judge_folder(folder: pathlib.Path) -> Judgement:
    """Read the raw records of ``folder`` and judge them; raises ``RecordError`` where they cannot be read."""
    return judge_records(read_run(folder))


def judge_records(records: Sequence[Record]) -> Judgement:
    """Every finding of a run, from its records alone.

    Raises:
        RecordError: no header says what was declared.
    """
    headers = [r for r in records if isinstance(r, Run)]
    if not headers:
        raise RecordError("the run has no header record; expected one with what was declared")
    run = headers[0]
    notes = tuple(r for r in records if isinstance(r, Note))
    tiers = [Tier(name) for name in run.tiers]
    findings: list[Finding] = []
    if Tier.KERNEL in tiers:
        findings += _kernel_findings(records, run, notes)
    if Tier.E2E in tiers:
        findings += _e2e_findings(records, run, notes)
    if Tier.TRACE in tiers or any(note.topic.startswith("trace_") for note in notes):
        findings += trace_findings(notes)
    profile = Profile(run.profile)
    return Judgement(
        run=run,
        findings=tuple(profiles.with_missing(findings, profile, tiers)),
        audits=tuple(result for note in notes if note.topic == "claims" for result in _audit(note.data)),
        notes=notes,
        launches=tuple(r for r in records if isinstance(r, Launch)),
        cells=tuple(r for r in records if isinstance(r, KernelCell)),
        paths=tuple(r for r in records if isinstance(r, PathCount)),
    )


def _kernel_findings(records: Sequence[Record], run: Run, notes: Sequence[Note]) -> list[Finding]:
    cells = [r for r in records if isinstance(r, KernelCell)]
    paths = [r for r in records if isinstance(r, PathCount)]
    declared: Mapping[str, Mapping[str, Any]] = run.declared["kernel_cells"]
    missing = {case: note.sentence for note in notes if note.topic == "missing" for case in note.data["cases"]}
    own = {*scale_layout.CASES, cross_compile.CASE}
    plain = {case: declaration for case, declaration in declared.items() if case not in own}
    return [
        *judge_kernels(cells, paths, plain, missing),
        *scale_layout.judge_scale_layout(cells, paths, declared, missing),
        *cross_compile.judge_cross_compile(cells, declared, missing),
        *judge_dispatch(records),
    ]


_EvidenceJudge = Callable[[Sequence[Record], E2EPlan, Mapping[str, Any]], list[Finding]]


def _e2e_findings(records: Sequence[Record], run: Run, notes: Sequence[Note]) -> list[Finding]:
    plan = E2EPlan.from_json(run.declared["e2e"])
    selected = next((note.data for note in notes if note.topic == "selected"), {})
    findings: list[Finding] = []
    judges: tuple[tuple[Evidence, _EvidenceJudge], ...] = (
        (Evidence.TOKENS, _token_findings),
        (Evidence.ACCURACY, _accuracy_findings),
        (Evidence.LATENCY, _latency_findings),
    )
    for evidence, judge in judges:
        if selected.get(evidence.value, True):
            findings += judge(records, plan, run.declared)
        else:
            findings.append(
                not_run(evidence.value, evidence, "deselected", f"the {evidence.value} test was deselected")
            )
    trouble = _arm_trouble(notes)
    return [_cut_short(finding, trouble) for finding in findings] if trouble else findings


def _token_findings(records: Sequence[Record], plan: E2EPlan, declared: Mapping[str, Any]) -> list[Finding]:
    if BASELINE not in plan.arms:
        sentence = "one server was given, so there is no second one whose tokens could differ"
        return [Finding("tokens.identity", Evidence.TOKENS, Verdict.NOT_APPLICABLE, "one_server", sentence)]
    requests = [r for r in records if isinstance(r, Request) and r.scenario == plan.tokens_scenario]
    return judge_tokens(requests, plan.tokens)


def _accuracy_findings(records: Sequence[Record], plan: E2EPlan, declared: Mapping[str, Any]) -> list[Finding]:
    requests = [r for r in records if isinstance(r, Request) and r.scenario == plan.accuracy_scenario]
    questions = [r for r in records if isinstance(r, Question) and r.scenario == plan.accuracy_scenario]
    recorded = declared.get("baseline", {}).get("accuracy")
    same_build = declared.get("same_build", {}).get("accuracy")
    accuracy = plan.accuracy
    if recorded is not None:
        accuracy = dataclasses.replace(accuracy, model=str(recorded["model"]))
    return judge_accuracy(
        requests,
        questions,
        accuracy,
        SCORERS,
        launches=[r for r in records if isinstance(r, Launch)],
        baseline=None if recorded is None else RecordedAccuracy.from_json(recorded),
        same_build=None if same_build is None else RecordedAccuracy.from_json(same_build),
    )


def _latency_findings(records: Sequence[Record], plan: E2EPlan, declared: Mapping[str, Any]) -> list[Finding]:
    wanted = [r for r in records if not isinstance(r, Request | ScenarioRun) or r.scenario in plan.latency_scenarios]
    error = _client_error(records, plan)
    if BASELINE in plan.arms:
        runs, blocks = measure_blocks(wanted, candidate=CANDIDATE, baseline=BASELINE)
        same_build = declared.get("same_build", {}).get("latency")
        findings = judge_latency(
            blocks, plan.latency, runs=runs, same_build=None if same_build is None else Finding.from_json(same_build)
        )
        concurrency = {r.scenario: r.concurrency for r in wanted if isinstance(r, ScenarioRun)}
        savings = absolute_savings(runs, concurrency, CANDIDATE, BASELINE)
        findings = [with_savings(finding, savings) if finding.name == PRIMARY else finding for finding in findings]
    else:
        runs = measure_runs(wanted, CANDIDATE)
        latency = declared.get("baseline", {}).get("latency", {})
        recorded = {name: ScenarioBaseline(**values) for name, values in latency.items()}
        findings = judge_against_baseline(runs, recorded, plan.latency)
    without = tpot_obstacles(r for r in wanted if isinstance(r, Request))
    findings = [_with_obstacles(finding, without) for finding in findings] if without else findings
    return [_refused(finding, error) for finding in findings] if error else findings


def _with_obstacles(finding: Finding, without: Mapping[str, int]) -> Finding:
    """A finding for which nothing was there to judge says why requests had no TPOT."""
    if finding.verdict is not Verdict.NOT_RUN:
        return finding
    told = ", ".join(f"{count} for {reason}" for reason, count in without.items())
    return dataclasses.replace(finding, sentence=f"{finding.sentence} Requests without a TPOT: {told}.")


def _client_error(records: Sequence[Record], plan: E2EPlan) -> str:
    """Why the client is too inexact for the declared gain; empty where it is exact enough."""
    bound = plan.latency.smallest_useful_gain_percent / CLIENT_SHARE
    tests = [r.data for r in records if isinstance(r, Note) and r.topic == "self_test"]
    if not tests:
        return "the client was not tested on a server of known step times"
    # every host tests its own client; the worst of them decides
    biases = [test["tpot_bias_percent"] for test in tests]
    bias = None if None in biases else max(biases, key=abs)
    if bias is None or abs(bias) > bound:
        return f"the client's own TPOT error is {bias} %, more than {bound:g} %, a tenth of the smallest useful gain"
    return ""


def _arm_trouble(notes: Sequence[Note]) -> Note | None:
    """The note of an arm that failed since the run was last resumed; None where none did."""
    since = max((place for place, note in enumerate(notes) if note.topic == "resumed"), default=0)
    return next((note for note in notes[since:] if note.topic == "arm_failed"), None)


def _cut_short(finding: Finding, trouble: Note) -> Finding:
    """Less was measured than declared, so nothing passes; and of a server that changed nothing can be said at all."""
    changed = trouble.data.get("reason") == "server_changed"
    spoilt = (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE) if changed else (Verdict.PASS,)
    if finding.verdict not in spoilt:
        return finding
    reason, told = ("server_changed", "") if changed else ("arm_failed", "an arm failed: ")
    sentence = f"{told}{trouble.sentence}; {finding.sentence}"
    return dataclasses.replace(finding, verdict=Verdict.INCONCLUSIVE, reason=reason, sentence=sentence)


def _refused(finding: Finding, error: str) -> Finding:
    if finding.verdict not in (Verdict.PASS, Verdict.FAIL):
        return finding
    numbers = {**finding.numbers, "refused_verdict": finding.verdict.value, "refused_reason": finding.reason}
    return dataclasses.replace(
        finding,
        verdict=Verdict.INCONCLUSIVE,
        reason="client_error",
        sentence=f"{error}; {finding.sentence}",
        numbers=numbers,
    )


def trace_findings(notes: Sequence[Note]) -> list[Finding]:
    """What the counted traces among ``notes`` show; nothing where an arm has none."""
    broken = [note for note in notes if note.topic == "trace_unreadable"]
    if broken:
        return [unreadable(note.data["arm"], note.sentence) for note in broken]
    absent = [note for note in notes if note.topic in ("trace_without_kernels", "trace_not_collected")]
    if absent:
        reason = absent[0].topic.removeprefix("trace_")
        return [not_run("trace.removed_kernel", Evidence.TRACE, reason, absent[0].sentence)]
    counts = {note.data["arm"]: note.data for note in notes if note.topic == "trace_counts"}
    if set(counts) != {BASELINE, CANDIDATE}:
        return []
    arms = [[_rank_counts(rank) for rank in counts[arm]["ranks"]] for arm in (BASELINE, CANDIDATE)]
    return judge_trace(TraceClaim(**counts[BASELINE]["claim"]), *arms)


def _rank_counts(data: Mapping[str, Any]) -> RankCounts:
    return RankCounts(**{**data, "kernels": tuple(KernelCount(**kernel) for kernel in data["kernels"])})


def _audit(data: Mapping[str, Any]) -> list[AuditResult]:
    facts = data["facts"]
    return audit(
        claims_from_json(data["claims"], data["file"]),
        None if facts is None else facts_from_json(facts, data["facts_file"]),
    )
