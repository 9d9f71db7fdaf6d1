"""Word problems of our own making for the embedded engine's checkpoint. They are no GSM8K and are never called so."""

from __future__ import annotations

import itertools
import pathlib

from validation.engine.problems import draws
from validation.gsm8k import Problem, QuestionSet
from validation.scenario import AccuracyScenario

DRAW_SEED = 24125
COUNT = 1319
"""As many as GSM8K has."""


def load(path: pathlib.Path | None) -> QuestionSet:
    """The first ``COUNT`` evaluation draws; ``path`` is GSM8K's and not used."""
    problems = itertools.islice(draws("eval", DRAW_SEED), COUNT)
    return QuestionSet(f"word problems, draw {DRAW_SEED}", tuple(Problem(p.question, p.answer) for p in problems))


SCENARIOS = (
    # 400: with every text identical, Tango's bound reaches the 1-point margin from 381 questions on
    AccuracyScenario(
        "word-problems", concurrency=16, prompt_mode="zero_shot", load=load, questions=400, max_new_tokens=120
    ),
    AccuracyScenario("word-problems-all", concurrency=1200, prompt_mode="zero_shot", load=load, max_new_tokens=120),
)
