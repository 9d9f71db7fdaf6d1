"""Loading question sets, the harnesses' prompts, and the ways they read an answer, edge cases included.

With GSM8K_PATH set (a folder with test.jsonl and train.jsonl) the tests of whole sets run on GSM8K; without it on
twelve questions of our own. The chosen set is recorded as the property ``question_set`` of each such test.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import sys
import types

import pytest

from validation import gsm8k
from validation.gsm8k import EXTRACTORS, PROMPT_MODES, Problem, QuestionSet, QuestionSetError

OWN = QuestionSet(
    "own",
    tuple(
        Problem(f"Ann has {n} pens and buys {n}. How many?", f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}")
        for n in range(2, 14)
    ),
    tuple(Problem(f"Bob has {n} pens and loses one. How many?", f"{n}-1={n - 1}\n#### {n - 1}") for n in range(3, 13)),
)


@pytest.fixture
def question_set(record_property: object) -> QuestionSet:
    path = os.environ.get("GSM8K_PATH")
    record_property("question_set", "GSM8K" if path else "own")  # type: ignore[operator]
    return gsm8k.load(pathlib.Path(path)) if path else OWN


def write(path: pathlib.Path, problems: tuple[Problem, ...]) -> pathlib.Path:
    path.write_text(
        "".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in problems), encoding="utf-8"
    )
    return path


def test_a_folder_gives_both_splits_and_a_file_gives_the_questions(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "test.jsonl", OWN.test)
    write(tmp_path / "train.jsonl", OWN.train)
    folder, file = gsm8k.load(tmp_path), gsm8k.load(tmp_path / "test.jsonl")
    assert (folder.test, folder.train) == (OWN.test, OWN.train)
    assert (file.test, file.train) == (OWN.test, ())
    assert folder.sha256 == file.sha256 == OWN.sha256


def test_the_digest_ignores_the_spelling_of_json_and_sees_one_changed_character(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(
        "".join(json.dumps({"answer": p.answer, "question": p.question}) + "\n\n" for p in OWN.test), encoding="utf-8"
    )
    assert gsm8k.load(path).sha256 == OWN.sha256
    changed = (Problem(OWN.test[0].question + " ", OWN.test[0].answer), *OWN.test[1:])
    assert gsm8k.sha256(changed) != OWN.sha256


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        pytest.param('{"question": "q", "answer"', "line 2", id="cut short"),
        pytest.param("[1]", "a JSON list, expected an object", id="not an object"),
        pytest.param('{"question": "q"}', "answer is None, expected text", id="no answer"),
        pytest.param('{"question": 3, "answer": "#### 3"}', "question is 3, expected text", id="question is a number"),
        pytest.param(
            '{"question": "q", "answer": "it is 3"}', 'expected a last line like "#### 18"', id="no final line"
        ),
        pytest.param(
            '{"question": "q", "answer": "#### three"}', 'expected a last line like "#### 18"', id="final word"
        ),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: pathlib.Path, line: str, complaint: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"question": "q", "answer": "#### 3"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(QuestionSetError, match=r"broken\.jsonl line 2: ") as error:
        gsm8k.load(path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named_with_file_and_number(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "caf\xe9", "answer": "#### 3"}\n')
    with pytest.raises(QuestionSetError, match=r"latin\.jsonl line 1: "):
        gsm8k.load(path)


def test_a_missing_file_and_an_empty_one_are_one_sentence_each(tmp_path: pathlib.Path) -> None:
    with pytest.raises(QuestionSetError, match=r"absent cannot be read .*expected a JSONL file or a folder"):
        gsm8k.load(tmp_path / "absent")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(QuestionSetError, match="holds no question"):
        gsm8k.load(tmp_path / "empty.jsonl")


def test_without_the_datasets_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(QuestionSetError, match=r"pip install datasets, or give the path") as error:
        gsm8k.load()
    assert "\n" not in str(error.value)


def test_without_a_network_the_error_gives_the_reason_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand a long trace")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(QuestionSetError, match=r"ConnectionError: no route to the hub\); check the network") as error:
        gsm8k.load()
    assert "\n" not in str(error.value)


def test_datasets_rows_are_read_as_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str, split: str) -> list[dict[str, str]]:
        assert (name, config) == ("openai/gsm8k", "main")
        return [{"question": p.question, "answer": p.answer} for p in (OWN.test if split == "test" else OWN.train)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    loaded = gsm8k.load()
    assert (loaded.test, loaded.train, loaded.sha256) == (OWN.test, OWN.train, OWN.sha256)


def test_the_sglang_prompt_holds_the_first_five_scored_questions_and_leaks_their_answers(
    question_set: QuestionSet,
) -> None:
    mode = PROMPT_MODES["sglang"]
    prompts = mode.prompts(question_set)
    shots = "".join(f"Question: {p.question}\nAnswer: {p.answer}\n\n" for p in question_set.test[:5])
    assert len(prompts) == len(question_set.test)
    assert prompts[0] == shots + f"Question: {question_set.test[0].question}\nAnswer:"
    assert prompts[7] == shots + f"Question: {question_set.test[7].question}\nAnswer:"
    assert mode.leaked(question_set) == (0, 1, 2, 3, 4)
    assert mode.leaked(question_set, 3) == (0, 1, 2)
    assert (mode.max_tokens, mode.temperature) == (512, 0.0)
    assert mode.stop == ("Question", "Assistant:", "<|separator|>")


def test_the_vllm_prompt_takes_the_first_five_training_questions_and_leaks_none(question_set: QuestionSet) -> None:
    mode = PROMPT_MODES["vllm"]
    shots = "".join(f"Question: {p.question}\nAnswer: {p.answer}\n\n" for p in question_set.train[:5])
    assert mode.prompts(question_set)[-1] == shots + f"Question: {question_set.test[-1].question}\nAnswer:"
    assert mode.leaked(question_set) == ()
    assert (mode.max_tokens, mode.stop) == (256, PROMPT_MODES["sglang"].stop)


def test_lm_eval_draws_five_training_shots_a_question_from_its_own_seed(question_set: QuestionSet) -> None:
    mode = PROMPT_MODES["lm_eval"]
    draw = random.Random(1234)
    drawn = [draw.sample(range(len(question_set.train)), 5) for _ in range(3)]
    if len(question_set.train) == 7473:  # what lm_eval 0.4.13 draws for the first two questions of GSM8K
        assert drawn[:2] == [[6374, 3610, 957, 61, 742], [7462, 6610, 4769, 286, 5501]]
    for prompt, rows, problem in zip(mode.prompts(question_set, 3), drawn, question_set.test, strict=False):
        shots = [question_set.train[row] for row in rows]
        expected = "".join(f"Question: {p.question}\nAnswer: {p.answer}\n\n" for p in shots)
        assert prompt == expected + f"Question: {problem.question}\nAnswer:"
    assert (mode.max_tokens, mode.stop) == (256, ("Question:", "</s>", "<|im_end|>"))


def test_the_sgl_eval_prompt_is_one_chat_message_that_asks_for_a_box() -> None:
    mode = PROMPT_MODES["sgl_eval"]
    problem = Problem("Is {x} a set?", "#### 1")
    (prompt,) = mode.prompts(QuestionSet("own", (problem,)))
    instruction = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}."
    assert prompt == f"{instruction}\n\nIs {{x}} a set?"
    assert mode.chat
    assert (mode.stop, mode.top_p, mode.max_tokens) == ((), 0.95, None)


def test_a_mode_without_its_shots_says_what_to_give() -> None:
    few = QuestionSet("few.jsonl", OWN.test[:4])
    with pytest.raises(QuestionSetError, match=r"vllm takes 5 shots from train\.jsonl; few\.jsonl has 0"):
        PROMPT_MODES["vllm"].prompts(few)
    with pytest.raises(QuestionSetError, match=r"sglang takes 5 shots from test\.jsonl; few\.jsonl has 4"):
        PROMPT_MODES["sglang"].prompts(few)
    with pytest.raises(QuestionSetError, match="ask for 1 to 4"):
        PROMPT_MODES["zero_shot"].prompts(few, 5)


def test_question_records_hold_what_is_needed_to_score_again() -> None:
    records = PROMPT_MODES["zero_shot"].records(OWN, "word_problems", 3)
    assert [(r.scenario, r.index, r.question, r.gold) for r in records] == [
        ("word_problems", i, p.question, p.answer) for i, p in enumerate(OWN.test[:3])
    ]
    assert records[2].prompt == f"Question: {OWN.test[2].question}\nAnswer:"


@pytest.mark.parametrize("mode", PROMPT_MODES.values(), ids=lambda mode: mode.name)
def test_every_mode_names_its_source_and_a_known_extractor(mode: gsm8k.PromptMode) -> None:
    assert mode.extractor in EXTRACTORS
    assert mode.source


@pytest.mark.parametrize("name", ["last_integer", "lm_eval_strict", "lm_eval_flexible"])
def test_the_reference_answer_itself_scores_right_on_every_question(name: str, question_set: QuestionSet) -> None:
    wrong = [p for p in question_set.test if not EXTRACTORS[name].correct(" " + p.answer, p.answer)]
    assert wrong == []


def test_a_boxed_reference_answer_scores_right_on_every_question(question_set: QuestionSet) -> None:
    wrong = [
        p
        for p in question_set.test
        if not EXTRACTORS["boxed"].correct(f"\\boxed{{{p.answer.split('#### ')[1]}}}", p.answer)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_wrong_number_never_scores_right(name: str, question_set: QuestionSet) -> None:
    for problem in question_set.test[:200]:
        final = int(problem.answer.split("#### ")[1].replace(",", ""))
        assert not EXTRACTORS[name].correct(f"so \\boxed{{{final + 1}}}\n#### {final + 1}", problem.answer)


LAST_INTEGER = [
    ("The answer is 18.", "18"),
    ("It costs $18.00", "0"),
    ("-5", "5"),
    ("05", None),
    ("007", None),
    ("00", "0"),
    ("12.50", "50"),
    ("1,234", "1234"),
    ("18 of 20", "20"),
    ("no number", None),
    ("", None),
    ("\u0661\u0668", None),
    ("#### 18\n", "18"),
    ("9" * 30, "9" * 30),
]
STRICT = [
    ("#### 18", "18"),
    ("#### -18", "-18"),
    ("#### 1,234.", "1234"),
    ("#### 18.00", "18.00"),
    ("#### 18 and #### 19", "18"),
    ("####18", None),
    ("#### $18", None),
    ("The answer is 18", None),
    ("#### ...", ".."),
]
FLEXIBLE = [
    ("The answer is 18.", "18"),
    ("It costs $18.00", "18.00"),
    ("-5", "-5"),
    ("5", "5"),
    ("1,234 dollars", "1234"),
    ("18...", "18.."),
    ("18 ..", "."),
    ("no number", None),
    ("10 - 5", "5"),
    ("$ 7", "7"),
]
BOXED = [
    (r"\boxed{18}", "18"),
    (r"first \boxed{17}, then \boxed{18}", "18"),
    (r"\boxed{018}", "18"),
    (r"\boxed{18.00}", "18"),
    (r"\boxed{\$18}", "18"),
    (r"\boxed{70,000}", "70000"),
    (r"\boxed{70{,}000}", "70000"),
    (r"\boxed{70\,000}", None),
    (r"\boxed{1,8}", None),
    (r"\boxed{18\text{ dollars}}", "18"),
    (r"\boxed{\text{18}}", "18"),
    (r"\boxed{18 dollars}", None),
    (r"\boxed{150\%}", "150"),
    (r"\boxed{x = 18}", "18"),
    (r"\boxed{\frac{36}{2}}", "18"),
    (r"\boxed{-10}", "-10"),
    (r"\boxed{18, 19}", None),
    (r"\boxed{18", None),
    (r"\fbox{18}", None),
    (r"\boxed 18", None),
    (r"\boxed{}", None),
    (r"\boxed{\frac{1}{0}}", None),
    ("18", None),
]


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        *(("last_integer", *case) for case in LAST_INTEGER),
        *(("lm_eval_strict", *case) for case in STRICT),
        *(("lm_eval_flexible", *case) for case in FLEXIBLE),
        *(("boxed", *case) for case in BOXED),
    ],
)
def test_an_extractor_reads_edge_cases_as_its_harness_does(name: str, text: str, read: str | None) -> None:
    assert EXTRACTORS[name].read(text) == read


def test_one_text_gets_every_score_and_they_may_disagree() -> None:
    scores = gsm8k.score("She makes $18.00\n#### 18", "9 * 2 = 18\n#### 18")
    assert scores == {"last_integer": True, "lm_eval_strict": True, "lm_eval_flexible": True, "boxed": False}
    scores = gsm8k.score("She makes $18.00", "#### 18")
    assert scores == {"last_integer": False, "lm_eval_strict": False, "lm_eval_flexible": False, "boxed": False}
    assert gsm8k.score("5", "#### -5")["last_integer"]  # the harness drops the sign of both


def test_a_reference_without_a_number_is_refused_not_scored_wrong() -> None:
    with pytest.raises(ValueError, match="holds no number that extractor last_integer can read"):
        EXTRACTORS["last_integer"].correct("18", "eighteen")
