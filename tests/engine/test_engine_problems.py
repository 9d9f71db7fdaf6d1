"""Word problems: reproducible, right, and split so that training never sees an evaluation question."""

from __future__ import annotations

import ast
import itertools
import operator
import re

import pytest

from validation.engine import problems, tokens

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def faults(problem: problems.WordProblem) -> list[str]:
    """What is wrong with a problem's answer: equations that do not hold, or a result that no step gave."""
    found = []
    equations = _EQUATION.findall(problem.answer)
    for left, sign, right, result in equations:
        if _OPERATORS[sign](int(left), int(right)) != int(result):
            found.append(f"{left}{sign}{right}={result}")
    if not equations or equations[-1][3] != problem.gold:
        found.append(f"result {problem.gold}")
    return found


def some(split: problems.Split, seed: int, count: int = 500) -> list[problems.WordProblem]:
    return list(itertools.islice(problems.draws(split, seed), count))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_answer_is_right(split: problems.Split) -> None:
    assert [faults(p) for p in some(split, 3, 2000) if faults(p)] == []


def test_a_wrong_step_and_a_wrong_result_are_seen() -> None:
    problem = problems.WordProblem("q", "It is 3*4=13.\n#### 13")
    assert faults(problem) == ["3*4=13"]
    assert faults(problems.WordProblem("q", "It is 3*4=12.\n#### 13")) == ["result 13"]


def test_draws_are_the_same_for_the_same_seed_only() -> None:
    assert some("eval", 1, 50) == some("eval", 1, 50)
    assert some("eval", 1, 50) != some("eval", 2, 50)


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    train = {p.question for seed in range(3) for p in some("train", seed)}
    evaluation = {p.question for seed in range(3) for p in some("eval", seed)}
    assert all(problems.split_of(question) == "train" for question in train)
    assert all(problems.split_of(question) == "eval" for question in evaluation)
    assert not train & evaluation


def test_questions_carry_all_numbers_of_the_answers_operands() -> None:
    for problem in some("eval", 4, 300):
        given = set(re.findall(r"\d+", problem.question))
        results = {result for *_, result in _EQUATION.findall(problem.answer)}
        operands = {n for left, _, right, _ in _EQUATION.findall(problem.answer) for n in (left, right)}
        assert operands <= given | results | {"2"}, problem


def test_the_schema_is_gsm8ks() -> None:
    problem = some("eval", 1, 1)[0]
    assert re.fullmatch(r"(.+\n)+#### \d+", problem.answer)
    assert problem.prompt == f"Question: {problem.question}\nAnswer:"
    assert problem.completion == f" {problem.answer}"
    assert ast.literal_eval(problem.gold) > 0


def test_the_tokenizer_is_reproducible_splits_digits_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TRAINING_TEXTS", 300)
    tokenizer = tokens.train_tokenizer(400, 0)
    assert tokenizer.to_str() == tokens.train_tokenizer(400, 0).to_str()
    text = "Zoë pays $1234 for 50 % — 日本\n"
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    digits = [token for token in encoding.tokens if any(c.isdigit() for c in token)]
    assert digits == list("123450")
