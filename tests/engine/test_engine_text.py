"""Text out of tokens: whole characters, and stop strings that never show."""

from __future__ import annotations

import pytest
from engine_tools import TABLE, TOKENIZER

from validation.engine.text import Detokenizer

TEXT = "Ann has 12*7=84 eggs — Zoë too, 日本.\n#### 84"


def test_pieces_join_to_the_tokenizers_own_text() -> None:
    detokenizer = Detokenizer(TABLE, ())
    for token in TOKENIZER.encode(TEXT).ids:
        detokenizer.push(token)
        assert TEXT.startswith(detokenizer.text)
    detokenizer.finish()
    assert detokenizer.text == TEXT


def test_an_incomplete_character_shows_at_the_end_only() -> None:
    detokenizer = Detokenizer([b"a", "日".encode()[:2]], ())
    detokenizer.push(0)
    detokenizer.push(1)
    assert detokenizer.text == "a"
    detokenizer.finish()
    assert detokenizer.text == "a\N{REPLACEMENT CHARACTER}"


def test_ids_without_text_add_none() -> None:
    detokenizer = Detokenizer(TABLE, ())
    for token in (0, 1, len(TABLE) + 5):
        detokenizer.push(token)
    assert detokenizer.text == ""


@pytest.mark.parametrize(
    ("pieces", "stops", "settled", "matched"),
    [
        (["one tw"], ["two"], "one ", None),
        (["one tw", "o three"], ["two"], "one ", "two"),
        (["one tw", "in"], ["two"], "one twin", None),
        (["abc"], ["bc", "b"], "a", "b"),
        (["aab"], ["ab"], "a", "ab"),
        (["\n\nQues"], ["Question", "\n\nQ"], "", "\n\nQ"),
        (["plain"], [], "plain", None),
    ],
    ids=["held_back", "cut", "released", "earliest_wins", "overlap", "two_stops", "none"],
)
def test_stop_strings(pieces: list[str], stops: list[str], settled: str, matched: str | None) -> None:
    detokenizer = Detokenizer([piece.encode() for piece in pieces], stops)
    for number in range(len(pieces)):
        detokenizer.push(number)
    assert (detokenizer.settled, detokenizer.matched) == (settled, matched)
