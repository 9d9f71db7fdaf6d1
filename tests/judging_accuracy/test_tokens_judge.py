"""Token identity: equal, different, unsteady, vacuous; each verdict with the arms that must give it."""

from __future__ import annotations

import dataclasses

import pytest

from validation.judging.tokens import TokensPlan, first_divergence, judge_tokens
from validation.records import Request
from validation.verdicts import Finding, Verdict

PLAN = TokensPlan("cat", "skip")


def answer(
    arm: str, index: int, ids: tuple[int, ...] | None, launch: int = 0, run: int = 0, **changes: object
) -> Request:
    request = Request(
        launch_id=f"{arm}-{launch}",
        arm=arm,
        block=launch,
        run=run,
        scenario="words",
        index=index,
        prompt_tokens=5,
        cached_tokens=None,
        output_tokens=None,
        finish_reason="stop",
        text="" if ids is None else " ".join(map(str, ids)),
        output_ids=ids,
        chunk_ns=(1,),
        chunk_tokens=None,
        queued_ns=0,
        end_ns=2,
        error=None,
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def arm(name: str, changed: set[int] = frozenset(), launches: int = 2, n: int = 50) -> list[Request]:  # type: ignore[assignment]
    """``launches`` of ``name``, token 3 changed in the prompts ``changed``."""
    return [
        answer(name, i, (1, 2, i, 99 if i in changed else 3, 4), launch) for launch in range(launches) for i in range(n)
    ]


CONTROL = arm("control", set(range(30)), launches=1)


def judge(requests: list[Request], plan: TokensPlan = PLAN) -> Finding:
    (finding,) = judge_tokens(requests, plan)
    assert finding.name == "tokens.identity"
    return finding


def test_equal_tokens_beside_a_break_that_shows_pass() -> None:
    finding = judge([*arm("cat"), *arm("skip"), *CONTROL])
    assert (finding.verdict, finding.reason) == (Verdict.PASS, "identical")
    assert finding.numbers["control"] == {"arm": "control", "prompts": 50, "changed": 30}
    assert str(finding.detectable) == "1 token (every position of every answer is compared)"
    assert finding.records == 200


@pytest.mark.parametrize(
    ("control", "says"),
    [([], "was not run on these prompts"), (arm("control"), "changed none of 50 answers")],
    ids=["no control", "a control that breaks nothing"],
)
def test_equal_tokens_without_a_break_that_shows_are_vacuous(control: list[Request], says: str) -> None:
    finding = judge([*arm("cat"), *arm("skip"), *control])
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "vacuous")
    assert says in finding.sentence


def test_a_control_on_other_prompts_proves_nothing() -> None:
    control = [dataclasses.replace(r, scenario="other") for r in CONTROL]
    assert judge([*arm("cat"), *arm("skip"), *control]).reason == "vacuous"


def test_a_control_that_only_failed_proves_nothing() -> None:
    control = [dataclasses.replace(r, error="crashed", text="", output_ids=None) for r in CONTROL]
    assert judge([*arm("cat"), *arm("skip"), *control]).reason == "vacuous"


@pytest.mark.parametrize("control", [CONTROL, []], ids=["with control", "without control"])
def test_one_changed_token_fails_and_is_shown(control: list[Request]) -> None:
    finding = judge([*arm("cat"), *arm("skip", {7}), *control])
    assert (finding.verdict, finding.reason) == (Verdict.FAIL, "tokens_differ")
    (shown,) = finding.numbers["first_divergences"]
    place = {"scenario": "words", "prompt": 7, "unit": "token", "position": 3, "reference": 3, "candidate": 99}
    assert place.items() <= shown.items()
    assert {"reference_text", "candidate_text"} <= shown.keys()
    assert "1 of 50 prompts" in finding.sentence


def test_the_list_of_differences_is_bounded_and_their_number_is_not() -> None:
    numbers = judge([*arm("cat"), *arm("skip", set(range(45))), *CONTROL]).numbers
    assert (numbers["differing"], len(numbers["first_divergences"])) == (45, 20)


def test_a_difference_between_arms_that_were_never_repeated_is_undecided() -> None:
    finding = judge([*arm("cat", launches=1), *arm("skip", {7}, launches=1), *CONTROL])
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "determinism_unknown")


def test_equal_arms_that_were_never_repeated_still_pass() -> None:
    assert judge([*arm("cat", launches=1), *arm("skip", launches=1), *CONTROL]).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("required", "verdict"),
    [(True, Verdict.INCONCLUSIVE), (False, Verdict.NOT_APPLICABLE)],
    ids=["required", "not required"],
)
def test_a_server_that_differs_from_itself_is_not_blamed_on_the_change(required: bool, verdict: Verdict) -> None:
    cat = [*arm("cat", launches=1), *arm("cat", {5}, launches=2)]
    finding = judge([*cat, *arm("skip", {7}), *CONTROL], dataclasses.replace(PLAN, require_determinism=required))
    assert (finding.verdict, finding.reason) == (verdict, "nondeterministic_server")
    assert finding.numbers["unstable"] == [{"scenario": "words", "prompt": 5}]


