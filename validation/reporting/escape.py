"""Untrusted text made harmless to show: model outputs, kernel names, server info, trace names, anybody's files.

Every string in a report is data that somebody else may have chosen. ``visible`` comes first for every output format: it
leaves no character that a terminal, a browser or an XML parser would act on. HTML markup is then escaped by the
template engine (autoescape), XML by ElementTree, and Markdown by ``markdown`` and ``markdown_code``.
"""

from __future__ import annotations

import re

INLINE_LIMIT = 300
"""Characters of one value in a sentence or a table cell: about four lines on a wide screen."""
BLOCK_LIMIT = 4000
"""Characters of one quoted text (a prompt, an answer): about a printed page."""

_MARKDOWN_ACTIVE = re.compile(r"([\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_]))")
"""An underscore inside a word is none of Markdown's business."""
_BLOCK_START = re.compile(r"^(\s*)([-+=#:]|\d+(?=[.)](?:\s|$)))")
_APART = "\u200b"
"""A zero-width space: it separates characters that a forge would join to a mention or a link."""
_AUTOLINKS = re.compile(
    r"@|://|#(?=\d)|www\.|GH-(?=\d)|mailto:|xmpp:|:(?=(?=[\w+-]*[a-z+-]|100|1234)[\w+-]+:)", re.IGNORECASE
)
"""What GitHub's Markdown joins to mentions, issue links, addresses and emoji wherever it stands in prose."""


def clip(text: str, limit: int) -> str:
    """``text``, or its first ``limit`` characters and how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"


def visible(text: str, limit: int = BLOCK_LIMIT) -> str:
    """``text`` with every control, bidirectional, invisible or unassigned character written out (``\\x1b``).

    Newlines and tabs stay; a carriage return does not, for a terminal would overwrite the line with what follows it.
    """
    text = clip(text, limit)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _written_out(c) for c in text)


def one_line(text: str, limit: int = INLINE_LIMIT) -> str:
    """``visible`` text without line breaks: ``\\n`` and ``\\t`` are written out too. Fit for a terminal."""
    text = clip(text, limit)
    return text if text.isprintable() else "".join(c if c.isprintable() else _written_out(c) for c in text)


terminal = one_line
"""What may be printed to somebody's terminal."""


def markdown(text: str, limit: int = INLINE_LIMIT) -> str:
    """``text`` as Markdown prose or a table cell that shows exactly it: no markup, link, image, mention or HTML."""
    text = _AUTOLINKS.sub(_separated, one_line(text, limit))
    text = _MARKDOWN_ACTIVE.sub(r"\\\1", text.replace("&", "&amp;"))
    text = text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return _BLOCK_START.sub(_defused_marker, text)


def markdown_code(text: str, limit: int = INLINE_LIMIT) -> str:
    """``text`` as a Markdown code span, fit for a table cell too (a pipe is written out). Forges link nothing in it."""
    text = one_line(text, limit).replace("|", r"\x7c")
    if not text.strip():
        return "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def markdown_block(text: str, limit: int = BLOCK_LIMIT) -> str:
    """``text`` as a fenced Markdown block, with a fence longer than any inside it."""
    text = visible(text, limit)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _separated(match: re.Match[str]) -> str:
    found = match.group()
    return f"{found[0]}{_APART}{found[1:]}" if len(found) > 1 else found + _APART


def _defused_marker(match: re.Match[str]) -> str:
    space, marker = match.groups()
    return f"{space}{_APART}{marker}" if marker.isdigit() else f"{space}\\{marker}"
