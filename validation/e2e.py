"""The end-to-end experiment: blocks of fresh launches, every arm in each, in balanced random order.

Each launch answers the token-identity prompts, in the first blocks the accuracy questions, and every latency scenario.
Everything goes to the journal as it happens; nothing here knows a threshold but what the plan declares.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from validation.arms import Arm, CommandArm, Place, Server, UrlArm, embedded_arm, redacted, reset_caches
from validation.baselines import load_baseline, path_to_record
from validation.budget import Answers, Budget, Costs, costs_of, minutes, plan_budget, prospects
from validation.client import Backend, Job, Prompt, Sampling, remaining, run_load
from validation.client.selftest import self_test
from validation.discovery import load_all
from validation.e2e_plan import BASELINE, CANDIDATE, CONTROL, E2EPlan
from validation.gsm8k import PROMPT_MODES
from validation.judging.accuracy_arms import AccuracyPlan
from validation.judging.latency import LatencyPlan, decide_next, measure_blocks
from validation.judging.tokens import TokensPlan
from validation.options import OptionError, Settings
from validation.profiles import Profile
from validation.records import Journal, Launch, Note, Question, Record, Request, ScenarioRun, read_run
from validation.same_build import read_same_build
from validation.scenario import AccuracyScenario, LatencyScenario, scenario_named

TOKENS_QUESTIONS = 32
"""Prompts of the token-identity check, asked of every launch: seconds, and enough that a planted break shows."""
REHEARSAL_BLOCKS = 3
TELL_EVERY_S = 5.0
SYNC_EVERY_S = 1.0
"""What a failing machine may lose; a killed run loses only the requests in flight."""
MEASURED_BLOCKS = 8
"""Enough for the joint sign-flip test over scenarios, whose smallest p is 2^-8."""
PULL_REQUEST_SCENARIOS = ("1k1k-c4", "1k1k-c16")
"""The seed's ten cost about 47 minutes of decode per arm and run; a pull request gets two of them."""
RELEASE_SCENARIOS = tuple(f"{workload}-c{c}" for workload in ("8k1k", "1k1k") for c in (4, 8, 16, 32, 64))

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which evidence the selected tests ask for; what nobody asked for is not gathered."""

    tokens: bool
    accuracy: bool
    latency: bool


def plan_of(settings: Settings) -> E2EPlan:
    """The plan that the options ask for.

    Raises:
        OptionError: a scenario is unknown, or the questions cannot be loaded.
    """
    embedded = settings.form == "embedded"
    budget = budget_of(settings)
    try:
        scenario = scenario_named(
            settings.accuracy_scenario or ("word-problems" if embedded else "gsm8k"), AccuracyScenario
        )
        latency = tuple(
            scenario_named(name, LatencyScenario).name
            for name in (budget.scenarios if budget else settings.scenarios or _default_scenarios(settings))
        )
        _, questions, digest = scenario.questions_of(settings.gsm8k, settings.questions)
    except ValueError as error:
        raise OptionError(str(error)) from None
    runs = _accuracy_runs(settings)
    single = settings.form == "single"
    usual = budget.latency.max_blocks if budget else REHEARSAL_BLOCKS if embedded else MEASURED_BLOCKS
    blocks = max(settings.blocks or usual, runs)
    accuracy = AccuracyPlan(
        scenario=scenario.name,
        candidate=CANDIDATE,
        reference=None if single else BASELINE,
        extractor=PROMPT_MODES[scenario.prompt_mode].extractor,
        runs=1 if settings.form in ("single", "urls") else runs,
        floor=settings.accuracy_floor,
        questions_sha256=digest,
        prompt_mode=scenario.prompt_mode,
    )
    return E2EPlan(
        form=settings.form,
        arms=tuple(arm.name for arm in arms_of(settings)),
        accuracy_scenario=scenario.name,
        questions=len(questions),
        questions_sha256=digest,
        tokens_scenario=f"{scenario.name}-tokens",
        tokens_questions=min(TOKENS_QUESTIONS, len(questions)),
        latency_scenarios=latency,
        max_blocks=blocks,
        latency_runs=1,
        accuracy=accuracy,
        tokens=TokensPlan(
            BASELINE,
            CANDIDATE,
            CONTROL,
            scenarios=(f"{scenario.name}-tokens",),
            require_determinism=settings.profile is Profile.REHEARSAL,
        ),
        latency=budget.latency if budget else LatencyPlan(scenarios=latency, max_blocks=max(blocks, 3)),
        claimed_difference=("query_path", "command", "weight_version"),
    )


def budget_of(settings: Settings) -> Budget | None:
    """What ``--budget`` buys; None where none was given.

    Raises:
        OptionError: the number of blocks was given too, a duration is not known, or the time is too short.
    """
    if settings.budget_s is None:
        return None
    if settings.blocks is not None:
        raise OptionError("--budget and --blocks were given; expected one of them, the budget chooses the blocks")
    fixed = bool(settings.scenarios) or settings.profile is Profile.RELEASE or settings.form == "embedded"
    names = list(settings.scenarios or _default_scenarios(settings))
    if not fixed:
        names += [name for name in RELEASE_SCENARIOS if name not in names]
    given = settings.form in ("single", "urls")
    arms = 1 if settings.form == "single" else 2
    accuracy = settings.accuracy_scenario or ("word-problems" if settings.form == "embedded" else "gsm8k")
    answers = Answers(accuracy, arms * (1 if given else _accuracy_runs(settings)))
    try:
        declared = {name: scenario_named(name, LatencyScenario).expected_s for name in names}
        costs = Costs({name: seconds for name, seconds in declared.items() if seconds})
        if settings.same_build:
            recorded = costs_of(read_run(settings.same_build), settings.same_build.name, (BASELINE, CANDIDATE))
            costs = dataclasses.replace(recorded, scenario_s={**costs.scenario_s, **recorded.scenario_s})
        if given:
            costs = dataclasses.replace(costs, launch_s=0.0)
        return plan_budget(
            settings.budget_s, names, costs, LatencyPlan(), answers=answers, launches=arms, all_scenarios=fixed
        )
    except ValueError as error:
        raise OptionError(f"--budget: {error}") from None


def _accuracy_runs(settings: Settings) -> int:
    return settings.runs if settings.runs > 1 or settings.profile is not Profile.RELEASE else 3


def _default_scenarios(settings: Settings) -> Sequence[str]:
    if settings.form == "embedded":
        return ("rehearsal-c1", "rehearsal-c8")
    if settings.profile is Profile.RELEASE:
        return RELEASE_SCENARIOS
    return PULL_REQUEST_SCENARIOS


def arms_of(settings: Settings) -> list[Arm]:
    """The arms that the options name; the control, where there is one, comes last."""
    if settings.form == "embedded":
        return [
            embedded_arm(BASELINE, "cat"),
            embedded_arm(CANDIDATE, "skip"),
            embedded_arm(CONTROL, "skip", "--plant", "broken-rope"),
        ]
    key = settings.api_key
    commands = (
        (BASELINE, settings.baseline_cmd, settings.baseline_stop_cmd),
        (CANDIDATE, settings.candidate_cmd, settings.candidate_stop_cmd),
        (CONTROL, settings.control_cmd, settings.control_stop_cmd),
    )
    if settings.candidate_cmd:
        return [CommandArm(name, command, stop, api_key=key) for name, command, stop in commands if command]
    urls = ((BASELINE, settings.baseline_url), (CANDIDATE, settings.server_url))
    return [UrlArm(name, url, api_key=key) for name, url in urls if url]


def arm_order(seed: int, block: int, names: Sequence[str]) -> list[str]:
    """A random order of a block's arms in every even block and its reverse in the next: both come equally often."""
    order = list(names)
    random.Random(f"{seed} {block // 2}").shuffle(order)
    return order if block % 2 == 0 else order[::-1]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run's servers, journal and plan."""

    settings: Settings
    plan: E2EPlan
    folder: pathlib.Path
    journal: Journal
    progress: Progress
    done: Sequence[Record] = ()
    """Records of the run that is resumed."""

    def gather(self, wanted: Wanted) -> None:
        """Measure everything ``wanted``, block by block, until the plan's own rule stops it.

        Raises:
            ArmError: a server does not start, answer or stop.
        """
        records: list[Record] = list(self.done)
        if wanted.latency:
            self.self_test()
        for number in range(self.most_blocks(wanted)):
            records += self.block(number, wanted, records)
            if self.decided(number, wanted, records):
                break
        self.control(wanted, records)

    def block(self, number: int, wanted: Wanted, before: Sequence[Record]) -> list[Record]:
        """Launch every measured arm once, in turn; returns the records it added to ``before``, those so far.

        Raises:
            ArmError: a server does not start, answer or stop.
        """
        arms = {arm.name: arm for arm in arms_of(self.settings) if arm.name != CONTROL}
        written: list[Record] = []
        for position, name in enumerate(arm_order(self.settings.seed, number, list(arms))):
            written += self._launch(arms[name], number, position, wanted, [*before, *written])
        return written

    def complete(self, number: int, wanted: Wanted, records: Sequence[Record]) -> bool:
        """Whether ``records`` hold everything ``wanted`` of a block."""
        launched = {r.arm for r in records if isinstance(r, Launch) and r.block == number}
        arms = {arm.name for arm in arms_of(self.settings)} - {CONTROL}
        return launched >= arms and not any(self._missing(arm, number, wanted, records) for arm in arms)

    def control(self, wanted: Wanted, before: Sequence[Record]) -> list[Record]:
        """Ask the build with a planted break, where there is one, for its tokens; returns what was written."""
        only_tokens = Wanted(tokens=True, accuracy=False, latency=False)
        control = [arm for arm in arms_of(self.settings) if wanted.tokens and arm.name == CONTROL]
        return [record for arm in control for record in self._launch(arm, 0, 0, only_tokens, before)]

    def decided(self, number: int, wanted: Wanted, records: Sequence[Record]) -> bool:
        """Whether no block after ``number`` is needed."""
        return wanted.latency and self._latency_decided(records, number)

    def most_blocks(self, wanted: Wanted) -> int:
        """Blocks to run, if nothing decides earlier."""
        if wanted.latency:
            return self.plan.max_blocks
        # token identity needs a second launch of each arm, to see whether an arm equals itself
        return max(self.plan.accuracy.runs if wanted.accuracy else 1, 2 if wanted.tokens else 1)

    def _latency_decided(self, records: Sequence[Record], block: int) -> bool:
        if len(self.plan.arms) < 2 or block + 1 < self.plan.accuracy.runs:
            return False
        _, blocks = measure_blocks(records, candidate=CANDIDATE, baseline=BASELINE)
        step = decide_next([b for b in blocks if b.scenario in self.plan.latency_scenarios], self.plan.latency)
        self.progress(f"block {block + 1} of at most {self.plan.max_blocks}: {step.sentence}")
        return step.stop

    def self_test(self) -> Record:
        """Measure the client's own error at the plan's largest concurrency, and write it down."""
        most = max(scenario_named(name, LatencyScenario).concurrency for name in self.plan.latency_scenarios)
        self.progress(f"client self-test at {most} streams")
        result = self_test(self._backend, most)
        return self._write(
            Note("self_test", "the client measured its own TPOT error on a fake server", result.to_json())
        )

    @property
    def _backend(self) -> Backend:
        backend: Backend = load_all("scenarios/backends", "BACKEND")[self.settings.backend]
        return backend

    def _launch(self, arm: Arm, block: int, position: int, wanted: Wanted, before: Sequence[Record]) -> list[Record]:
        launch_id = logs = f"b{block}-{arm.name}"
        earlier = [r for r in before if isinstance(r, Launch) and r.arm == arm.name and r.block == block]
        if earlier and not self._missing(arm.name, block, wanted, before):
            return []
        if earlier:  # it goes on where the earlier one was cut off, under its name, in a process of its own
            logs += f"-resumed{len(earlier)}"
        place = Place(self.folder / "logs" / logs, self.settings.gpus)
        written: list[Record] = []
        self.progress(f"block {block + 1}, {arm.name}: starting")
        with arm.session(place, self.progress) as server:
            launch = Launch(
                launch_id, arm.name, block, position, server.url, server.ready_s, arm.fresh, server.identity
            )
            written.append(self._write(launch))
            if earlier:
                written.append(self._write(_continued(launch, before)))
            for activity in self._activities(block, wanted):
                written += self._run(activity, launch, server, before)
            if self.settings.collect_trace and block == 0 and arm.name != CONTROL:
                written.append(self._write(self._profiled(server, arm.name)))
        self.journal.sync()
        return written

    def _profiled(self, server: Server, arm: str) -> Note:
        """The kernels of a short generation of its own, after everything that is timed."""
        from validation.profile_tier import profile_launch
        from validation.trace_tier import claim_of

        folder = self.folder / "traces" / arm
        return profile_launch(server.url, arm, folder, claim_of("cat_skip"), self.settings.api_key)

    def _activities(self, block: int, wanted: Wanted) -> list[_Activity]:
        activities = []
        scenario = scenario_named(self.plan.accuracy_scenario, AccuracyScenario)
        if wanted.tokens or wanted.accuracy:
            _, questions, _ = scenario.questions_of(self.settings.gsm8k, self.plan.questions)
            if wanted.tokens and len(self.plan.arms) > 1:
                some = questions[: self.plan.tokens_questions]
                activities.append(_Activity(self.plan.tokens_scenario, scenario.concurrency, scenario.jobs(some)))
            if wanted.accuracy and block < self.plan.accuracy.runs:
                activities.append(_Activity(scenario.name, scenario.concurrency, scenario.jobs(questions), questions))
        if wanted.latency:
            for name in self.plan.latency_scenarios:
                latency = scenario_named(name, LatencyScenario)
                activities.append(_Activity(name, latency.concurrency, latency.jobs(self.settings.seed, block)))
        return activities

    def _missing(self, arm: str, block: int, wanted: Wanted, before: Sequence[Record]) -> list[str]:
        """Activities of one arm and block that no earlier launch finished."""
        finished = {r.scenario for r in before if isinstance(r, ScenarioRun) and (r.arm, r.block) == (arm, block)}
        return [a.scenario for a in self._activities(block, wanted) if a.scenario not in finished]

    def _run(self, activity: _Activity, launch: Launch, server: Server, before: Sequence[Record]) -> list[Record]:
        where = (launch.arm, launch.block, 0, activity.scenario)
        if any(isinstance(r, ScenarioRun) and (r.arm, r.block, r.run, r.scenario) == where for r in before):
            return []
        written: list[Record] = []
        asked = {r.index for r in before if isinstance(r, Question) and r.scenario == activity.scenario}
        for question in activity.questions:
            if question.index not in asked and launch.block == 0:
                written.append(self._write(question))
        jobs = [
            Job(prompt, sampling, launch.launch_id, launch.arm, launch.block, 0, activity.scenario, index)
            for index, (prompt, sampling) in enumerate(activity.jobs)
        ]
        flushed = reset_caches(server.url, self.settings.api_key)
        started = time.monotonic()
        label = f"block {launch.block + 1}, {launch.arm}, {activity.scenario}"
        counter = _Counter(label, len(jobs), self.progress)
        synced = started

        def on_request(request: Request) -> None:
            nonlocal synced
            written.append(self._write(request))
            counter.add(request)
            if time.monotonic() - synced > SYNC_EVERY_S:
                self.journal.sync()
                synced = time.monotonic()

        left, key = remaining(jobs, before), self.settings.api_key
        client: dict[str, Any] = {}
        if left:  # else the run was cut off between the last request and the summary
            client = run_load(server.url, self._backend, left, activity.concurrency, on_request, api_key=key).to_json()
        summary = ScenarioRun(
            launch_id=launch.launch_id,
            arm=launch.arm,
            block=launch.block,
            run=0,
            scenario=activity.scenario,
            concurrency=activity.concurrency,
            requests=len(jobs),
            prompts_sha256=_digest(activity.jobs),
            cache_flushed=flushed,
            wall_s=round(time.monotonic() - started, 4),
            client=client,
        )
        written.append(self._write(summary))
        self.journal.sync()
        return written

    def _write(self, record: Record) -> Record:
        self.journal.append(record)
        return record


