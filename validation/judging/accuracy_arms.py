"""Who answered what: the declared plan, a recorded baseline, and one arm's answers by launch and question. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from validation.judging.score_interval import Scores
from validation.judging.tokens import LISTED, SHOWN_CHARACTERS, first_divergence
from validation.records import Launch, Question, Request

Scorer = Callable[[str, str], bool]
"""Text and reference answer to right or wrong."""


@dataclasses.dataclass(frozen=True)
class AccuracyPlan:
    """What was declared before the run. Points are percentage points of accuracy."""

    scenario: str
    candidate: str
    reference: str | None
    """The arm to compare with; None: one arm, held against a recorded baseline or ``floor``."""
    extractor: str
    """The one extractor whose score decides."""
    runs: int = 1
    """Launches of each arm. Other than that many is INCONCLUSIVE: neither cut short nor repeated until it passes."""
    margin_points: float = 1.0
    """The candidate may be worse by less than this; docs/which-margin.md says how to choose it."""
    same_build_runs: int = 0
    """Recorded launches of one build to judge "within run-to-run variance" by; 0: that claim is not made."""
    floor: float | None = None
    """Lowest acceptable accuracy, 0..1, for one arm without a baseline."""
    error_budget: float = 0.005
    """Share of questions that may be left out: half the default margin, so that they alone could not hide it."""
    model: str = ""
    questions_sha256: str = ""
    prompt_mode: str = ""

    def __post_init__(self) -> None:
        if self.candidate == self.reference:
            raise ValueError(f"both arms are {self.candidate!r}; expected two different names")
        if not 0 < self.margin_points < 100:
            raise ValueError(
                f"a margin of {self.margin_points!r} points was given; expected more than 0 and less than 100"
            )
        if self.runs < 1 or self.same_build_runs < 0:
            raise ValueError(
                f"{self.runs} runs and {self.same_build_runs} same-build runs were given; expected 1 or more, 0 or more"
            )
        if self.floor is not None and not 0 < self.floor < 1:
            raise ValueError(f"an accuracy floor of {self.floor!r} was given; expected a share between 0 and 1")
        if not 0 <= self.error_budget < 1:
            raise ValueError(
                f"an error budget of {self.error_budget!r} was given; expected a share of at least 0 and below 1"
            )


@dataclasses.dataclass(frozen=True)
class RecordedAccuracy:
    """Right and wrong of one build, question by question, as a baseline keeps it."""

    name: str
    model: str
    questions_sha256: str
    prompt_mode: str
    extractor: str
    indexes: tuple[int, ...]
    """Question numbers, in the order of the marks."""
    runs: tuple[str, ...]
    """A string a launch, a mark a question: ``1`` right, ``0`` wrong, ``-`` not answered."""

    def __post_init__(self) -> None:
        for run in self.runs:
            if len(run) != len(self.indexes) or not set(run) <= set("10-"):
                raise ValueError(
                    f"baseline {self.name!r} has a run of {len(run)} marks for {len(self.indexes)} questions; "
                    "expected one of 1, 0 or - for each"
                )

    def to_json(self) -> dict[str, Any]:
        """The baseline as JSON data."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> RecordedAccuracy:
        """The baseline that ``to_json`` wrote."""
        return RecordedAccuracy(**{**data, "indexes": tuple(data["indexes"]), "runs": tuple(data["runs"])})

    def mismatch(self, plan: AccuracyPlan) -> str | None:
        """Why this baseline cannot serve ``plan``, in a clause; None where it can."""
        for field in ("model", "questions_sha256", "prompt_mode", "extractor"):
            recorded, wanted = getattr(self, field), getattr(plan, field)
            if recorded != wanted:
                return f"baseline {self.name} was recorded with {field} {recorded!r}, this run has {wanted!r}"
        return None


def record_accuracy(
    requests: Sequence[Request], questions: Sequence[Question], plan: AccuracyPlan, scorer: Scorer, name: str
) -> RecordedAccuracy:
    """The candidate arm of a run as a baseline for later ones; of a launch that repeats the scenario, its first run."""
    gold = {q.index: q.gold for q in questions if q.scenario == plan.scenario}
    runs: dict[str, dict[int, Request]] = {}
    for request in sorted(requests, key=lambda r: (r.block, r.launch_id, r.run)):
        if request.scenario == plan.scenario and request.arm == plan.candidate:
            runs.setdefault(request.launch_id, {}).setdefault(request.index, request)
    marks = tuple(
        "".join("-" if _failed(run.get(i)) else str(int(scorer(run[i].text, gold[i]))) for i in sorted(gold))
        for run in runs.values()
    )
    return RecordedAccuracy(
        name, plan.model, plan.questions_sha256, plan.prompt_mode, plan.extractor, tuple(sorted(gold)), marks
    )


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm: for each launch and question its answers (one, or one a run), or their recorded marks."""

    name: str
    launches: tuple[Mapping[int, tuple[Request, ...]], ...] = ()
    marks: tuple[Mapping[int, float], ...] = ()

    @property
    def runs(self) -> int:
        return len(self.launches) or len(self.marks)

    @property
    def answers(self) -> int:
        """Answers measured in this run."""
        return sum(len(answers) for launch in self.launches for answers in launch.values())

    def answered(self) -> set[int]:
        """Questions that every launch and run answered."""
        each = [set(answers) for answers in self.launches] or [set(marks) for marks in self.marks]
        return set.intersection(*each) if each else set()

    def scores(self, kept: Sequence[int], gold: Mapping[int, str], scorer: Scorer) -> Scores:
        """Shape (launches, questions): the share of a launch's runs that answered right."""
        if self.marks:
            return np.array([[marks[i] for i in kept] for marks in self.marks], dtype=np.float64)
        rows = [
            [sum(scorer(r.text, gold[i]) for r in answers[i]) / len(answers[i]) for i in kept]
            for answers in self.launches
        ]
        return np.array(rows, dtype=np.float64)


