"""What is compared, what is refused, and how it is written down; without change points, so without ruptures."""

from __future__ import annotations

import json
import pathlib
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from recorded_baselines import recorded, releases

from validation import history_plot
from validation.history import Change, History, Point, hardware_of, history, read_files
from validation.options import OptionError

TWO = releases(20.0, 20.2)


def test_points_stand_in_the_order_they_were_recorded_with_t_intervals() -> None:
    (found,) = history(dict(reversed(TWO.items())))
    assert [p.name for p in found.points] == ["r00.json", "r01.json"]
    # t(0.975, 7) = 2.3646; 0.2 % / sqrt(8) = 0.0707 %
    assert found.points[0].upper == pytest.approx(20.0 * (1 + 2.3646 * 0.002 / 8**0.5), rel=1e-5)
    assert found.hardware == "8 x AMD Instinct MI355X"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gpu": "NVIDIA H200"}, "r00.json was recorded with hardware '8 x AMD Instinct MI355X', r01.json with"),
        ({"model": "GLM-6"}, "with model 'GLM', r01.json with 'GLM-6'; expected one model"),
        ({"profile": "pr"}, "with profile 'release', r01.json with 'pr'"),
        ({"schema": 2}, "with schema 1, r01.json with 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_comparable_is_refused_in_one_sentence(change: dict[str, Any], expected: str) -> None:
    files = {**releases(20.0), "r01.json": recorded(1, 20.0, **change)}
    with pytest.raises(OptionError) as caught:
        history(files)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "named"),
    [("questions_sha256", "question set"), ("prompt_mode", "prompt mode"), ("extractor", "extractor")],
)
def test_other_questions_are_refused(key: str, named: str) -> None:
    one, other = recorded(0, 20.0, marks=("11",)), recorded(1, 20.0, marks=("11",))
    other["accuracy"][key] = "other"
    with pytest.raises(OptionError, match=f"with {named} .* expected one {named}"):
        history({"a": one, "b": other})


def test_questions_do_not_matter_where_one_baseline_asked_none() -> None:
    files = {"a": recorded(0, 20.0, marks=("11",)), "b": recorded(1, 20.0)}
    assert [h.scenario for h in history(files)] == ["1k1k-c4"]


def test_hardware_chooses_among_files() -> None:
    files = {**TWO, "h.json": recorded(3, 10.0, gpu="NVIDIA H200")}
    (found,) = history(files, hardware="mi355x")
    assert len(found.points) == 2
    with pytest.raises(
        OptionError, match="no baseline was recorded on B200; expected one of: 8 x AMD Instinct MI355X, 8 x"
    ):
        history(files, hardware="B200")


def test_a_scenario_that_a_file_lacks_is_refused() -> None:
    files = {"a": recorded(0, {"x": 1.0, "y": 2.0}), "b": recorded(1, {"x": 1.0})}
    assert [h.scenario for h in history(files)] == ["x"]
    with pytest.raises(OptionError, match="b holds no scenario y; expected one that every file holds: x"):
        history(files, "y")
    with pytest.raises(OptionError, match="the 2 baselines share no scenario"):
        history({"a": recorded(0, {"y": 2.0}), "b": recorded(1, {"x": 1.0})})


def test_without_a_gpu_the_processor_is_the_hardware() -> None:
    assert hardware_of({"provenance": {"processor": "Xeon", "cores": 2}}) == "Xeon, 2 cores"
    assert hardware_of({}) == "unknown processor, ? cores"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is no JSON"),
        ("[]", "is no recorded baseline; expected a file that --record wrote"),
        ('{"schema": 1}', "is no recorded baseline"),
        (json.dumps(recorded(0, 20.0, schema=7)), "has schema version 7; expected 1"),
        (json.dumps(recorded(0, -1.0)), "does not fit its schema"),
        (json.dumps(recorded(0, 20.0, latency={"x": {"tpot": 1}})), "does not fit its schema"),
        (json.dumps(recorded(0, 20.0, provenance=[1])), "does not fit its schema"),
    ],
    ids=["cut", "list", "keys", "schema", "negative", "latency", "provenance"],
)
def test_a_file_that_is_no_baseline_is_one_sentence(content: str, expected: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=expected):
        read_files([path])


def test_files_are_read_as_they_were_recorded(tmp_path: pathlib.Path) -> None:
    for name, data in TWO.items():
        (tmp_path / name).write_text(json.dumps(data))
    assert history(read_files(sorted(tmp_path.iterdir()))) == history(TWO)


EVIL = "<script>alert(1)</script>|\x1b[31m"
DRAWN = History(
    EVIL,
    "ms",
    "8 x GPU",
    EVIL,
    (
        Point(EVIL, "2026-01-01", 20.0, 19.9, 20.1, 8),
        Point("r1", "2026-01-02", 20.0, None, None, 1),
        Point("r2", "2026-01-03", 21.0, 20.9, 21.1, 8),
    ),
    (Change(2, 5.0),),
)


def test_the_text_table_marks_the_change() -> None:
    lines = history_plot.to_text(DRAWN).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines[-1].endswith("+5.00 %")
    assert "not known" in lines[-2]


def test_markdown_shows_names_and_runs_none_of_them() -> None:
    text = history_plot.to_markdown(DRAWN, "history-1.svg")
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "![" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {7}


def test_the_plot_is_valid_xml_with_a_point_a_record_and_a_line_a_change() -> None:
    svg = ET.fromstring(history_plot.to_svg(DRAWN))
    space = "{http://www.w3.org/2000/svg}"
    assert len(svg.findall(f"{space}circle")) == 3
    assert len([e for e in svg.findall(f"{space}line") if e.get("class") == "change"]) == 1
    assert not svg.findall(f".//{space}script")


def test_files_are_numbered_whatever_a_scenario_is_called(tmp_path: pathlib.Path) -> None:
    evil = history({"a": recorded(0, {"../../x": 1.0}), "b": recorded(1, {"../../x": 1.0})})
    path = history_plot.write(evil, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["history-1.svg", "history.md"]
    assert "history-1.svg" in path.read_text("utf-8")