def _continued(launch: Launch, before: Sequence[Record]) -> Note:
    """Says in the report that one launch's figures come from two processes."""
    answered = sum(isinstance(r, Request) and r.launch_id == launch.launch_id for r in before)
    return Note(
        "resumed_launch",
        f"block {launch.block + 1}, {launch.arm}: {answered} requests were answered before the interruption, the rest "
        "after it, by a server started anew unless it was given; figures of this launch are of both",
        {"launch_id": launch.launch_id, "answered_before": answered},
    )


@dataclasses.dataclass(frozen=True)
class _Activity:
    scenario: str
    concurrency: int
    jobs: Sequence[tuple[Prompt, Sampling]]
    questions: Sequence[Question] = ()


class _Counter:
    """Reports a scenario's progress now and then, and its end."""

    def __init__(self, label: str, total: int, progress: Progress) -> None:
        self._label, self._total, self._progress = label, total, progress
        self._started = self._last = time.monotonic()
        self._requests = self._tokens = self._errors = 0

    def add(self, request: Request) -> None:
        self._requests += 1
        self._tokens += request.output_tokens or 0
        self._errors += request.error is not None
        now = time.monotonic()
        if now - self._last < TELL_EVERY_S and self._requests < self._total:
            return
        self._last = now
        passed = max(now - self._started, 1e-9)
        left = passed / self._requests * (self._total - self._requests)
        self._progress(
            f"{self._label}: {self._requests}/{self._total} requests, {self._tokens / passed:.0f} tokens/s, "
            f"{self._errors} errors, {left:.0f} s left"
        )