@pytest.mark.parametrize("required", [True, False])
def test_a_candidate_that_alone_became_unsteady_is_never_waved_through(required: bool) -> None:
    skip = [*arm("skip", launches=1), *arm("skip", {5}, launches=2)]
    finding = judge([*arm("cat"), *skip, *CONTROL], dataclasses.replace(PLAN, require_determinism=required))
    assert (finding.verdict, finding.reason) == (Verdict.INCONCLUSIVE, "nondeterministic_candidate")


def test_an_unsteady_candidate_beside_a_reference_that_ran_once_may_be_the_server() -> None:
    skip = [*arm("skip", launches=1), *arm("skip", {5}, launches=2)]
    assert judge([*arm("cat", launches=1), *skip, *CONTROL]).reason == "nondeterministic_server"


def test_runs_of_one_launch_are_held_against_each_other_too() -> None:
    cat = [*arm("cat", launches=1), answer("cat", 3, (1, 2), run=1)]
    assert judge([*cat, *arm("skip", launches=1), *CONTROL]).reason == "nondeterministic_server"


def test_text_is_compared_where_a_server_told_no_ids() -> None:
    def plain(requests: list[Request]) -> list[Request]:
        return [dataclasses.replace(r, output_ids=None) for r in requests]

    finding = judge([*arm("cat"), *plain(arm("skip")), *plain(CONTROL)])
    assert (finding.verdict, finding.numbers["compared_by"]) == (Verdict.PASS, "character")
    assert (
        judge([*arm("cat"), *plain(arm("skip", {7})), *CONTROL]).numbers["first_divergences"][0]["unit"] == "character"
    )


def test_equal_text_of_unequal_tokens_is_a_difference() -> None:
    skip = [dataclasses.replace(r, output_ids=(9, 9)) if r.index == 2 else r for r in arm("skip")]
    assert judge([*arm("cat"), *skip, *CONTROL]).verdict is Verdict.FAIL


@pytest.mark.parametrize("where", ["cat", "skip"])
def test_errors_are_left_out_within_the_budget_and_undecided_beyond(where: str) -> None:
    requests = [*arm("cat", n=400), *arm("skip", n=400), *CONTROL]

    def failing(count: int) -> list[Request]:
        return [
            dataclasses.replace(r, error="reset", text="") if r.arm == where and r.index < count else r
            for r in requests
        ]

    assert (judge(failing(2)).verdict, judge(failing(2)).numbers["left_out"]) == (Verdict.PASS, 2)
    assert (judge(failing(3)).verdict, judge(failing(3)).reason) == (Verdict.INCONCLUSIVE, "error_budget")


def test_prompts_that_one_arm_never_answered_count_against_the_budget() -> None:
    assert judge([*arm("cat"), *arm("skip", n=40), *CONTROL]).reason == "error_budget"


def test_one_arm_has_nothing_to_be_equal_to() -> None:
    finding = judge(arm("skip"))
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "one_arm")


def test_only_the_declared_scenarios_are_compared() -> None:
    other = [dataclasses.replace(r, scenario="other") for r in (*arm("cat"), *arm("skip", {7}))]
    requests = [*arm("cat"), *arm("skip"), *CONTROL, *other]
    assert judge(requests, dataclasses.replace(PLAN, scenarios=("words",))).verdict is Verdict.PASS
    assert judge(requests).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("left", "right", "position", "sides"),
    [((1, 2, 3), (1, 5, 3), 1, (2, 5)), ((1, 2), (1, 2, 3), 2, (None, 3)), ((), (4,), 0, (None, 4))],
    ids=["changed", "ended early", "empty"],
)
def test_the_first_divergence_names_position_and_both_sides(
    left: tuple[int, ...], right: tuple[int, ...], position: int, sides: tuple[int | None, int | None]
) -> None:
    found = first_divergence(answer("cat", 0, left), answer("skip", 0, right))
    assert found == {"unit": "token", "position": position, "reference": sides[0], "candidate": sides[1]}
    assert first_divergence(answer("cat", 0, left), answer("skip", 0, left)) is None


def test_arms_of_one_name_and_a_budget_of_everything_are_refused() -> None:
    with pytest.raises(ValueError, match="expected three names"):
        TokensPlan("cat", "cat")
    with pytest.raises(ValueError, match="expected a share"):
        TokensPlan("cat", "skip", error_budget=1.0)
