"""Whether two arms gave the same tokens for the same prompts, and whether the comparison could have seen a difference.

Equality is evidence only beside a planted break: a third arm, run on the same prompts with the optimised path broken on
purpose, must have changed at least one answer. Otherwise the prompts never exercised the path and equality is vacuous.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from validation.records import Request
from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run

NAME = "tokens.identity"
SHOWN_CHARACTERS = 2000
"""Of each answer beside its first divergence; the whole texts are in the raw records."""
LISTED = 20
"""Differing answers spelled out in a finding; the rest are counted, so that findings.json stays readable."""

Key = tuple[str, int]
"""A prompt: scenario and number."""
Answers = Mapping[Key, Sequence[Request]]


@dataclasses.dataclass(frozen=True)
class TokensPlan:
    """What was declared before the run."""

    reference: str
    candidate: str
    control: str = "control"
    """The arm with the planted break."""
    scenarios: tuple[str, ...] = ()
    """Empty: every scenario that both arms ran."""
    require_determinism: bool = True
    """False: where the reference differs from itself the claim is NOT_APPLICABLE, not INCONCLUSIVE (token identity is
    required of deterministic servers only, outside a rehearsal)."""
    error_budget: float = 0.005
    """Share of prompts that may be left out because an arm has an error there; that of ``AccuracyPlan``."""

    def __post_init__(self) -> None:
        if len({self.reference, self.candidate, self.control}) != 3:
            raise ValueError(
                f"arms {self.reference!r}, {self.candidate!r}, {self.control!r} were given; expected three names"
            )
        if not 0 <= self.error_budget < 1:
            raise ValueError(
                f"an error budget of {self.error_budget!r} was given; expected a share of at least 0 and below 1"
            )


def judge_tokens(requests: Sequence[Request], plan: TokensPlan) -> list[Finding]:
    """One finding, ``tokens.identity``: PASS where every compared answer is the same in both arms.

    First each arm is held against itself (the same prompt in other launches and runs), then the control against the
    reference, then the candidate against the reference. Prompts with an error in an arm are left out and counted.
    """
    wanted = [r for r in requests if not plan.scenarios or r.scenario in plan.scenarios]
    reference, candidate, control = (_of_arm(wanted, arm) for arm in (plan.reference, plan.candidate, plan.control))
    absent = [arm for arm, found in ((plan.reference, reference), (plan.candidate, candidate)) if not found]
    if absent:
        sentence = f"no answer of {' and '.join(absent)} was gathered; tokens are compared between two arms"
        return [not_run(NAME, Evidence.TOKENS, "one_arm", sentence)]

    prompts = sorted(set(reference) | set(candidate))
    compared = [key for key in prompts if _sound(reference.get(key)) and _sound(candidate.get(key))]
    left_out = len(prompts) - len(compared)
    unit = _unit([r for key in compared for r in (*reference[key], *candidate[key])])
    numbers: dict[str, Any] = {
        "prompts": len(compared),
        "left_out": left_out,
        "compared_by": unit,
        "repeated": {
            plan.reference: sum(len(reference[key]) > 1 for key in compared),
            plan.candidate: sum(len(candidate[key]) > 1 for key in compared),
        },
    }
    records = sum(len(reference[key]) + len(candidate[key]) for key in compared)

    def finding(verdict: Verdict, reason: str, sentence: str) -> list[Finding]:
        effect = Effect(1, unit, "every position of every answer is compared") if compared else None
        return [Finding(NAME, Evidence.TOKENS, verdict, reason, sentence, max(records, left_out), numbers, effect)]

    if not compared or left_out > plan.error_budget * len(prompts):
        return finding(
            Verdict.INCONCLUSIVE,
            "error_budget",
            f"{left_out} of {len(prompts)} prompts have no answer in an arm; the budget is {plan.error_budget:.2%}",
        )

    for arm, answers in ((plan.reference, reference), (plan.candidate, candidate)):
        unstable = [key for key in compared if _distinct(answers[key], unit) > 1]
        if unstable:
            numbers["unstable"] = [{"scenario": scenario, "prompt": index} for scenario, index in unstable[:LISTED]]
            at = f"{arm} differs from itself on {len(unstable)} of {len(compared)} prompts"
            if arm == plan.candidate:
                whole = all(len(reference[key]) > 1 for key in unstable)
                reason = "nondeterministic_candidate" if whole else "nondeterministic_server"
                extra = f"; {plan.reference}, repeated too, does not" if whole else ""
                return finding(Verdict.INCONCLUSIVE, reason, at + extra)
            verdict = Verdict.INCONCLUSIVE if plan.require_determinism else Verdict.NOT_APPLICABLE
            return finding(verdict, "nondeterministic_server", f"{at}, so identity between arms is not to be expected")

    differing = [key for key in compared if _answer(reference[key][0], unit) != _answer(candidate[key][0], unit)]
    in_control = [key for key in compared if _sound(control.get(key))]
    control_unit = unit if unit == "character" else _unit([control[key][0] for key in in_control])
    changed = sum(
        _answer(reference[key][0], control_unit) != _answer(control[key][0], control_unit) for key in in_control
    )
    numbers["control"] = {"arm": plan.control, "prompts": len(in_control), "changed": changed}

    if differing:
        numbers["differing"] = len(differing)
        numbers["first_divergences"] = [
            {
                "scenario": key[0],
                "prompt": key[1],
                **(first_divergence(reference[key][0], candidate[key][0]) or {}),
                "reference_text": reference[key][0].text[:SHOWN_CHARACTERS],
                "candidate_text": candidate[key][0].text[:SHOWN_CHARACTERS],
            }
            for key in differing[:LISTED]
        ]
        first = numbers["first_divergences"][0]
        at = (
            f"{len(differing)} of {len(compared)} prompts differ between {plan.reference} and {plan.candidate}, "
            f"first at {first['unit']} {first['position']} of {first['scenario']} prompt {first['prompt']}"
        )
        if not all(numbers["repeated"].values()):
            sentence = f"{at}; no prompt was repeated within each arm, so this may be the server's own variation"
            return finding(Verdict.INCONCLUSIVE, "determinism_unknown", sentence)
        return finding(Verdict.FAIL, "tokens_differ", f"{at}, and each arm repeats itself exactly")

    if not changed:
        why = f"changed none of {len(in_control)} answers" if in_control else "was not run on these prompts"
        sentence = f"all {len(compared)} answers are equal, but the planted break ({plan.control}) {why}"
        return [not_run(NAME, Evidence.TOKENS, "vacuous", sentence, numbers)]
    sentence = (
        f"all {len(compared)} answers of {plan.candidate} equal those of {plan.reference} in every {unit}; "
        f"the planted break changed {changed} of {len(in_control)}"
    )
    return finding(Verdict.PASS, "identical", sentence)


def first_divergence(reference: Request, candidate: Request) -> dict[str, Any] | None:
    """Where two answers first differ: ``unit``, ``position`` from 0 and both sides; None if they are equal.

    Tokens where both servers told their ids; else characters; a side that ended there is None.
    """
    unit = _unit([reference, candidate])
    left, right = _answer(reference, unit), _answer(candidate, unit)
    if left == right:
        return None
    position = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    sides = {
        name: side[position] if position < len(side) else None
        for name, side in (("reference", left), ("candidate", right))
    }
    return {"unit": unit, "position": position, **sides}


def _of_arm(requests: Sequence[Request], arm: str) -> Answers:
    answers: dict[Key, list[Request]] = defaultdict(list)
    for request in requests:
        if request.arm == arm:
            answers[request.scenario, request.index].append(request)
    return answers


def _sound(answers: Sequence[Request] | None) -> bool:
    return bool(answers) and all(request.error is None for request in answers or ())


def _unit(requests: Sequence[Request]) -> str:
    return "token" if requests and all(request.output_ids is not None for request in requests) else "character"


def _answer(request: Request, unit: str) -> Sequence[int] | str:
    return request.output_ids if unit == "token" and request.output_ids is not None else request.text


def _distinct(answers: Sequence[Request], unit: str) -> int:
    return len({_answer(request, unit) for request in answers})