def _digest(jobs: Sequence[tuple[Prompt, Sampling]]) -> str:
    text = json.dumps([[dataclasses.asdict(prompt), dataclasses.asdict(sampling)] for prompt, sampling in jobs])
    return hashlib.sha256(text.encode()).hexdigest()


def declare(settings: Settings) -> dict[str, Any]:
    """What the run's header says of the end-to-end tier; a recorded baseline is checked here, before anything starts.

    Raises:
        OptionError: an option does not fit.
    """
    plan = plan_of(settings)
    declared: dict[str, Any] = {"claimed_difference": list(plan.claimed_difference)}
    if settings.same_build:
        plan, declared["same_build"] = read_same_build(settings.same_build, plan)
    declared["e2e"] = plan.to_json()
    if settings.baseline:
        declared["baseline"] = load_baseline(settings.baselines, settings.baseline, plan)
    if settings.record:
        path_to_record(settings.baselines, settings.record)
    return declared


def dry_run(settings: Settings) -> str:
    """The plan in sentences: servers, scenarios, blocks, how long they take where that is known, and what they detect.

    Raises:
        OptionError: an option does not fit.
    """
    plan, budget = E2EPlan.from_json(declare(settings)["e2e"]), budget_of(settings)
    lines = [f"form: {plan.form}; arms: {', '.join(plan.arms)}"]
    for arm in arms_of(settings):
        lines.append(
            f"  {arm.name}: {arm.command if isinstance(arm, CommandArm) else redacted(getattr(arm, 'url', ''))}"
        )
    lines.append(
        f"accuracy: {plan.accuracy_scenario}, {plan.questions} questions, {plan.accuracy.runs} launches an arm"
    )
    total = 0.0
    for name in plan.latency_scenarios:
        scenario = scenario_named(name, LatencyScenario)
        known = (
            f"about {scenario.expected_s:.0f} s ({scenario.source})" if scenario.expected_s else "duration not known"
        )
        total += scenario.expected_s or 0.0
        lines.append(f"latency: {name}, {scenario.requests} requests at {scenario.concurrency}, {known}")
    decode_s = max(1, len(set(plan.arms) - {CONTROL})) * plan.max_blocks * total
    decode = f"decode takes about {minutes(decode_s)} in all" if total else "how long they take is not known"
    lines.append(f"at most {plan.max_blocks} blocks; {decode}")
    lines.append(str(plan.latency))
    lines.append(str(budget) if budget else prospects(plan.latency))
    if plan.form in ("single", "urls"):
        lines.append("given servers are not restarted, so what can be detected holds for fresh launches alone")
    return "\n".join(lines)


__all__ = ["BASELINE", "CANDIDATE", "CONTROL", "Experiment", "Wanted", "declare", "dry_run", "plan_of"]
