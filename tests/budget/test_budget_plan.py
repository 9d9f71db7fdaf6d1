"""A time budget chooses scenarios and blocks, says what they could detect, and refuses what it cannot plan."""

from __future__ import annotations

import pytest

from validation.budget import ASSUMED_LAUNCH_S, Answers, Costs, costs_of, plan_budget, prospects
from validation.judging.latency_design import LatencyPlan, LaunchSd
from validation.judging.plan_latency import block_seconds
from validation.records import Launch, Record, Request, ScenarioRun

SECONDS = {"a": 100.0, "b": 200.0, "c": 400.0}
ANSWERS = Answers("gsm8k", 2)
QUIET = LaunchSd(0.1, 24, "an A/A run")
HOUR = 3600.0


def test_a_large_budget_holds_every_scenario_and_all_blocks_needed() -> None:
    found = plan_budget(100 * HOUR, list(SECONDS), Costs(SECONDS, 60.0, QUIET), LatencyPlan(), answers=ANSWERS)
    assert found.scenarios == ("a", "b", "c") == found.latency.scenarios
    assert found.left_out == ()
    assert found.latency.max_blocks == found.design.needed_blocks
    assert found.latency.recorded_launch_sd == QUIET
    assert found.design.power >= 0.9


@pytest.mark.parametrize("hours", [1, 2, 5, 10])
def test_the_longest_duration_stays_inside_the_budget(hours: int) -> None:
    costs = Costs({**SECONDS, "gsm8k": 300.0}, 60.0, QUIET)
    found = plan_budget(hours * HOUR, list(SECONDS), costs, LatencyPlan(), answers=ANSWERS)
    block_s = block_seconds(60.0, {name: SECONDS[name] for name in found.scenarios})
    assert found.answers_s == 600.0
    assert found.longest_s == pytest.approx(found.latency.max_blocks * block_s + 600.0)
    assert found.longest_s <= hours * HOUR


def test_scenarios_are_dropped_from_the_end_unless_all_are_demanded() -> None:
    costs = Costs(SECONDS, 60.0, QUIET)
    some = plan_budget(1.2 * HOUR, list(SECONDS), costs, LatencyPlan(), answers=ANSWERS)
    every = plan_budget(1.5 * HOUR, list(SECONDS), costs, LatencyPlan(), answers=ANSWERS, all_scenarios=True)
    assert some.scenarios[0] == "a"
    assert some.left_out
    assert every.scenarios == ("a", "b", "c")
    assert every.latency.max_blocks < some.latency.max_blocks
    assert f"no room for {', '.join(some.left_out)}" in str(some)


def test_less_time_detects_less() -> None:
    effects = []
    for hours in (1.0, 1.5, 3.0):
        costs = Costs(SECONDS, 60.0, LaunchSd(0.5, 24, "x"))
        found = plan_budget(hours * HOUR, ["a"], costs, LatencyPlan(), answers=ANSWERS)
        assert found.design.detectable is not None
        effects.append(found.design.detectable.value)
        assert "smallest detectable gain" in str(found)
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > effects[-1]


def test_what_nobody_recorded_is_said() -> None:
    text = str(plan_budget(9 * HOUR, ["a"], Costs(SECONDS), LatencyPlan(), answers=ANSWERS))
    assert f"{ASSUMED_LAUNCH_S:.0f} s assumed" in text
    assert "How long gsm8k takes is not recorded: its 2 passes come on top." in text
    assert "assumed, none was recorded" in text
    known = str(
        plan_budget(9 * HOUR, ["a"], Costs({**SECONDS, "gsm8k": 60.0}, 30.0, QUIET), LatencyPlan(), answers=ANSWERS)
    )
    assert "not recorded" not in known


def test_a_budget_below_the_first_look_names_the_smallest_that_works() -> None:
    costs = Costs({"a": 100.0, "gsm8k": 30.0}, 50.0, QUIET)
    with pytest.raises(ValueError, match="buys 2 blocks of a, too few for a first look; expected at least 16 min"):
        plan_budget(700.0, ["a"], costs, LatencyPlan(), answers=ANSWERS)
    assert plan_budget(960.0, ["a"], costs, LatencyPlan(), answers=ANSWERS).latency.max_blocks == 3


def test_answers_that_take_the_whole_budget_leave_no_blocks() -> None:
    with pytest.raises(ValueError, match="buys 0 blocks"):
        plan_budget(60.0, ["a"], Costs({"a": 1.0, "gsm8k": 99.0}, 1.0), LatencyPlan(), answers=ANSWERS)


@pytest.mark.parametrize("wanted", [["a", "z"], []], ids=["unknown", "none"])
def test_a_scenario_of_unknown_duration_cannot_be_planned(wanted: list[str]) -> None:
    with pytest.raises(ValueError, match="is not recorded; expected scenarios of known duration"):
        plan_budget(HOUR, wanted, Costs(SECONDS), LatencyPlan(), answers=ANSWERS)


def _recorded() -> list[Record]:
    records: list[Record] = []
    for block in range(4):
        for position, arm in enumerate(("baseline", "candidate")):
            name, tpot_ns = f"b{block}-{arm}", 10_000_000 + 10_000 * (2 * block + position) * (-1) ** block
            records.append(Launch(name, arm, block, position, "u", 40.0 + block, True, {}))
            chunks = tuple(i * tpot_ns for i in range(4))
            counts = tuple(range(1, 5))
            records.append(
                Request(name, arm, block, 0, "a", 0, 8, 0, 4, "length", "", None, chunks, counts, 0, chunks[-1], None)
            )
            records.append(ScenarioRun(name, arm, block, 0, "a", 1, 1, "ab", True, 100.0 + block, {}))
    return records


def test_a_recorded_run_gives_durations_and_launch_sd() -> None:
    costs = costs_of(_recorded(), "aa", ("baseline", "candidate"))
    assert costs.launch_s == 41.5
    assert costs.scenario_s == {"a": 101.5}
    assert costs.launch_sd is not None
    assert costs.launch_sd.source == "aa"
    assert costs.launch_sd.launches == 8
    assert 0 < costs.launch_sd.percent < 1


def test_a_run_without_launches_gives_nothing_and_does_not_fail() -> None:
    assert costs_of([], "empty", ("baseline",)) == Costs({}, None, None, "empty")


def test_prospects_of_a_plan_without_a_budget() -> None:
    assert "smallest detectable gain" in prospects(LatencyPlan(max_blocks=8))
    pairs, quadruples = (prospects(LatencyPlan(max_blocks=8), launches) for launches in (2, 4))
    assert int(pairs.split("power ")[1].split(" %")[0]) < int(quadruples.split("power ")[1].split(" %")[0])
    small, large = (prospects(LatencyPlan(max_blocks=8, recorded_launch_sd=LaunchSd(sd, 24, "x"))) for sd in (0.1, 0.6))
    assert small != large
