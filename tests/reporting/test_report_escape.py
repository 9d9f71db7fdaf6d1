"""The escapers against the real renderers: GitHub's own Markdown parser, the standard XML and HTML parsers."""

from __future__ import annotations

import html.parser
import re

import cmarkgfm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import HOSTILE, PROPERTY

from validation.reporting import escape

ACTIVE = [
    "<b>",
    "</td>",
    "![a](b)",
    "[a](b)",
    "@user",
    "#12",
    "GH-7",
    "://",
    "www.",
    "`",
    "```",
    "|",
    "\\",
    "*",
    "_",
    "~~",
]
TEXTS = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.lists(
        st.one_of(
            st.sampled_from([*ACTIVE, "http", "$x$", "&lt;", "&", "\n", "\r", "\x1b[2J", ":+1:", "- ", "1. ", "> "]),
            st.text(max_size=4),
        ),
        max_size=12,
    ).map("".join),
)


class Rendered(html.parser.HTMLParser):
    """What a browser would see of rendered Markdown: the text and every tag with its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[str] = []
        self.text = ""
        self.comments = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments += 1


def github(markdown: str) -> Rendered:
    return Rendered(cmarkgfm.github_flavored_markdown_to_html(markdown))


def squeezed(text: str) -> str:
    return " ".join(text.replace("\u200b", "").split())


@PROPERTY
@given(TEXTS)
def test_visible_text_has_nothing_that_acts(text: str) -> None:
    shown = escape.visible(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert escape.one_line(text).isprintable()
    shown.encode("utf-8")


def test_terminal_writes_escape_sequences_out() -> None:
    shown = escape.terminal("a\x1b[2Jb\rc\u202ed\x9b0m")
    assert shown == r"a\x1b[2Jb\rc\u202ed\x9b0m"


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_clipped_text_says_how_much_is_missing(limit: int) -> None:
    assert escape.clip("x" * 9, limit) == f"{'x' * limit}… ({9 - limit} more characters)"
    assert escape.clip("x" * limit, limit) == "x" * limit


@PROPERTY
@given(TEXTS)
def test_markdown_prose_shows_the_text_and_nothing_else(text: str) -> None:
    page = github(f"{escape.markdown(text)}\n")
    assert page.tags <= {"p"}
    assert not page.attributes
    assert not page.comments
    assert squeezed(page.text) == squeezed(escape.one_line(text))


@PROPERTY
@given(TEXTS)
def test_markdown_cell_stays_one_cell(text: str) -> None:
    page = github(f"| a | b |\n| --- | --- |\n| {escape.markdown(text)} | {escape.markdown_code(text)} |\n")
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert "href" not in page.attributes
    assert not page.comments
    assert page.text.count("\n") < 40
    shown = escape.one_line(text)
    assert squeezed(shown) in squeezed(page.text)
    assert squeezed(shown.replace("|", r"\x7c")) in squeezed(page.text)


@PROPERTY
@given(TEXTS)
def test_markdown_list_item_keeps_the_text(text: str) -> None:
    page = github(f"- {escape.markdown(text)}\n")
    assert page.tags <= {"ul", "li"}
    assert squeezed(page.text) == squeezed(escape.one_line(text))


@PROPERTY
@given(TEXTS)
def test_markdown_block_is_one_block(text: str) -> None:
    page = github(f"{escape.markdown_block(text)}\n")
    assert page.tags == {"pre", "code"}
    assert page.text.rstrip("\n") == escape.visible(text).rstrip("\n")


# What the forge's own filters look for in the rendered text; they are not part of the Markdown parser.
MENTION = re.compile(r"(?<![\w&])(@\w|#\d|GH-\d)", re.IGNORECASE)


@PROPERTY
@given(TEXTS)
def test_prose_mentions_nobody(text: str) -> None:
    page = github(f"{escape.markdown(text)}\n")
    assert not re.search(r"@\w", page.text)
    assert not MENTION.search(page.text)
    assert not re.search(r"(?i)www\.\w|://\w", page.text)


def test_hostile_text_survives_as_text() -> None:
    page = github(f"{escape.markdown(HOSTILE, 1000)}\n")
    assert page.tags == {"p"}
    assert "<script>alert(1)</script>" in page.text
    assert r"\x1b[2J" in page.text


@pytest.mark.parametrize("text", ["0.8 points", "10:15:00Z", "kernel bits (2 of 3)", "a-b", "8k1k-c4 -2.17%"])
def test_plain_words_stay_readable(text: str) -> None:
    assert escape.markdown(text) == text
