"""The written analysis: what a layer costs in each trace, what its profiler means by a gap, and where it stalls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from validation.reporting.escape import markdown, markdown_code
from validation.timeline.model import NamedTrace, Timeline, TraceView, short_name, timeline_of
from validation.traces.gaps import GapBounds, GapClass

LISTED_STALLS = 12
"""Pairs of kernels in a trace's stall table; the rest is one line."""

TIE_US = 0.005
"""Below it two layers read as equally long in the table's two digits."""

PARTS = ("busy_us", "dispatch_us", "fence_us", "stall_us")
"""They add up to ``wall_us``."""


def row_titles(bounds: GapBounds) -> dict[str, str]:
    """The rows of the decomposition by field, in order."""
    fence, stall = f"{bounds.fence_us:g}", f"{bounds.stall_us:g}"
    return {
        "wall_us": "a layer takes (us)",
        "busy_us": "at least one kernel runs (us)",
        "dispatch_us": f"gaps below {fence} us: dispatch (us)",
        "fence_us": f"gaps of {fence} to {stall} us: fences (us)",
        "stall_us": f"gaps of {stall} us and more: stalls (us)",
        "changes_lane_us": "of all gaps, where the work changes stream (us)",
        "stalls": "stalls",
        "kernels": "kernels",
        "kernel_us": "their durations added up (us)",
    }


def to_markdown(traces: Sequence[NamedTrace], bounds: GapBounds = GapBounds()) -> str:  # noqa: B008 - frozen
    """The analysis of ``traces`` as Markdown; the others are compared with the first."""
    return markdown_of(timeline_of(traces, bounds))


def markdown_of(timeline: Timeline) -> str:
    """The analysis as Markdown."""
    blocks = [
        "# Where the time between kernels goes",
        *(_described(view) for view in timeline.views),
        "## A layer, on average",
        *_decomposition(timeline),
        *(markdown(sentence, limit=1000) for sentence in explanations(timeline)),
        "## What a gap means here",
        markdown(timeline.caveat, limit=2000),
        *_overlaps(timeline),
        "## Stalls",
        *(block for view in timeline.views for block in _stall_table(view, timeline.bounds)),
    ]
    return "\n\n".join(blocks) + "\n"


def explanations(timeline: Timeline) -> Iterator[str]:
    """One sentence for each trace but the first: what it costs more or less, and which part of a layer that is."""
    first, *others = timeline.views
    for view in others:
        if not first.mean or not view.mean:
            yield f"{view.name} cannot be compared with {first.name} by layer: {_unfound(first, view)}."
            continue
        change = {field: view.mean[field] - first.mean[field] for field in first.mean}
        more = f"{abs(change['wall_us']):.2f} us {'more' if change['wall_us'] > 0 else 'less'} than"
        if abs(change["wall_us"]) < TIE_US:
            more = "as long as"
        share = 100 * change["wall_us"] / first.mean["wall_us"]
        parts = ", ".join(f"{part.removesuffix('_us')} {change[part]:+.2f}" for part in PARTS)
        saved = {v.name: v.mean["kernel_us"] - v.mean["busy_us"] for v in (first, view)}
        hidden = saved[view.name] - saved[first.name]
        longer = change["kernel_us"]
        yield (
            f"A layer of {view.name} takes {more} one of {first.name} ({share:+.1f} %), in microseconds: {parts}. "
            f"Kernels that run at the same time hide {hidden:+.2f} us; the kernels themselves run {longer:+.2f} us in "
            f"sum, and the gaps where the work changes stream cost {change['changes_lane_us']:+.2f} us."
        )
        if len(timeline.profilers) > 1:
            yield "Two profilers recorded these, so of this difference only the stalls are comparable."


def _unfound(*views: TraceView) -> str:
    return next(view.steps.layers_sentence for view in views if not view.mean)


def _described(view: TraceView) -> str:
    steps = f"{view.steps.steps_sentence}; {view.steps.layers_sentence}"
    text = f"{view.trace.source}, {len(view.trace.kernels)} kernels, {view.trace.profiler.value}: {steps}."
    return f"**{markdown(view.name)}**: {markdown(text, limit=1000)}"


def _decomposition(timeline: Timeline) -> list[str]:
    views = [view for view in timeline.views if view.mean]
    if not views:
        return [f"No layers were found: {markdown(timeline.views[0].steps.layers_sentence)}."]
    first, *others = views
    differences = [f"{markdown(view.name)} - {markdown(first.name)}" for view in others]
    head = ["", *(markdown(view.name) for view in views), *differences]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for field, title in row_titles(timeline.bounds).items():
        values = [f"{view.mean[field]:.2f}" for view in views]
        lines.append(_row([title, *values, *(f"{v.mean[field] - first.mean[field]:+.2f}" for v in others)]))
    lines.append(_row(["layer passes averaged", *(str(view.passes) for view in views), *[""] * len(others)]))
    return ["\n".join(lines)]


def _overlaps(timeline: Timeline) -> Iterator[str]:
    yield "\n".join(
        f"- {markdown(view.name)}: {view.on_lanes[GapClass.NEGATIVE].count} negative gaps on single streams (deepest "
        f"{view.on_lanes[GapClass.NEGATIVE].extreme_us:.2f} us), {view.across[GapClass.NEGATIVE].count} across streams "
        f"(deepest {view.across[GapClass.NEGATIVE].extreme_us:.2f} us); {view.across[GapClass.DISPATCH].count} gaps "
        f"below {timeline.bounds.fence_us:g} us, {view.across[GapClass.DISPATCH].total_us:.1f} us in all."
        for view in timeline.views
    )


def _stall_table(view: TraceView, bounds: GapBounds) -> Iterator[str]:
    yield f"### {markdown(view.name)}"
    if not view.stalls:
        yield f"No gap across all streams is {bounds.stall_us:g} us or longer."
        return
    lines = [
        _row(["where", "after", "before", "stream", "count", "total us", "longest us", "launched too late"]),
        _row(["---", "---", "---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for group in view.stalls[:LISTED_STALLS]:
        lines.append(
            _row(
                [
                    "layers" if group.in_layers else "around them",
                    markdown_code(short_name(group.before)),
                    markdown_code(short_name(group.after)),
                    "changes" if group.changes_lane else "same",
                    str(group.count),
                    f"{group.total_us:.1f}",
                    f"{group.longest.gap_us:.2f}",
                    f"{group.host_waits} of {group.count}",
                ]
            )
        )
    yield "\n".join(lines)
    rest = view.stalls[LISTED_STALLS:]
    if rest:
        yield f"{len(rest)} more pairs of kernels, {sum(group.total_us for group in rest):.1f} us."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
