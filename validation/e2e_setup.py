"""What the options ask of an end-to-end run: its plan, its arms, and both in sentences before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from validation.arms import READY_TIMEOUT_S, Arm, CommandArm, UrlArm, embedded_arm, redacted
from validation.baselines import load_baseline, path_to_record
from validation.budget import Answers, Budget, Costs, costs_of, minutes, plan_budget, prospects
from validation.builds import Build, is_one_build, said
from validation.e2e_plan import BASELINE, CANDIDATE, CONTROL, E2EPlan
from validation.gsm8k import PROMPT_MODES
from validation.judging.accuracy_arms import AccuracyPlan
from validation.judging.latency import LatencyPlan
from validation.judging.tokens import TokensPlan
from validation.options import OptionError, Settings
from validation.profiles import Profile
from validation.records import RecordError, read_run
from validation.same_build import read_same_build, shows_position_effect
from validation.scenario import AccuracyScenario, LatencyScenario, scenario_named

TOKENS_QUESTIONS = 32
"""Prompts of the token-identity check, asked of every launch: seconds, and enough that a planted break shows."""
REHEARSAL_BLOCKS = 3
MEASURED_BLOCKS = 8
"""Enough for the joint sign-flip test over scenarios, whose smallest p is 2^-8."""
PULL_REQUEST_SCENARIOS = ("1k1k-c4", "1k1k-c16")
"""The seed's ten cost about 47 minutes of decode per arm and run; a pull request gets two of them."""
CLAIMED = (
    *("query_path", "command", "weight_version"),
    *(f"build.{key}" for key in ("worktree", "commit", "dirty", "changes_sha256", "image")),
)
"""What two arms may differ in; other package versions, say, are told in the report as an unclaimed difference."""
RELEASE_SCENARIOS = tuple(f"{workload}-c{c}" for workload in ("8k1k", "1k1k") for c in (4, 8, 16, 32, 64))


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
        claimed_difference=CLAIMED,
        visits=_visits(settings),
        builds=_builds(settings),
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
        launches = arms * _visits(settings)
        return plan_budget(
            settings.budget_s, names, costs, LatencyPlan(), answers=answers, launches=launches, all_scenarios=fixed
        )
    except ValueError as error:
        raise OptionError(f"--budget: {error}") from None


def _visits(settings: Settings) -> int:
    """Launches of an arm in a block: as asked for, else as the recorded same-build run advises."""
    if settings.block_design:
        return 2 if settings.block_design == "quadruple" else 1
    advised = settings.same_build is not None and settings.form in ("commands", "embedded")
    return 2 if advised and settings.same_build and shows_position_effect(read_run(settings.same_build)) else 1


def _builds(settings: Settings) -> dict[str, Any]:
    """Arm to what its build is now.

    Raises:
        OptionError: a build cannot be read, or both arms are one and the run is no rehearsal.
    """
    given = ((BASELINE, settings.baseline_build), (CANDIDATE, settings.candidate_build))
    try:
        builds = {arm: build.identity() for arm, build in given if build}
    except ValueError as error:
        raise OptionError(str(error)) from None
    one = len(builds) == 2 and is_one_build(builds[BASELINE], builds[CANDIDATE])
    if one and settings.baseline_cmd == settings.candidate_cmd and settings.profile is not Profile.REHEARSAL:
        raise OptionError(
            f"baseline and candidate are one build ({said(builds[CANDIDATE])}) with one command; expected two, or "
            "--gate=rehearsal to record for --same-build how much launches of one build differ (A/A)"
        )
    # servers write files where they run: a new one must not forbid to resume
    return {arm: {key: value for key, value in build.items() if key != "dirty"} for arm, build in builds.items()}


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
        embedded = [
            embedded_arm(BASELINE, "cat"),
            embedded_arm(CANDIDATE, "skip"),
            embedded_arm(CONTROL, "skip", "--plant", "broken-rope"),
        ]
        wait_s = settings.ready_timeout_s
        return [dataclasses.replace(arm, ready_timeout_s=wait_s or arm.ready_timeout_s) for arm in embedded]
    key, theirs, ours = settings.api_key, settings.baseline_build or Build(), settings.candidate_build or Build()
    commands = (
        (BASELINE, settings.baseline_cmd, settings.baseline_stop_cmd, theirs),
        (CANDIDATE, settings.candidate_cmd, settings.candidate_stop_cmd, ours),
        (CONTROL, settings.control_cmd, settings.control_stop_cmd, ours),
    )
    if settings.candidate_cmd:
        wait_s = settings.ready_timeout_s or READY_TIMEOUT_S
        return [
            CommandArm(name, command, stop, wait_s, build=build, api_key=key)
            for name, command, stop, build in commands
            if command
        ]
    urls = ((BASELINE, settings.baseline_url), (CANDIDATE, settings.server_url))
    return [UrlArm(name, url, api_key=key) for name, url in urls if url]


def declare(settings: Settings) -> dict[str, Any]:
    """What the run's header says of the end-to-end tier; a recorded baseline is checked here, before anything starts.

    Raises:
        OptionError: an option does not fit.
    """
    try:
        plan = plan_of(settings)
        declared: dict[str, Any] = {"claimed_difference": list(plan.claimed_difference)}
        if settings.same_build:
            plan, declared["same_build"] = read_same_build(settings.same_build, plan)
    except RecordError as error:
        raise OptionError(f"--same-build: {error}") from None
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
        build = said(plan.builds.get(arm.name, {}))
        lines.append(
            f"  {arm.name}: {arm.command if isinstance(arm, CommandArm) else redacted(getattr(arm, 'url', ''))}"
            f"{f' ({build})' if build else ''}"
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
    decode_s = max(1, len(set(plan.arms) - {CONTROL})) * plan.visits * plan.max_blocks * total
    decode = f"decode takes about {minutes(decode_s)} in all" if total else "how long they take is not known"
    blocks = "quadruple blocks, ABBA or BAAB" if plan.visits == 2 else "blocks"
    lines.append(f"at most {plan.max_blocks} {blocks}; {decode}")
    lines.append(str(plan.latency))
    lines.append(str(budget) if budget else prospects(plan.latency, max(2, 2 * plan.visits)))
    if plan.form in ("single", "urls"):
        lines.append("given servers are not restarted, so what can be detected holds for fresh launches alone")
    return "\n".join(lines)
