"""Server workloads as frozen data: how many requests of which length at which concurrency, or which questions.

A leaf file under ``scenarios`` declares a tuple ``SCENARIOS``. Prompts follow from the declaration, the seed and the
block alone: both arms of a block get the same ones, and no block repeats another's, so that no cache can help.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from validation.client.backend import Prompt, Sampling
from validation.discovery import load_all
from validation.gsm8k import PROMPT_MODES, QuestionSet, sha256
from validation.records import Question


@dataclasses.dataclass(frozen=True)
class LatencyScenario:
    """Random token ids: what SGLang's benchmark calls ``random-ids`` (its ``random`` draws from ShareGPT).

    Lengths are uniform on [ratio x length, length], as its ``--random-range-ratio`` draws them.
    """

    name: str
    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int
    range_ratio: float = 0.8
    token_ids: tuple[int, int] = (1000, 100_000)
    """Half-open range of ids that are ordinary words in the served vocabulary."""
    source: str = ""
    expected_s: float | None = None
    """Duration of one run where somebody measured it; ``source`` says where."""

    def jobs(self, seed: int, block: int) -> list[tuple[Prompt, Sampling]]:
        """The prompts of one block, each with the output length it must reach."""
        rng = np.random.default_rng([seed, block, zlib.crc32(self.name.encode())])
        shortest_in, shortest_out = (
            max(1, round(length * self.range_ratio)) for length in (self.input_tokens, self.output_tokens)
        )
        inputs = rng.integers(shortest_in, self.input_tokens + 1, self.requests)
        outputs = rng.integers(shortest_out, self.output_tokens + 1, self.requests)
        return [
            (
                Prompt(input_ids=tuple(rng.integers(*self.token_ids, int(length)).tolist())),
                Sampling(max_new_tokens=int(output), ignore_eos=True),
            )
            for length, output in zip(inputs, outputs, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class AccuracyScenario:
    """Questions with reference answers, asked greedily."""

    name: str
    concurrency: int
    prompt_mode: str
    """A name of ``validation.gsm8k.PROMPT_MODES``; it brings its sampling and the extractor that decides."""
    load: Callable[[pathlib.Path | None], QuestionSet]
    questions: int | None = None
    """The first so many of the set; None: all of them."""
    max_new_tokens: int = 512
    """Where the prompt mode names no limit."""
    source: str = ""

    def questions_of(
        self, path: pathlib.Path | None, count: int | None
    ) -> tuple[QuestionSet, tuple[Question, ...], str]:
        """The set, the questions asked of it and their SHA-256; ``count`` overrides the declared number.

        Raises:
            ValueError: the set cannot be loaded, or has fewer questions than asked for.
        """
        loaded = self.load(path)
        wanted = count or self.questions or len(loaded.test)
        if wanted > len(loaded.test):
            raise ValueError(
                f"{self.name} has {len(loaded.test)} questions, {wanted} were asked for; "
                f"give --questions {len(loaded.test)}"
            )
        mode = PROMPT_MODES[self.prompt_mode]
        return loaded, mode.records(loaded, self.name, wanted), sha256(loaded.test[:wanted])

    def jobs(self, questions: Sequence[Question]) -> list[tuple[Prompt, Sampling]]:
        """One request a question, with the prompt mode's sampling."""
        mode = PROMPT_MODES[self.prompt_mode]
        sampling = Sampling(mode.max_tokens or self.max_new_tokens, mode.temperature, tuple(mode.stop))
        if mode.chat:
            return [(Prompt(messages=({"role": "user", "content": q.prompt},)), sampling) for q in questions]
        return [(Prompt(text=q.prompt), sampling) for q in questions]


Scenario = LatencyScenario | AccuracyScenario
_T = TypeVar("_T", LatencyScenario, AccuracyScenario)


def scenarios() -> Mapping[str, Scenario]:
    """Every declared scenario by name, in the order of their files."""
    return {s.name: s for declared in load_all("scenarios", "SCENARIOS").values() for s in declared}


def scenario_named(name: str, kind: type[_T]) -> _T:
    """The scenario ``name``; raises ``ValueError`` with the known names where there is none of that kind."""
    known = {key: value for key, value in scenarios().items() if isinstance(value, kind)}
    if name not in known:
        raise ValueError(f"scenario {name!r} is unknown; expected one of {', '.join(known)}")
    return known[name]
