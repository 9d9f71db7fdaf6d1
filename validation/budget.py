"""What a time budget buys: which scenarios, how many blocks, and what those could detect. Pure.

Durations come from a recorded run where there is one (``costs_of``), else from what the scenarios declare. What nobody
recorded is named in the plan's sentences, never guessed in silence.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from validation.judging.latency_design import LatencyPlan, LaunchSd
from validation.judging.plan_latency import LatencyDesign, block_seconds, plan_latency, scenarios_for_budget
from validation.judging.tpot import measure_runs
from validation.judging.variance import components
from validation.records import Launch, Record, ScenarioRun

ASSUMED_LAUNCH_S = 58.0
"""Where no launch was recorded: the longest of our later starts of a small GLM-5 under SGLang on one H200 (44 to 58 s;
the first, which compiles, took 161 s)."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """How long the parts of an experiment take, as far as it is known."""

    scenario_s: Mapping[str, float]
    """One pass of a scenario, latency or accuracy, by name."""
    launch_s: float | None = None
    """Of one server, until it is ready; 0 for one that is not started."""
    launch_sd: LaunchSd | None = None
    source: str = "the scenarios' declarations"


def costs_of(records: Sequence[Record], source: str, arms: Sequence[str]) -> Costs:
    """Of a run whose ``arms`` are one build: medians of its launches and of each scenario, and its launch sd."""
    walls: dict[str, list[float]] = defaultdict(list)
    for r in records:
        if isinstance(r, ScenarioRun):
            walls[r.scenario].append(r.wall_s)
    ready = [r.ready_s for r in records if isinstance(r, Launch) and r.fresh]
    runs = [run for arm in arms for run in measure_runs(records, arm)]
    spread = components(runs) if runs else None
    launch_sd = None
    if ready and spread is not None and spread.launch_sd_percent is not None:
        launch_sd = LaunchSd(spread.launch_sd_percent, spread.launches, source)
    return Costs(
        {name: statistics.median(seconds) for name, seconds in walls.items()},
        statistics.median(ready) if ready else None,
        launch_sd,
        source,
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """The accuracy questions beside the latency scenarios."""

    scenario: str
    launches: int
    """Launches that are asked them, over all arms."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the budget buys; ``str`` gives the sentences for people."""

    budget_s: float
    scenarios: tuple[str, ...]
    left_out: tuple[str, ...]
    """Scenarios that the budget has no room for."""
    design: LatencyDesign
    latency: LatencyPlan
    """The plan to declare: ``design``'s, on these scenarios."""
    answers_s: float | None
    """For the accuracy questions; None where nobody recorded it."""
    notes: tuple[str, ...]

    @property
    def longest_s(self) -> float:
        """At most, answers included where they are known."""
        return (self.design.longest_s or 0.0) + (self.answers_s or 0.0)

    def __str__(self) -> str:
        left_out = f"; no room for {', '.join(self.left_out)}" if self.left_out else ""
        return "\n".join(
            [
                f"Budget of {minutes(self.budget_s)}: {', '.join(self.scenarios)}, at most {self.latency.max_blocks}"
                f" blocks of {minutes(self.design.block_s or 0.0)}, {minutes(self.longest_s)} in all{left_out}.",
                str(self.design),
                *self.notes,
            ]
        )


def plan_budget(
    budget_s: float,
    wanted: Sequence[str],
    costs: Costs,
    base: LatencyPlan,
    *,
    answers: Answers,
    launches: int = 2,
    all_scenarios: bool = False,
) -> Budget:
    """The scenarios and blocks that fit ``budget_s``.

    First as many of ``wanted``, in their order, as leave room for the blocks that show ``base.planned_gain_percent``,
    and one at least; then as many blocks as there is time for.

    Args:
        budget_s: time there is, in seconds.
        wanted: latency scenarios, the most important first.
        costs: what the parts take.
        base: thresholds; its design, blocks and scenarios are replaced.
        answers: the accuracy questions, whose time comes off the budget.
        launches: in a block; one an arm, or two in a quadruple.
        all_scenarios: drop none of ``wanted``, whatever is left for blocks.

    Raises:
        ValueError: a scenario's duration is not known, or the budget is too small for a first look.
    """
    unknown = [name for name in wanted if name not in costs.scenario_s]
    if unknown or not wanted:
        raise ValueError(
            f"how long {', '.join(unknown) or 'no scenario'} takes is not recorded; expected scenarios of known "
            "duration, give --same-build with a run that measured them, or --blocks instead"
        )
    launch_s = ASSUMED_LAUNCH_S if costs.launch_s is None else costs.launch_s
    of_both = max(launches, 2)  # a single server is compared with recorded launches, one a block
    one_s = costs.scenario_s.get(answers.scenario)
    answers_s = None if one_s is None else answers.launches * one_s
    left_s = budget_s - (answers_s or 0.0)
    seconds = {name: costs.scenario_s[name] for name in wanted}
    chosen = tuple(seconds)
    if not all_scenarios:
        needed = plan_latency(costs.launch_sd, base, launches_per_block=of_both).needed_blocks
        chosen = scenarios_for_budget(left_s * 2 / launches, needed, launch_s, seconds)
    block_s = block_seconds(launch_s, {name: seconds[name] for name in chosen}, launches=launches)
    design = plan_latency(costs.launch_sd, base, launches_per_block=of_both, block_s=block_s, budget_s=max(left_s, 0.0))
    if design.plan is None:
        least_s = LatencyPlan.min_blocks * block_s + (answers_s or 0.0)
        raise ValueError(
            f"a budget of {minutes(budget_s)} buys {design.max_blocks} blocks of {', '.join(chosen)}, too few for a "
            f"first look; expected at least {minutes(least_s)}, or quicker scenarios"
        )
    plan = dataclasses.replace(design.plan, scenarios=chosen, recorded_launch_sd=costs.launch_sd)
    left_out = tuple(name for name in wanted if name not in chosen)
    return Budget(budget_s, chosen, left_out, design, plan, answers_s, _notes(costs, answers, answers_s))


def _notes(costs: Costs, answers: Answers, answers_s: float | None) -> tuple[str, ...]:
    notes = [f"Durations from {costs.source}."]
    if costs.launch_s is None:
        notes.append(
            f"How long a launch takes is not recorded: {ASSUMED_LAUNCH_S:.0f} s assumed, as a small model on one H200; "
            "a large one takes up to 40 min. Give --same-build to plan with what was recorded."
        )
    if answers_s is None:
        notes.append(f"How long {answers.scenario} takes is not recorded: its {answers.launches} passes come on top.")
    else:
        notes.append(f"Of it {minutes(answers_s)} for {answers.scenario}, {answers.launches} passes.")
    return tuple(notes)


def prospects(plan: LatencyPlan, launches: int = 2) -> str:
    """What ``plan`` could detect in its blocks of ``launches`` fresh launches, for a run without a budget."""
    design = plan_latency(
        plan.recorded_launch_sd, plan, launches_per_block=launches, block_s=1.0, budget_s=float(plan.max_blocks)
    )
    if design.plan is None or design.detectable is None:
        return f"{plan.max_blocks} blocks are too few for a first look: no latency verdict can come of it."
    return (
        f"Launch sd {design.launch_sd_percent:.2f} % ({design.source}): power {100 * design.power:.0f} % for a gain of "
        f"{plan.planned_gain_percent:g} %; smallest detectable gain {design.detectable}. "
        f"{design.needed_blocks} blocks at most are needed for {100 * plan.power:g} % power."
    )


def minutes(seconds: float) -> str:
    """``90 min``, or ``45 s`` below two minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
