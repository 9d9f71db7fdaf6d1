"""GSM8K and other questions of its schema: loading, the prompts of four harnesses, and their ways of reading an answer.

A ``PromptMode`` is what a harness sends, an ``Extractor`` is how one reads the answer and compares it. Both reproduce
the harness exactly, its faults included, so that a score here is the score there. The raw text is always kept: any
extractor can be applied to it afterwards, and the one that decides is named before the run.

A question set is JSON lines of ``{"question": "...", "answer": "... #### 18"}`` (Cobbe et al. 2021, arXiv 2110.14168).
"""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
import importlib
import json
import pathlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from validation.records import Question

DATASET = "openai/gsm8k"
_FINAL = re.compile(r"#### (-?[0-9][0-9.,]*)\s*\Z")


class QuestionSetError(ValueError):
    """A question set that cannot be used; one sentence naming the file, the line and what was expected."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One question and its worked answer, which ends in ``#### n``."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """The questions to score (``test``) and those that few-shot examples may come from (``train``, may be empty)."""

    source: str
    test: tuple[Problem, ...]
    train: tuple[Problem, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the scored questions and answers, whatever the file's key order or escapes."""
        return sha256(self.test)


def sha256(problems: Sequence[Problem]) -> str:
    """SHA-256 of questions and answers in their order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.question, problem.answer], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def load(path: pathlib.Path | None = None) -> QuestionSet:
    """The question set in ``path`` (a JSONL file, or a folder with test.jsonl and perhaps train.jsonl), else GSM8K.

    Without a path, GSM8K comes through the ``datasets`` package, which downloads it once and caches it.

    Raises:
        QuestionSetError: the file is missing or has a broken line; ``datasets`` is missing or cannot get the data.
    """
    if path is None:
        return _load_dataset()
    if path.is_dir():
        train = path / "train.jsonl"
        return QuestionSet(str(path), tuple(_read(path / "test.jsonl")), tuple(_read(train)) if train.exists() else ())
    return QuestionSet(str(path), tuple(_read(path)))


def _load_dataset() -> QuestionSet:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise QuestionSetError(
            f"{DATASET} needs the datasets package, which is not installed ({error}); "
            "run pip install datasets, or give the path of a JSONL copy"
        ) from error
    try:
        splits = {name: datasets.load_dataset(DATASET, "main", split=name) for name in ("test", "train")}
        rows = {name: tuple(Problem(row["question"], row["answer"]) for row in split) for name, split in splits.items()}
    except Exception as error:  # the package raises its own errors, those of requests and those of its file formats
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise QuestionSetError(
            f"{DATASET} could not be loaded through datasets ({type(error).__name__}: {reason}); "
            "check the network, or give the path of a JSONL copy"
        ) from error
    return QuestionSet(DATASET, rows["test"], rows["train"])


def _read(path: pathlib.Path) -> Iterator[Problem]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise QuestionSetError(
            f"{path} cannot be read ({error.strerror}); expected a JSONL file or a folder with test.jsonl"
        ) from error
    found = False
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = True
            try:
                yield _problem(json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                raise QuestionSetError(f"{path} line {number}: {error}") from error
    if not found:
        raise QuestionSetError(f"{path} holds no question; expected a JSON object a line")


def _problem(row: object) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, expected an object with question and answer")
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"{key} is {row.get(key)!r:.60}, expected text")
    if not _FINAL.search(row["answer"]):
        raise ValueError(f'the answer ends in {row["answer"][-20:]!r}, expected a last line like "#### 18"')
    return Problem(row["question"], row["answer"])


@dataclasses.dataclass(frozen=True)
class PromptMode:
    """What one harness sends for each question. ``str.format`` fills ``template`` with the question."""

    name: str
    source: str
    extractor: str
    """The name of the extractor the harness scores with: the one that decides unless another is declared."""
    shots: int
    shots_from: str
    """``test`` (the first rows of what is scored), ``train`` (its first rows) or ``train_drawn`` (fresh for each
    question); empty without shots."""
    max_tokens: int | None
    """None: the server's own limit."""
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    chat: bool = False
    """True: the prompt is the one user message of a chat; False: a plain completion."""
    template: str = "Question: {question}\nAnswer:"

    def prompts(self, questions: QuestionSet, count: int | None = None) -> tuple[str, ...]:
        """The prompts of the first ``count`` questions (all without it), in order.

        Raises:
            QuestionSetError: the set has too few questions for the shots or for ``count``.
        """
        total = len(questions.test)
        if count is not None and not 0 < count <= total:
            raise QuestionSetError(
                f"{count} questions were asked for; {questions.source} has {total}, ask for 1 to {total}"
            )
        if not self.shots:
            return tuple(self._ask(problem) for problem in questions.test[:count])
        pool = questions.test if self.shots_from == "test" else questions.train
        if len(pool) < self.shots:
            raise QuestionSetError(
                f"prompt mode {self.name} takes {self.shots} shots from {self.shots_from.partition('_')[0]}.jsonl; "
                f"{questions.source} has {len(pool)} there, give a folder with both files or another mode"
            )
        draw = random.Random(_LM_EVAL_SEED)
        prompts = []
        for problem in questions.test[:count]:
            shots = draw.sample(pool, self.shots) if self.shots_from == "train_drawn" else pool[: self.shots]
            prompts.append("".join(f"{self._ask(shot)} {shot.answer}\n\n" for shot in shots) + self._ask(problem))
        return tuple(prompts)

    def leaked(self, questions: QuestionSet, count: int | None = None) -> tuple[int, ...]:
        """Numbers of the scored questions whose answers stand in every prompt as shots."""
        return tuple(range(min(self.shots, len(questions.test[:count])))) if self.shots_from == "test" else ()

    def records(self, questions: QuestionSet, scenario: str, count: int | None = None) -> tuple[Question, ...]:
        """The first ``count`` questions as records, with their prompts; ``gold`` is the worked answer."""
        pairs = zip(questions.test, self.prompts(questions, count), strict=False)
        return tuple(
            Question(scenario, index, problem.question, prompt, problem.answer)
            for index, (problem, prompt) in enumerate(pairs)
        )

    def _ask(self, problem: Problem) -> str:
        return self.template.format(question=problem.question)


