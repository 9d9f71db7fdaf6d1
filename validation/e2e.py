"""The end-to-end experiment: blocks of fresh launches, every arm in each, in balanced random order.

Each launch answers the token-identity prompts, in the first blocks the accuracy questions, and every latency scenario;
the second launch of an arm in a quadruple block answers the latency scenarios alone.
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

from validation.arms import Arm, Place, Server, ServerChangedError, reset_caches
from validation.builds import differs
from validation.client import Backend, Job, Prompt, Sampling, remaining, run_load
from validation.client.identity import Watch, changes
from validation.client.selftest import self_test
from validation.discovery import load_all
from validation.e2e_plan import BASELINE, CANDIDATE, CONTROL, E2EPlan
from validation.e2e_setup import arms_of
from validation.judging.latency import decide_next, measure_blocks
from validation.options import Settings
from validation.records import Journal, Launch, Note, Question, Record, Request, ScenarioRun
from validation.scenario import AccuracyScenario, LatencyScenario, scenario_named

TELL_EVERY_S = 5.0
SYNC_EVERY_S = 1.0
"""What a failing machine may lose; a killed run loses only the requests in flight."""

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which evidence the selected tests ask for; what nobody asked for is not gathered."""

    tokens: bool
    accuracy: bool
    latency: bool


def arm_order(seed: int, block: int, names: Sequence[str]) -> list[str]:
    """A random order of a block's arms in every even block and its reverse in the next: both come equally often."""
    order = list(names)
    random.Random(f"{seed} {block // 2}").shuffle(order)
    return order if block % 2 == 0 else order[::-1]


def turns(seed: int, block: int, names: Sequence[str], visits: int = 1) -> list[tuple[str, int]]:
    """Arm and number of each launch of a block, in order; the second visits go back the way the first came (ABBA), so
    that drift and position cancel inside the block."""
    order = arm_order(seed, block, names)
    return [(name, visit) for visit in range(visits) for name in (order if visit % 2 == 0 else order[::-1])]


def gpus_of(seed: int, block: int, sets: Sequence[str]) -> str:
    """The set of GPUs of all launches of a block, so that it is the same for both arms; each set comes equally often,
    in random order."""
    order = list(sets) or [""]
    random.Random(f"gpus {seed} {block // len(order)}").shuffle(order)
    return order[block % len(order)]


