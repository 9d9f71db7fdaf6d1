"""Vector plots of a judgement: inline SVG, coloured by the page's own style, readable without colour.

Built as an element tree, so that every label is escaped by the serialiser. Each plot carries a title and, under it in
the page, its numbers as a table.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence

import markupsafe

from validation.judgement import Judgement
from validation.reporting import series
from validation.reporting.escape import one_line
from validation.verdicts import Evidence

WIDTH = 760
ROW = 26
LABEL = 185
VALUES = 190
LABEL_LIMIT = 26


@dataclasses.dataclass(frozen=True)
class Figure:
    """One plot and what it shows."""

    evidence: Evidence
    caption: str
    svg: markupsafe.Markup


def figures(judgement: Judgement) -> tuple[Figure, ...]:
    """Every plot whose numbers the findings hold."""
    return tuple(_figures(judgement))


def _figures(judgement: Judgement) -> Iterator[Figure]:
    for forest in series.latency_forests(judgement):
        caption = (
            f"{forest.finding}: change of TPOT per scenario with its interval. Left of zero the candidate is faster. "
            "Dashed: the smallest useful gain; the small upright marks: the smallest gain that could be detected."
        )
        yield Figure(Evidence.LATENCY, caption, forest_plot(forest, "change of TPOT, percent", "useful gain"))
    for savings in series.latency_savings(judgement):
        caption = (
            f"{savings.finding}: absolute saving per token against concurrency. "
            "A saving that does not depend on the batch lies on the dashed line, the fitted constant."
        )
        yield Figure(Evidence.LATENCY, caption, savings_plot(savings))
    for blocks in series.latency_blocks(judgement):
        caption = (
            f"{blocks.finding}: change of TPOT in each block, in the order they ran. Filled: the baseline ran first; "
            "hollow: the candidate did. A trend would be drift."
        )
        yield Figure(Evidence.LATENCY, caption, blocks_plot(blocks))
    difference = series.accuracy_forest(judgement)
    if difference is not None:
        caption = "Difference of accuracy, candidate less reference, with its interval; the dashed line is the margin."
        yield Figure(Evidence.ACCURACY, caption, forest_plot(difference, "difference, percentage points", "margin"))
    for runs in series.accuracy_runs(judgement):
        caption = f"{runs.finding}: accuracy of each run. The dashed line is the reference's mean less the margin."
        yield Figure(Evidence.ACCURACY, caption, runs_plot(runs))


def forest_plot(forest: series.Forest, axis: str, limit_name: str) -> markupsafe.Markup:
    """A row an estimate with its interval, on one scale that holds zero and the limit."""
    rows = forest.rows
    known = [v for r in rows for v in (r.estimate, r.lower, r.upper, r.detectable) if v is not None]
    ticks = nice_ticks([0.0, *known, *([] if forest.limit is None else [forest.limit])])
    top, bottom = 24, 24 + ROW * len(rows)
    x = scale(ticks[0], ticks[-1], LABEL, WIDTH - VALUES)
    svg = _svg(bottom + 44, f"Forest plot of {forest.finding}: {axis}")
    _x_axis(svg, ticks, x, top, bottom, axis)
    _line(svg, x(0), top, x(0), bottom, "zero")
    if forest.limit is not None:
        _line(svg, x(forest.limit), top - 6, x(forest.limit), bottom, "limit")
        _text(svg, x(forest.limit), top - 10, f"{limit_name} {forest.limit:+.3g}", "quiet", "middle")
    for index, row in enumerate(rows):
        y = top + ROW * (index + 0.5)
        if row.primary:
            _line(svg, 0, y - ROW / 2, WIDTH, y - ROW / 2, "axis")
        _label(svg, 0, y + 4, row.label)
        if row.lower is not None and row.upper is not None:
            _line(svg, x(row.lower), y, x(row.upper), y, "line")
            for end in (row.lower, row.upper):
                _line(svg, x(end), y - 4, x(end), y + 4, "line")
        if row.detectable is not None:
            _line(svg, x(row.detectable), y - 9, x(row.detectable), y + 9, "axis")
        if row.primary:
            _diamond(svg, x(row.estimate), y)
        else:
            _dot(svg, x(row.estimate), y)
        _text(svg, WIDTH, y + 4, _interval(row), "", "end")
    return _markup(svg)


def _interval(row: series.Interval) -> str:
    if row.lower is None or row.upper is None:
        return f"{row.estimate:+.2f}"
    return f"{row.estimate:+.2f} ({row.lower:+.2f} to {row.upper:+.2f})"


def savings_plot(savings: series.Savings) -> markupsafe.Markup:
    """Savings in milliseconds over concurrency, the latter on a scale of doublings."""
    points = savings.points
    known = [v for p in points for v in (p.saving_ms, p.lower_ms, p.upper_ms) if v is not None]
    ticks = nice_ticks([0.0, *known, *([] if savings.constant_ms is None else [savings.constant_ms])])
    levels = sorted({p.concurrency for p in points})
    top, bottom, left, right = 16, 236, 64, WIDTH - 130
    y = scale(ticks[0], ticks[-1], bottom, top)
    low, high = math.log2(levels[0]), math.log2(levels[-1])
    along = scale(low - 0.8, high + 0.8, left, right)
    svg = _svg(bottom + 44, f"Absolute saving of {savings.finding} against concurrency")
    _y_axis(svg, ticks, y, left, right, "saving, ms per token")
    for level in levels[:24]:
        _text(svg, along(math.log2(level)), bottom + 18, f"{level:g}", "quiet", "middle")
    _text(svg, (left + right) / 2, bottom + 38, "concurrency", "quiet", "middle")
    if savings.constant_ms is not None:
        _line(svg, left, y(savings.constant_ms), right, y(savings.constant_ms), "limit")
        _text(svg, right + 6, y(savings.constant_ms) + 4, f"constant {savings.constant_ms:.3g} ms", "quiet")
    for level in levels:
        together = [p for p in points if p.concurrency == level]
        for place, p in enumerate(together):
            # Scenarios of one concurrency stand side by side, or their intervals would hide each other.
            at = along(math.log2(level)) + 22 * (place - (len(together) - 1) / 2)
            if p.lower_ms is not None and p.upper_ms is not None:
                _line(svg, at, y(p.lower_ms), at, y(p.upper_ms), "line")
            _dot(svg, at, y(p.saving_ms))
            first = place == 0 and len(together) > 1
            _label(
                svg, at + (-8 if first else 8), y(p.saving_ms) - 7, p.label, 14, "quiet", "end" if first else "start"
            )
    return _markup(svg)


def blocks_plot(blocks: series.Blocks) -> markupsafe.Markup:
    """A point a block."""
    values = [change for change, _ in blocks.changes]
    ticks = nice_ticks([0.0, *values, *([] if blocks.mean is None else [blocks.mean])])
    top, bottom, left, right = 16, 216, 64, WIDTH - 90
    y = scale(ticks[0], ticks[-1], bottom, top)
    along = scale(0, max(1, len(values) - 1), left + 24, right - 24)
    svg = _svg(bottom + 44, f"Change of TPOT in each block of {blocks.finding}")
    _y_axis(svg, ticks, y, left, right, "change of TPOT, percent")
    _line(svg, left, y(0), right, y(0), "zero")
    if blocks.mean is not None:
        _line(svg, left, y(blocks.mean), right, y(blocks.mean), "limit")
        _text(svg, right + 6, y(blocks.mean) + 4, f"mean {blocks.mean:+.2f}", "quiet")
    path = " ".join(f"{along(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
    ET.SubElement(svg, "polyline", {"points": path, "class": "line thin"})
    step = max(1, len(values) // 20)
    for index, (change, order) in enumerate(blocks.changes):
        _dot(svg, along(index), y(change), "hollow" if order.startswith("C") else "dot")
        if index % step == 0:
            _text(svg, along(index), bottom + 18, str(index), "quiet", "middle")
    _text(svg, (left + right) / 2, bottom + 38, "block", "quiet", "middle")
    return _markup(svg)


def runs_plot(runs: series.Runs) -> markupsafe.Markup:
    """A row a group of runs, a point a run, an upright mark at the mean."""
    known = [share for _, shares in runs.groups for share in shares]
    ticks = nice_ticks([*known, *([] if runs.floor is None else [runs.floor])])
    top, bottom = 24, 24 + ROW * len(runs.groups)
    x = scale(ticks[0], ticks[-1], LABEL, WIDTH - VALUES)
    svg = _svg(bottom + 44, f"Accuracy of each run of {runs.finding}")
    _x_axis(svg, ticks, x, top, bottom, "accuracy, percent")
    if runs.floor is not None:
        _line(svg, x(runs.floor), top - 6, x(runs.floor), bottom, "limit")
        _text(svg, x(runs.floor), top - 10, f"{runs.floor:.2f}", "quiet", "middle")
    for index, (label, shares) in enumerate(runs.groups):
        y, mean = top + ROW * (index + 0.5), sum(shares) / len(shares)
        _label(svg, 0, y + 4, label)
        for share in shares:
            _dot(svg, x(share), y, "hollow" if len(shares) > 1 else "dot")
        _line(svg, x(mean), y - 9, x(mean), y + 9, "zero")
        count = f", {len(shares)} runs" if len(shares) > 1 else ""
        _text(svg, WIDTH, y + 4, f"{mean:.2f} %{count}", "", "end")
    return _markup(svg)


def nice_ticks(values: Iterable[float], wanted: int = 6) -> list[float]:
    """Round numbers, evenly spaced, that enclose ``values``: steps of 1, 2 or 5 times a power of ten."""
    values = list(values)
    low, high = min(values), max(values)
    tiny = 1e-9 * max(1.0, abs(low), abs(high))  # closer values are one value: rounding would make their ticks equal
    span = next(s for s in (high - low, abs(high), 1.0) if s > tiny)
    step = 10.0 ** math.floor(math.log10(span / wanted))
    step *= next((m for m in (1, 2, 5, 10) if span / (step * m) <= wanted), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [index * step for index in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of ``low`` to ``start`` and ``high`` to ``end``."""
    return lambda value: start + (value - low) * (end - start) / (high - low)