_LM_EVAL_SEED = 1234  # lm_eval 0.4.13 _cli/run.py: the third of the default seeds 0,1234,1234,1234

_SGLANG_STOP = ("Question", "Assistant:", "<|separator|>")

SGLANG = PromptMode(
    name="sglang",
    source="sglang 0.5.12 benchmark/gsm8k/bench_sglang.py; scores the five questions that its own shots answer",
    extractor="last_integer",
    shots=5,
    shots_from="test",
    max_tokens=512,
    stop=_SGLANG_STOP,
)
VLLM = PromptMode(
    name="vllm",
    source="vllm tests/evals/gsm8k/gsm8k_eval.py",
    extractor="last_integer",
    shots=5,
    shots_from="train",
    max_tokens=256,
    stop=_SGLANG_STOP,
)
LM_EVAL = PromptMode(
    name="lm_eval",
    source="lm_eval 0.4.13 tasks/gsm8k/gsm8k.yaml version 3.0; max_gen_toks of models/api_models.py",
    extractor="lm_eval_strict",
    shots=5,
    shots_from="train_drawn",
    max_tokens=256,
    stop=("Question:", "</s>", "<|im_end|>"),
)
SGL_EVAL = PromptMode(
    name="sgl_eval",
    source="sgl-eval 0.1.3 prompts/math.yaml (NeMo-Skills generic/math) and types.py GenConfig",
    extractor="boxed",
    shots=0,
    shots_from="",
    max_tokens=None,
    top_p=0.95,
    chat=True,
    template="Solve the following math problem. Make sure to put the answer (and only answer) inside "
    "\\boxed{{}}.\n\n{question}",
)
ZERO_SHOT = PromptMode(
    name="zero_shot",
    source="ours, for small models trained on this very form",
    extractor="lm_eval_strict",
    shots=0,
    shots_from="",
    max_tokens=256,
    stop=("Question:",),
)
PROMPT_MODES: Mapping[str, PromptMode] = {mode.name: mode for mode in (SGLANG, VLLM, LM_EVAL, SGL_EVAL, ZERO_SHOT)}


@dataclasses.dataclass(frozen=True)
class Extractor:
    """How one harness reads an answer: ``read`` gives a comparable form of a model's text, None where it finds none."""

    name: str
    source: str
    read: Callable[[str], str | None]
    read_gold: Callable[[str], str | None]

    def correct(self, text: str, gold: str) -> bool:
        """Whether ``text`` answers as ``gold`` does; ``gold`` is a worked answer or its last line ``#### 18``.

        Raises:
            ValueError: ``gold`` holds no answer that this extractor can read.
        """
        expected = self.read_gold(gold)
        if expected is None:
            raise ValueError(f"the reference answer {gold[-40:]!r} holds no number that extractor {self.name} can read")
        return self.read(text) == expected


