"""A history as a text table, as Markdown and as a vector plot. Every name in it is untrusted text."""

from __future__ import annotations

import itertools
import math
import pathlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

from validation.history import History, Point
from validation.reporting.escape import markdown, one_line, terminal
from validation.reporting.plots import nice_ticks, scale
from validation.reporting.write import write_atomically

WIDTH, TOP, BOTTOM, LEFT, RIGHT = 760, 40, 280, 70, 740
HEIGHT = 380
LABELS = 16
"""Names that fit under the plot."""
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.line{stroke:#1b5e9b;stroke-width:1.5}"
    ".mean{stroke:#1b5e9b;stroke-dasharray:2 3}.change{stroke:#b00020;stroke-width:2;stroke-dasharray:6 4}"
    ".mark{fill:#b00020;font-weight:600}circle{fill:#1b5e9b}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.line,.mean{stroke:#7db4e6}circle{fill:#7db4e6}"
    ".change{stroke:#ff8a80}.mark{fill:#ff8a80}}"
)
HEADER = ("baseline", "recorded", "value", "95 % interval", "launches", "change")


def to_text(history: History) -> str:
    """A table for a terminal."""
    rows = [HEADER, *_rows(history)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([terminal(_title(history)), *lines, *([f"({history.unmarked})"] if history.unmarked else [])])


def to_markdown(history: History, plot: str = "") -> str:
    """The same for a pull request or a wiki; ``plot`` is the picture's file beside it."""
    lines = [f"## {markdown(_title(history))}", ""]
    if plot:
        lines += [f"![{markdown(history.scenario)} over baselines]({plot})", ""]
    lines += [_markdown_row(HEADER), _markdown_row(["---"] * len(HEADER))]
    lines += [_markdown_row([markdown(cell) for cell in row]) for row in _rows(history)]
    if history.unmarked:
        lines += ["", f"No changes marked: {markdown(history.unmarked)}."]
    return "\n".join([*lines, ""])


def to_svg(history: History) -> str:
    """Points with intervals in the order they were recorded; a dashed upright line where the mean changed."""
    factor, unit = (100.0, "percent") if history.unit == "share" else (1.0, "ms")
    points = history.points
    known = [factor * v for p in points for v in (p.value, p.lower, p.upper) if v is not None]
    ticks = nice_ticks(known)
    y = scale(ticks[0], ticks[-1], BOTTOM, TOP)
    x = scale(0, max(1, len(points) - 1), LEFT + 24, RIGHT - 24)
    frame = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"}
    svg = ET.Element("svg", {**frame, "aria-label": one_line(_title(history))})
    ET.SubElement(svg, "style").text = _STYLE
    _text(svg, LEFT, 18, _title(history))
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for tick in ticks:
        _line(svg, LEFT, y(tick), RIGHT, y(tick), "grid")
        _text(svg, LEFT - 8, y(tick) + 4, f"{tick:.{digits}f}", "end")
    _text(svg, LEFT - 8, TOP - 8, unit, "end")
    for change in history.changes:
        at = x(change.first - 0.5)
        _line(svg, at, TOP, at, BOTTOM, "change")
        _text(svg, at + 4, TOP + 12, f"{change.percent:+.2f} %", kind="mark")
    bounds = [0, *(change.first for change in history.changes), len(points)]
    for begin, end in itertools.pairwise(bounds):
        mean = factor * sum(p.value for p in points[begin:end]) / (end - begin)
        _line(svg, x(begin) - 10, y(mean), x(end - 1) + 10, y(mean), "mean")
    step = math.ceil(len(points) / LABELS)
    for index, point in enumerate(points):
        if point.lower is not None and point.upper is not None:
            _line(svg, x(index), y(factor * point.lower), x(index), y(factor * point.upper), "line")
        circle = ET.SubElement(
            svg, "circle", {"cx": f"{x(index):.1f}", "cy": f"{y(factor * point.value):.1f}", "r": "4"}
        )
        ET.SubElement(circle, "title").text = one_line(f"{point.name}: {_value(point, history.unit)}")
        if index % step == 0:
            label = _text(svg, x(index), BOTTOM + 16, _short(point.name), "end")
            label.set("transform", f"rotate(-35 {x(index):.1f} {BOTTOM + 16:.1f})")
    return ET.tostring(svg, encoding="unicode")


def write(histories: Sequence[History], folder: pathlib.Path) -> pathlib.Path:
    """``history.md`` and one plot a scenario in ``folder``; returns the former.

    Plots are numbered: a scenario's name is data and names no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, history in enumerate(histories, 1):
        plot = f"history-{number}.svg"
        write_atomically(folder / plot, (to_svg(history) + "\n").encode())
        parts.append(to_markdown(history, plot))
    path = folder / "history.md"
    write_atomically(path, "\n".join(parts).encode())
    return path


def _title(history: History) -> str:
    what = "accuracy" if history.unit == "share" else f"TPOT of {history.scenario}"
    return f"{what}, {history.model} on {history.hardware}"


def _rows(history: History) -> Iterator[tuple[str, ...]]:
    changes = {change.first: change.percent for change in history.changes}
    for index, point in enumerate(history.points):
        yield (
            terminal(point.name),
            terminal(point.recorded_utc[:10]),
            _value(point, history.unit),
            _interval(point, history.unit),
            str(point.launches),
            f"{changes[index]:+.2f} %" if index in changes else "",
        )


def _value(point: Point, unit: str) -> str:
    return f"{100 * point.value:.2f} %" if unit == "share" else f"{point.value:.3f} ms"


def _interval(point: Point, unit: str) -> str:
    if point.lower is None or point.upper is None:
        return "not known"
    if unit == "share":
        return f"{100 * point.lower:.2f} to {100 * point.upper:.2f}"
    return f"{point.lower:.3f} to {point.upper:.3f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(name: str, limit: int = 18) -> str:
    stem = re.sub(r"\.json\Z", "", name)
    return one_line(stem if len(stem) <= limit else f"{stem[: limit - 1]}…")


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ET.SubElement(svg, "line", {**{key: f"{value:.1f}" for key, value in ends.items()}, "class": kind})


def _text(svg: ET.Element, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> ET.Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    element = ET.SubElement(svg, "text", {**place, "class": kind} if kind else place)
    element.text = one_line(text)
    return element