def launch_name(block: int, arm: str, visit: int = 0) -> str:
    """``b0-candidate``, or ``b0-candidate-2`` for the second of a quadruple."""
    return f"b{block}-{arm}" + (f"-{visit + 1}" if visit else "")


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
        """Launch every measured arm in turn; returns the records it added to ``before``, those so far.

        Raises:
            ArmError: a server does not start, answer or stop.
        """
        arms = {arm.name: arm for arm in arms_of(self.settings) if arm.name != CONTROL}
        written: list[Record] = []
        for position, (name, visit) in enumerate(turns(self.settings.seed, number, list(arms), self._visits(wanted))):
            written += self._launch(arms[name], number, position, wanted, [*before, *written], visit)
        return written

    def complete(self, number: int, wanted: Wanted, records: Sequence[Record]) -> bool:
        """Whether ``records`` hold everything ``wanted`` of a block."""
        launched = {r.launch_id for r in records if isinstance(r, Launch)}
        arms = [arm.name for arm in arms_of(self.settings) if arm.name != CONTROL]
        places = turns(self.settings.seed, number, arms, self._visits(wanted))
        return all(
            launch_name(number, arm, visit) in launched and not self._missing(arm, number, visit, wanted, records)
            for arm, visit in places
        )

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

    def _visits(self, wanted: Wanted) -> int:
        return self.plan.visits if wanted.latency else 1

    def _launch(
        self, arm: Arm, block: int, position: int, wanted: Wanted, before: Sequence[Record], visit: int = 0
    ) -> list[Record]:
        launch_id = logs = launch_name(block, arm.name, visit)
        earlier = [r for r in before if isinstance(r, Launch) and r.launch_id == launch_id]
        if earlier and not self._missing(arm.name, block, visit, wanted, before):
            return []
        if earlier:  # it goes on where the earlier one was cut off, under its name, in a process of its own
            logs += f"-resumed{len(earlier)}"
        place = Place(self.folder / "logs" / logs, gpus_of(self.settings.seed, block, self.settings.gpus or ()))
        written: list[Record] = []
        self.progress(f"block {block + 1}, {arm.name}: starting")
        with arm.session(place, self.progress) as server:
            launch = Launch(
                launch_id, arm.name, block, position, server.url, server.ready_s, arm.fresh, server.identity
            )
            self._refuse_another(launch, before)
            written.append(self._write(launch))
            if earlier:
                written.append(self._write(_continued(launch, before)))
            watch = Watch(server.url, self.settings.api_key)
            for activity in self._activities(block, wanted, visit):
                written += self._run(activity, launch, server, before, watch)
            if self.settings.collect_trace and block == visit == 0 and arm.name != CONTROL:
                written.append(self._write(self._profiled(server, arm.name)))
        self.journal.sync()
        return written

    def _refuse_another(self, launch: Launch, before: Sequence[Record]) -> None:
        """Raise ``ServerChangedError`` where an arm is another build or model than the run declared or saw before."""
        became = ""
        if launch.arm in self.plan.builds:
            became = differs(self.plan.builds[launch.arm], launch.identity.get("build", {}))
        earlier = next((r.identity for r in before if isinstance(r, Launch) and r.arm == launch.arm), {})
        became = became or changes(earlier.get("serves", {}), launch.identity.get("serves", {}))
        if became:
            raise ServerChangedError(
                f"block {launch.block + 1}, {launch.arm}: it is another build than before ({became}); expected one "
                "build for the whole run, measure again"
            )

    def _profiled(self, server: Server, arm: str) -> Note:
        """The kernels of a short generation of its own, after everything that is timed."""
        from validation.profile_tier import profile_launch
        from validation.trace_tier import claim_of

        folder = self.folder / "traces" / arm
        return profile_launch(server.url, arm, folder, claim_of("cat_skip"), self.settings.api_key)

    def _activities(self, block: int, wanted: Wanted, visit: int = 0) -> list[_Activity]:
        activities = []
        scenario = scenario_named(self.plan.accuracy_scenario, AccuracyScenario)
        if visit == 0 and (wanted.tokens or wanted.accuracy):
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

    def _missing(self, arm: str, block: int, visit: int, wanted: Wanted, before: Sequence[Record]) -> list[str]:
        """Activities of one launch that were not finished under its name."""
        name = launch_name(block, arm, visit)
        finished = {r.scenario for r in before if isinstance(r, ScenarioRun) and r.launch_id == name}
        return [a.scenario for a in self._activities(block, wanted, visit) if a.scenario not in finished]

    def _run(
        self, activity: _Activity, launch: Launch, server: Server, before: Sequence[Record], watch: Watch
    ) -> list[Record]:
        where = (launch.launch_id, 0, activity.scenario)
        if any(isinstance(r, ScenarioRun) and (r.launch_id, r.run, r.scenario) == where for r in before):
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
        wall_s = round(time.monotonic() - started, 4)
        became = watch.changed()
        client["server_changed"] = f"{label}: the server became another one ({became})" if became else None
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
            wall_s=wall_s,
            client=client,
        )
        written.append(self._write(summary))
        again = watch.restarted()
        if again and not became:
            sentence = f"{label}: the server was started again ({again}) and names the same model and build"
            written.append(self._write(Note("server_restarted", sentence, {"launch_id": launch.launch_id})))
            self.progress(sentence)
        self.journal.sync()
        if became:
            raise ServerChangedError(f"{client['server_changed']}; what it answered is of both, measure again")
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