def score(text: str, gold: str) -> dict[str, bool]:
    """Whether ``text`` is right, by the name of every extractor."""
    return {name: extractor.correct(text, gold) for name, extractor in EXTRACTORS.items()}


def _last_integer(text: str) -> str | None:
    runs = re.findall(r"\d+", text.replace(",", ""))
    # The harness evaluates the last run of digits as a Python literal: 05 and non-ASCII digits are no literals, 00 is.
    if not runs or not re.fullmatch(r"0+|[1-9][0-9]*", runs[-1]):
        return None
    return runs[-1].lstrip("0") or "0"


_LM_EVAL_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))


def _lm_eval_normal(text: str) -> str:
    for pattern in _LM_EVAL_IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def _lm_eval_strict(text: str) -> str | None:
    match = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return _lm_eval_normal(match[1].strip()) if match else None


def _lm_eval_flexible(text: str) -> str | None:
    groups = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return _lm_eval_normal((groups[-1][0] or groups[-1][1]).strip()) if groups else None


def _boxed(text: str) -> str | None:
    r"""The number in the last \boxed{...}, in lowest decimal form; None where the braces do not close or hold none."""
    start = text.rfind("\\boxed")
    if start < 0 or not text.startswith("\\boxed{", start):
        return None
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "}" and depth == 0:
            return _number(text[start + len("\\boxed{") : end])
    return None


_LATEX_NUMBER = re.compile(r"\\(?:text|textbf|mathbf|mathrm)\{\s*(-?[0-9.,]+)\s*\}")
_LATEX_UNIT = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox)\{[^{}]*\}")
_LATEX_NOISE = re.compile(r"\^\{?\\circ\}?|\\[! ]|(?<![0-9])\\,|\\,(?![0-9])|\\?[$%]|\\\\|\s+")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9.]+)\}\{([0-9.]+)\}|(-?[0-9.]+)/([0-9.]+)")
_GROUPED = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")


def _number(content: str) -> str | None:
    """``content`` of a box as a decimal number.

    sgl-eval compares symbolically (math_verify). On numbers, with their units, separators and signs, this agrees with
    it; an expression that is still to be worked out (2*9) or a bare unit of physics (18 cm) is right there, no number
    here.
    """
    text = _LATEX_UNIT.sub("", _LATEX_NUMBER.sub(r"\1", content.replace("\u2212", "-")))
    text = _LATEX_NOISE.sub("", text.replace("{,}", ",")).rstrip(".\\")
    text = re.sub(r"\A[A-Za-z]=", "", text)
    text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    fraction = _FRACTION.fullmatch(text)
    try:
        if fraction:
            top, bottom = (part for part in fraction.groups() if part is not None)
            value = decimal.Decimal(top) / decimal.Decimal(bottom)
        elif re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*", text):
            value = decimal.Decimal(text)
        else:
            return None
    except decimal.DecimalException:
        return None
    return format(value.normalize() + 0, "f")


def _gold_number(gold: str) -> str | None:
    match = _FINAL.search(gold)
    return _number(match[1].replace(",", "")) if match else _number(gold.replace(",", ""))


EXTRACTORS: Mapping[str, Extractor] = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            "last_integer",
            "get_answer_value of sglang 0.5.12 bench_sglang.py and of vllm gsm8k_eval.py",
            _last_integer,
            _last_integer,
        ),
        Extractor(
            "lm_eval_strict", "filter strict-match of lm_eval 0.4.13 gsm8k.yaml", _lm_eval_strict, _lm_eval_normal
        ),
        Extractor(
            "lm_eval_flexible",
            "filter flexible-extract of lm_eval 0.4.13 gsm8k.yaml",
            _lm_eval_flexible,
            _lm_eval_normal,
        ),
        Extractor("boxed", "search_boxed of sgl-eval 0.1.3 math_grader.py", _boxed, _gold_number),
    )
}
SCORERS: Mapping[str, Callable[[str, str], bool]] = {name: e.correct for name, e in EXTRACTORS.items()}
"""What the judge takes: text and gold to right or wrong, by extractor name."""
