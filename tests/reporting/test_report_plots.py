"""The plots as drawings: valid, finite, inside their frame, whatever the numbers."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import HOSTILE, PROPERTY

from validation.reporting import plots, series

NUMBERS = st.floats(-1e8, 1e8)
MAYBE = st.none() | NUMBERS


def drawn(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name in ("x", "cx", "x1", "x2", "y", "cy", "y1", "y2"):
            if name in element.attrib:
                limit = width if "x" in name else height
                assert -1 <= float(element.attrib[name]) <= limit + 1, (element.tag, element.attrib)
    assert "nan" not in svg
    assert not re.search(r"[=\", ]-?inf", svg)
    return root


@PROPERTY
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_ticks_are_round_and_enclose_the_values(values: list[float]) -> None:
    ticks = plots.nice_ticks(values)
    tolerance = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= min(values) + tolerance
    assert ticks[-1] >= max(values) - tolerance
    assert 2 <= len(ticks) <= 12
    assert all(b > a for a, b in itertools.pairwise(ticks))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 1], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-2.2, 0], [-2.5, -2, -1.5, -1, -0.5, 0]),
        ([5], [4, 5, 6]),
        ([0], [-1, 0, 1]),
    ],
    ids=["unit", "gains", "one", "zero"],
)
def test_ticks_of_known_ranges(values: list[float], ticks: list[float]) -> None:
    found = plots.nice_ticks(values)
    assert found[0] <= min(values) <= max(values) <= found[-1]
    if len(values) > 1:
        assert found == pytest.approx(ticks)


INTERVALS = st.builds(series.Interval, st.just(HOSTILE), NUMBERS, MAYBE, MAYBE, MAYBE, st.booleans())


@PROPERTY
@given(st.lists(INTERVALS, min_size=1, max_size=6), MAYBE)
def test_forest_plot_stays_in_its_frame(rows: list[series.Interval], limit: float | None) -> None:
    drawn(plots.forest_plot(series.Forest(HOSTILE, tuple(rows), limit), "percent", "limit"))


SAVINGS = st.builds(series.Saving, st.just(HOSTILE), st.floats(1e-3, 1e6), NUMBERS, MAYBE, MAYBE)


@PROPERTY
@given(st.lists(SAVINGS, min_size=2, max_size=5), MAYBE)
def test_savings_plot_stays_in_its_frame(points: list[series.Saving], constant: float | None) -> None:
    drawn(plots.savings_plot(series.Savings("latency", tuple(points), constant)))


@PROPERTY
@given(st.lists(st.tuples(NUMBERS, st.sampled_from(["BC", "CB", HOSTILE])), min_size=2, max_size=30), MAYBE)
def test_blocks_plot_has_a_point_a_block(changes: list[tuple[float, str]], mean: float | None) -> None:
    root = drawn(plots.blocks_plot(series.Blocks("latency", tuple(changes), mean)))
    assert len(root.findall("circle")) == len(changes)


@PROPERTY
@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=6).map(tuple), min_size=1, max_size=4), MAYBE)
def test_runs_plot_has_a_point_a_run(groups: list[tuple[float, ...]], floor: float | None) -> None:
    runs = series.Runs("accuracy", tuple((HOSTILE, shares) for shares in groups), floor)
    assert len(drawn(plots.runs_plot(runs)).findall("circle")) == sum(map(len, groups))


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), 10**400, 1e300, [1]], ids=repr)
def test_what_is_no_measurement_is_not_drawn(value: object) -> None:
    assert series.number(value) is None