def _svg(height: float, title: str) -> ET.Element:
    return ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": one_line(title)})


def _x_axis(
    svg: ET.Element, ticks: Sequence[float], x: Callable[[float], float], top: float, bottom: float, name: str
) -> None:
    for tick in ticks:
        _line(svg, x(tick), top, x(tick), bottom, "grid")
        _text(svg, x(tick), bottom + 16, _tick(tick, ticks), "quiet", "middle")
    _line(svg, x(ticks[0]), bottom, x(ticks[-1]), bottom, "axis")
    _text(svg, (x(ticks[0]) + x(ticks[-1])) / 2, bottom + 36, name, "quiet", "middle")


def _y_axis(
    svg: ET.Element, ticks: Sequence[float], y: Callable[[float], float], left: float, right: float, name: str
) -> None:
    for tick in ticks:
        _line(svg, left, y(tick), right, y(tick), "grid")
        _text(svg, left - 8, y(tick) + 4, _tick(tick, ticks), "quiet", "end")
    middle = (y(ticks[0]) + y(ticks[-1])) / 2
    label = _text(svg, 14, middle, name, "quiet", "middle")
    label.set("transform", f"rotate(-90 14 {middle:.1f})")


def _tick(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ET.SubElement(svg, "line", {**{key: f"{value:.1f}" for key, value in ends.items()}, "class": kind})


def _dot(svg: ET.Element, x: float, y: float, kind: str = "dot") -> None:
    ET.SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4.5", "class": kind})


def _diamond(svg: ET.Element, x: float, y: float) -> None:
    corners = ((x - 7, y), (x, y - 7), (x + 7, y), (x, y + 7))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    ET.SubElement(svg, "polygon", {"points": points, "class": "dot"})


def _text(svg: ET.Element, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> ET.Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    element = ET.SubElement(svg, "text", {**place, "class": kind} if kind else place)
    element.text = text
    return element


def _label(
    svg: ET.Element, x: float, y: float, text: str, limit: int = LABEL_LIMIT, kind: str = "", anchor: str = "start"
) -> None:
    """A name cut to the room it has; the whole of it shows on hover and to a screen reader."""
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    element = _text(svg, x, y, one_line(short), kind, anchor)
    if short != text:
        ET.SubElement(element, "title").text = one_line(text)


def _markup(svg: ET.Element) -> markupsafe.Markup:
    return markupsafe.Markup(ET.tostring(svg, encoding="unicode"))
