"""The viewer: one HTML file with its data, style and script inside, which asks the network for nothing.

Only the script whose hash stands in the page's policy runs. Names reach the page through JSON and the template's
escaping; the script sets text, never markup.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from validation.reporting.escape import BLOCK_LIMIT, visible
from validation.reporting.pages import templates
from validation.timeline.analysis import PARTS, explanations, row_titles
from validation.timeline.model import NamedTrace, Timeline, TraceView, short_name, timeline_of
from validation.traces.gaps import GapBounds, GapClass, Gaps, lane_gaps, union_gaps
from validation.traces.reader import Floats, Mask

_FOLDER = pathlib.Path(__file__).parent
_STYLES = (_FOLDER.parent / "reporting" / "report.css", _FOLDER / "timeline.css")
DRAWN_KERNELS = 200_000
"""Of one trace; above it, those nearest the shown layer pass are drawn. The tables speak of all of them."""
LISTED_STALLS = 25
"""Pairs of kernels in a trace's stall table."""
LANES_OPEN = 8
"""Streams of a trace that are drawn at once; those without a kernel in the layer pass are folded above it."""
BAR_WIDTH = 600
"""Of the template's bars."""
COLOURS = 8
"""Fills in ``timeline.css``; a name's is its number of first appearance, modulo this."""


def to_timeline(traces: Sequence[NamedTrace], bounds: GapBounds = GapBounds()) -> str:  # noqa: B008 - frozen
    """The viewer of ``traces`` as one HTML document; the others are compared with the first.

    Raises:
        ValueError: no trace was given, or two of one name.
    """
    return html_of(timeline_of(traces, bounds))


def html_of(timeline: Timeline) -> str:
    """The viewer as one HTML document."""
    script = (_FOLDER / "timeline.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = chart_data(timeline)
    views = [
        (view, view.stalls[:LISTED_STALLS], len(view.stalls[LISTED_STALLS:]), cut)
        for view, cut in zip(timeline.views, (trace["left_out"] for trace in data["traces"]), strict=True)
    ]
    return _template().render(
        css="\n".join(path.read_text(encoding="utf-8") for path in _STYLES),
        script=script,
        script_hash=f"sha256-{digest}",
        data=_json(data),
        t=timeline,
        views=views,
        layered=[view for view in timeline.views if view.mean],
        rows=row_titles(timeline.bounds),
        bars=_bars(timeline),
        explanations=list(explanations(timeline)),
        negative=GapClass.NEGATIVE,
    )


def chart_data(timeline: Timeline) -> dict[str, Any]:
    """What the script draws: columns of numbers, times in microseconds from the common zero."""
    numbers: dict[str, int] = {}
    traces = [_columns(view, timeline.bounds, numbers) for view in timeline.views]
    return {
        "names": [visible(name, BLOCK_LIMIT) for name in numbers],
        "short": [visible(short_name(name), 80) for name in numbers],
        "colours": COLOURS,
        "stall": int(GapClass.STALL),
        "traces": traces,
    }


def _columns(view: TraceView, bounds: GapBounds, numbers: dict[str, int]) -> dict[str, Any]:
    trace, steps = view.trace, view.steps
    kernels = trace.kernels
    kept = _nearest(kernels.start_us, view.zero_us)
    name = [numbers.setdefault(trace.names[n], len(numbers)) for n in kernels.name[kept].tolist()]
    drawn, lane = np.unique(kernels.lane[kept], return_inverse=True)
    in_pass = np.zeros(len(kernels), bool)
    window = None
    if view.shown_pass is not None:
        cost = view.shown_pass.cost
        in_pass = (steps.step == cost.step) & (steps.layer == cost.layer)
        ends = kernels.end_us[in_pass] - view.zero_us
        window = [round(view.pass_start_us - view.zero_us, 3), round(float(ends.max()), 3)]
    in_layer_pass = np.bincount(kernels.lane[in_pass], minlength=len(trace.lanes))[drawn]
    shown = in_layer_pass > 0 if window and len(drawn) > LANES_OPEN else np.ones(len(drawn), bool)
    return {
        "name": visible(view.name, 120),
        "lanes": [visible(str(trace.lanes[number]), 60) for number in drawn],
        "shown": shown.tolist(),
        "window": window,
        "left_out": int(len(kernels) - kept.sum()),
        "kernel": name,
        "lane": lane.tolist(),
        "start": _rounded(kernels.start_us[kept] - view.zero_us),
        "duration": _rounded(kernels.duration_us[kept]),
        "step": steps.step[kept].tolist(),
        "layer": steps.layer[kept].tolist(),
        "across": _gap_columns(union_gaps(trace, bounds), kept),
        "on_lane": _gap_columns(lane_gaps(trace, bounds), kept),
    }


def _gap_columns(gaps: Gaps, kept: Mask) -> dict[str, Any]:
    lengths = np.where(np.isnan(gaps.gap_us), 0.0, gaps.gap_us)[kept]
    return {"us": _rounded(lengths), "kind": "".join(map(str, gaps.gap_class[kept].tolist()))}


def _nearest(start_us: Floats, zero_us: float) -> Mask:
    """The kernels to draw: all, or those nearest the zero."""
    if len(start_us) <= DRAWN_KERNELS:
        return np.ones(len(start_us), bool)
    kept = np.zeros(len(start_us), bool)
    kept[np.argsort(np.abs(start_us - zero_us), kind="stable")[:DRAWN_KERNELS]] = True
    return kept


def _rounded(values: Floats) -> list[float]:
    """To the nanosecond, which is what profilers record."""
    rounded: list[float] = np.round(values, 3).tolist()
    return rounded


def _bars(timeline: Timeline) -> list[tuple[str, float, list[tuple[str, float, float]]]]:
    """Name, length and parts (class, start, width) of each trace's bar; the longest layer is as wide as the drawing."""
    views = [view for view in timeline.views if view.mean]
    longest = max((view.mean["wall_us"] for view in views), default=1.0) or 1.0
    bars = []
    for view in views:
        at, parts = 0.0, []
        for field in PARTS:
            width = BAR_WIDTH * view.mean[field] / longest
            parts.append((field.removesuffix("_us"), at, width))
            at += width
        bars.append((view.name, view.mean["wall_us"], parts))
    return bars


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _template() -> jinja2.Template:
    pages = templates(_FOLDER)
    pages.filters["short"] = short_name
    return pages.get_template("timeline.html.j2")
