"""A judgement as one self-contained HTML file: no script, no network, fit for print, phones and readers without colour.

The template escapes every value it is given (autoescape); ``escape.visible`` first writes out what is not printable.
Only ``plots`` returns markup, made of numbers and of text that it escapes itself.
"""

from __future__ import annotations

import functools
import pathlib

import jinja2

from validation import __version__
from validation.judgement import Judgement
from validation.reporting import contents, environment, plots, values
from validation.reporting.escape import INLINE_LIMIT, visible
from validation.reporting.pages import templates

_FOLDER = pathlib.Path(__file__).parent


def to_html(judgement: Judgement) -> str:
    """The whole report as one HTML document."""
    css = (_FOLDER / "report.css").read_text(encoding="utf-8")
    names = environment.arms(judgement.launches)
    return _template().render(
        j=judgement,
        run=judgement.run,
        css=css,
        version=__version__,
        mark={0: "PASS", 1: "FAIL"}.get(judgement.exit_status, "INCONCLUSIVE"),
        rungs=contents.ladder(judgement),
        undecided=contents.undecided(judgement),
        figures=plots.figures(judgement),
        texts=contents.discordant_texts(judgement),
        groups=contents.cell_groups(judgement),
        arms=names,
        differences=environment.differences(judgement),
        self_tests=contents.self_tests(judgement),
        shared=environment.shared_identity(judgement),
        compared=values.tables(judgement.run.provenance, "Where it ran"),
        thresholds=values.tables(judgement.run.declared, "Declared before the run"),
        command=contents.reproduce(judgement),
    )


@functools.cache
def _template() -> jinja2.Template:
    pages = templates(_FOLDER)
    pages.globals.update(SYMBOLS=contents.SYMBOLS, WORDS=contents.WORDS, TITLES=contents.TITLES)
    pages.filters.update(tables=values.tables, shown=values.shown, brief=_brief, note_data=contents.note_data)
    return pages.get_template("report.html.j2")


def _brief(value: str) -> str:
    """A table's cell; the whole value stands in findings.json."""
    return visible(value, INLINE_LIMIT)
