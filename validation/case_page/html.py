"""The case page as one self-contained HTML file: no script, no network, drawn from records and findings alone."""

from __future__ import annotations

import functools
import pathlib

import jinja2

from validation.case_page.model import About, PathPair, invariant_verdict, page_of
from validation.judgement import Judgement
from validation.records import PathCount
from validation.reporting.contents import SYMBOLS, TITLES, WORDS
from validation.reporting.escape import clip
from validation.reporting.pages import templates
from validation.timeline.model import short_name

_FOLDER = pathlib.Path(__file__).parent
_STYLES = (_FOLDER.parent / "reporting" / "report.css", _FOLDER / "case.css")
LISTED_KERNELS = 60
LISTED_PAIRS = 200
BOX_CHARS = 28
"""Of a library's name in a box of the pipeline."""


def to_case_page(judgement: Judgement, case: str, about: About | None = None) -> str:
    """The page of ``case`` in a judged run.

    Raises:
        ValueError: the run holds nothing of the case.
    """
    page = page_of(judgement, case, about)
    return _template().render(
        css="\n".join(path.read_text(encoding="utf-8") for path in _STYLES),
        p=page,
        removed_op=(about.removed_op if about else "") or "the removed operation",
        panels=_panels(page.shown),
        kernels=page.kernels[:LISTED_KERNELS],
        more_kernels=len(page.kernels[LISTED_KERNELS:]),
        pairs=page.pairs[:LISTED_PAIRS],
        more_pairs=len(page.pairs[LISTED_PAIRS:]),
    )


def _panels(pair: PathPair | None) -> list[tuple[str, PathCount]]:
    """Title and counts of both paths."""
    return [] if pair is None else [("Before", pair.removed), ("After", pair.short)]


def _per_call(count: int, path: PathCount) -> str:
    return f"{count / path.calls:g}" if path.calls else "0"


def _bytes(count: int) -> str:
    """Such as ``9,216 B`` or ``1.13 MiB (1,179,648 B)``."""
    if count < 1 << 20:  # one MiB
        return f"{count:,} B"
    return f"{count / (1 << 20):.2f} MiB ({count:,} B)"


def _library(provider: str) -> str:
    """``aiter amd-aiter 0.1.7 (its file)`` is ``amd-aiter 0.1.7``: package and release, as much as fits a box."""
    words = provider.split(" (")[0].split(",")[0].split()
    return clip(" ".join(words[-2:]), BOX_CHARS)


@functools.cache
def _template() -> jinja2.Template:
    pages = templates(_FOLDER)
    pages.globals.update(SYMBOLS=SYMBOLS, WORDS=WORDS, TITLES=TITLES, invariant_verdict=invariant_verdict)
    pages.filters.update(short=short_name, per_call=_per_call, bytes=_bytes, library=_library)
    return pages.get_template("case.html.j2")