def flips(
    reference: Arm,
    candidate: Arm,
    kept: Sequence[int],
    right_reference: Scores,
    right_candidate: Scores,
    prompts: Mapping[int, str],
) -> dict[str, Any]:
    """Who flipped and how: McNemar's exact test, persistent against transient flips, and where texts part."""
    change = right_candidate.mean(axis=0) - right_reference.mean(axis=0)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    # McNemar 1947, Psychometrika 12:153, exact: with several runs it is the sign test on the questions.
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    stable = np.all(right_reference == right_reference[0], axis=0) & np.all(
        right_candidate == right_candidate[0], axis=0
    )
    repeated = len(right_reference) > 1 and len(right_candidate) > 1
    order = sorted(np.flatnonzero(change).tolist(), key=lambda column: (-abs(change[column]), column))
    listed = []
    for column in order[:LISTED]:
        index = kept[column]
        kind = ("persistent" if stable[column] else "transient") if repeated else "one run an arm"
        listed.append(
            {
                "question": index,
                "kind": kind,
                reference.name: float(right_reference[:, column].mean()),
                candidate.name: float(right_candidate[:, column].mean()),
                "first_divergence": _divergence(reference, candidate, index),
                "prompt_text": prompts.get(index, "")[-SHOWN_CHARACTERS:],
                "reference_text": _text(reference, index),
                "candidate_text": _text(candidate, index),
            }
        )
    return {
        "mcnemar_exact_p": p,
        "questions_gained": gained,
        "questions_lost": lost,
        "persistent_flips": int((stable & (change != 0)).sum()) if repeated else None,
        "transient_flips": int((~stable).sum()) if repeated else None,
        "flips": listed,
    }


def _text(arm: Arm, index: int) -> str | None:
    return arm.launches[0][index][0].text[:SHOWN_CHARACTERS] if arm.launches else None


def _divergence(reference: Arm, candidate: Arm, index: int) -> dict[str, Any] | None:
    for left in reference.launches:
        for right in candidate.launches:
            found = first_divergence(left[index][0], right[index][0])
            if found:
                return found
    return None


def identical_texts(reference: Arm, candidate: Arm, kept: Sequence[int]) -> bool | None:
    """Whether each question has one text over all launches of both arms; None where texts were not recorded."""
    if not reference.launches:
        return None
    launches = (*reference.launches, *candidate.launches)
    return all(len({r.text for launch in launches for r in launch[i]}) == 1 for i in kept)


def _failed(request: Request | None) -> bool:
    return request is None or request.error is not None


def arm_of(
    requests: Sequence[Request], questions: Sequence[Question], scenario: str, arm: str, launches: Sequence[Launch] = ()
) -> Arm:
    """The answers of ``arm``; a question that any run of a launch left without an answer is absent from that launch.

    Launches that were not fresh (a given URL) are one launch: nothing was restarted between them.

    Raises:
        ValueError: an answer has no question.
    """
    known = {q.index for q in questions if q.scenario == scenario}
    process = {launch.launch_id: launch.launch_id if launch.fresh else launch.url for launch in launches}
    answers: dict[str, dict[tuple[str, int], dict[int, Request]]] = {}
    for request in requests:
        if request.scenario != scenario or request.arm != arm:
            continue
        if request.index not in known:
            raise ValueError(
                f"an answer to question {request.index} of {scenario} was given; that scenario has no such question"
            )
        runs = answers.setdefault(process.get(request.launch_id, request.launch_id), {})
        # The first answer stands: a question is not asked again until the answer pleases.
        runs.setdefault((request.launch_id, request.run), {}).setdefault(request.index, request)
    return Arm(
        arm,
        tuple(
            {
                index: tuple(run[index] for run in runs.values())
                for index in sorted(known)
                if all(not _failed(run.get(index)) for run in runs.values())
            }
            for _, runs in sorted(answers.items())
        ),
    )


def recorded_arm(baseline: RecordedAccuracy | None) -> Arm:
    """A recorded baseline as an arm without texts; an arm of no runs for None."""
    if baseline is None:
        return Arm("baseline")
    marks = tuple(
        {index: float(mark) for index, mark in zip(baseline.indexes, run, strict=True) if mark != "-"}
        for run in baseline.runs
    )
    return Arm(baseline.name, marks=marks)


def truncated(arm: Arm) -> int:
    """Answers that the token limit cut off."""
    return sum(r.finish_reason == "length" for launch in arm.launches for answers in launch.values() for r in answers)
