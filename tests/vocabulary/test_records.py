"""Raw records survive a round trip, a crash, and are refused where they are broken."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.records import (
    Journal,
    KernelCell,
    KernelCheck,
    Launch,
    Note,
    RecordError,
    Request,
    from_json,
    read_file,
    read_run,
    to_json,
)

CELL = KernelCell("cat_skip", "cell", True, "", {"producer": "torch"}, (KernelCheck("q_all", True),), 0.5)
LAUNCH = Launch("b0-baseline", "baseline", 0, 0, "http://127.0.0.1:1", 1, True, {"server": {}})
REQUEST = Request(
    "b0",
    "baseline",
    0,
    0,
    "s",
    0,
    None,
    None,
    2,
    "stop",
    "text \u2028 \U0001f600 \ud83d",
    (1, 2),
    (5, 6),
    (1, 2),
    0,
    7,
    None,
)


@pytest.mark.parametrize("record", [CELL, REQUEST, Note("topic", "sentence", {"a": [1, None]})], ids=lambda r: r.kind)
def test_a_record_comes_back_from_its_line(record: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "raw" / "a.jsonl"
    with Journal(path) as journal:
        journal.append(record)
    assert list(read_file(path)) == [record]


def test_an_integer_is_read_as_the_float_it_stands_for() -> None:
    assert dataclasses.asdict(from_json(to_json(LAUNCH)))["ready_s"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "verdict"}, "unknown"),
        ({"kind": ["note"]}, "unknown"),
        ({"seconds": "fast"}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"applicable": 1}, "applicable"),
        ({"checks": "none"}, "checks"),
        ({"checks": [3]}, "expected an object"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_json({**to_json(CELL), **change})


def test_a_missing_field_is_named() -> None:
    data = to_json(CELL)
    del data["cell"]
    with pytest.raises(RecordError, match="cell"):
        from_json(data)


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "raw" / "a.jsonl"
    with Journal(path) as journal:
        journal.append(CELL)
    with path.open("ab") as file:
        file.write(b'{"kind": "note", "top')
    assert list(read_file(path)) == [CELL]
    with Journal(path) as journal:
        journal.append(LAUNCH)
    assert [r.kind for r in read_file(path)] == ["kernel_cell", "launch"]


def test_a_broken_line_names_file_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "raw" / "a.jsonl"
    with Journal(path) as journal:
        journal.append(CELL)
    with path.open("ab") as file:
        file.write(b"not json\n")
    with pytest.raises(RecordError, match=r"a\.jsonl line 2"):
        list(read_file(path))


def test_a_folder_without_records_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RecordError, match=r"raw/\*\.jsonl"):
        read_run(tmp_path)


def test_nan_never_reaches_a_record(tmp_path: pathlib.Path) -> None:
    with Journal(tmp_path / "a.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append(dataclasses.replace(CELL, seconds=float("nan")))


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Request)] + ["kind", "other"]), json_values
    )
)
def test_any_json_gives_a_record_or_the_documented_error(data: dict[str, Any]) -> None:
    data = json.loads(json.dumps({"kind": "request", **data}))
    with contextlib.suppress(RecordError):
        from_json(data)
