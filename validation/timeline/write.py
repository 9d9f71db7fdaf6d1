"""From trace files to the viewer and the analysis beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from validation.reporting.write import write_atomically
from validation.timeline.analysis import markdown_of
from validation.timeline.html import html_of
from validation.timeline.model import NamedTrace, timeline_of
from validation.traces.gaps import GapBounds
from validation.traces.reader import read_ranks


def write_timeline(page: pathlib.Path, named: Sequence[str], bounds: GapBounds = GapBounds()) -> pathlib.Path:  # noqa: B008 - frozen
    """Write the viewer of ``NAME=FILE`` traces to ``page``, and the analysis beside it; returns the analysis' path.

    A folder of one file a rank gives a trace for each, ``NAME rank N``.

    Raises:
        ValueError: a word is no ``NAME=FILE``, or a trace cannot be read.
    """
    if page.suffix != ".html":
        raise ValueError(f"the timeline was to be written to {page}; expected a name that ends in .html")
    timeline = timeline_of([trace for word in named for trace in _read(word)], bounds)
    analysis = page.with_suffix(".md")
    for path, text in ((page, html_of(timeline)), (analysis, markdown_of(timeline))):
        write_atomically(path, text.encode())
    return analysis


def _read(word: str) -> list[NamedTrace]:
    name, separator, file = word.partition("=")
    if not name or not separator or not file:
        raise ValueError(f"--trace {word} was given; expected NAME=FILE, such as skip=rank0.trace.json.gz")
    path = pathlib.Path(file)
    if not path.exists():
        raise ValueError(f"--trace {word}: {path} does not exist; expected a trace, or a folder of one a rank")
    traces = read_ranks(path)
    if len(traces) == 1:
        return [NamedTrace(name, traces[0])]
    return [NamedTrace(f"{name} rank {trace.rank}", trace) for trace in traces]
