"""The reader: every event kept, nothing invented, every broken file refused in one sentence with its place."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from validation.traces.reader import Kind, Lane, Limits, Profiler, TraceError, read_ranks, read_trace
from validation.traces.scan import EventFile

Json = dict[str, Any]
GPU = {"kernel": Kind.KERNEL, "gpu_memcpy": Kind.MEMCPY, "gpu_memset": Kind.MEMSET}
KEPT = {*GPU, "cuda_runtime", "cuda_driver", "user_annotation", "gpu_user_annotation"}
SMALL = Limits(piece_bytes=1000)
UNSHRUNK = (Phase.explicit, Phase.generate)
"""Shrinking a trace of thousands of events would take minutes."""


def test_every_kernel_of_a_real_trace_is_read_as_json_reads_it(
    arms: tuple[pathlib.Path, pathlib.Path], load: Callable[[pathlib.Path], Json]
) -> None:
    for path in arms:
        trace = read_trace(path)
        events = [e for e in load(path)["traceEvents"] if e.get("cat") in GPU]
        base = min(e["ts"] for e in load(path)["traceEvents"] if e.get("cat") in KEPT)
        expected = collections.Counter(
            (GPU[e["cat"]], e["name"], e["ts"] - base, e["dur"], e["tid"], e["args"]["correlation"]) for e in events
        )
        k = trace.kernels
        found = collections.Counter(
            (kind, trace.names[name], start, duration, trace.lanes[lane].stream, correlation)
            for kind, name, start, duration, lane, correlation in zip(
                k.kind.tolist(), k.name.tolist(), k.start_us.tolist(), k.duration_us.tolist(), k.lane.tolist(),
                k.correlation.tolist(), strict=True,
            )
        )  # fmt: skip
        assert found == expected
        assert (np.diff(k.start_us) >= 0).all()


def test_real_traces_hold_what_their_provenance_says(arms: tuple[pathlib.Path, pathlib.Path]) -> None:
    for path, kernels in zip(arms, (2202, 2154), strict=True):
        trace = read_trace(path)
        assert int((trace.kernels.kind == Kind.KERNEL).sum()) == kernels
        assert (trace.rank, trace.world_size, trace.profiler) == (0, 1, Profiler.CUPTI)
        assert len(np.unique(trace.kernels.lane)) == 19
        assert trace.resolution_us == pytest.approx(2**-10)


def test_the_size_of_the_pieces_changes_nothing(cat_path: pathlib.Path) -> None:
    whole, pieces = read_trace(cat_path), read_trace(cat_path, SMALL)
    assert len(list(EventFile(cat_path, SMALL))) > 10
    assert whole.names == pieces.names
    for field in dataclasses.fields(whole.kernels):
        assert np.array_equal(getattr(whole.kernels, field.name), getattr(pieces.kernels, field.name))


def test_plain_and_joined_gzip_files_read_alike(cat_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = gzip.decompress(cat_path.read_bytes())
    (tmp_path / "plain.json").write_bytes(text)
    (tmp_path / "joined.json.gz").write_bytes(gzip.compress(text[:999]) + gzip.compress(text[999:]))
    counts = {read_trace(path).event_count for path in (cat_path, *tmp_path.iterdir())}
    assert len(counts) == 1


def test_the_header_is_read_on_both_sides_of_the_events(save: Callable[..., pathlib.Path]) -> None:
    stream = EventFile(save({"a": 1, "traceEvents": [], "b": [{"c": "]}"}, {"d": 2}]}), Limits())
    assert list(stream) == []
    assert stream.header == {"a": 1, "b": [{"c": "]}"}, {"d": 2}]}


def test_a_bare_array_of_events_is_a_trace(save: Callable[..., pathlib.Path]) -> None:
    event = {"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": 1, "pid": 0, "tid": 7}
    assert len(read_trace(save([event, event])).kernels) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_names_the_byte_where_it_ends(
    share: float, cat_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text = gzip.decompress(cat_path.read_bytes())
    size = int(len(text) * share)
    path = tmp_path / "cut.json"
    path.write_bytes(text[:size])
    with pytest.raises(TraceError, match=rf"cut short: it ends at byte {size}") as caught:
        read_trace(path)
    start = int(re.findall(r"starts at byte (\d+)", str(caught.value))[0])
    assert text[start : start + 1] == b"{"
    assert size - 5000 < start < size


def test_a_truncated_gzip_file_names_both_offsets(cat_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = cat_path.read_bytes()
    path = tmp_path / "cut.json.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        TraceError, match=rf"ends without a trailer after byte {len(data) // 2} \(byte \d+ of the text\)"
    ):
        read_trace(path)


def test_a_damaged_gzip_file_is_refused(cat_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = bytearray(cat_path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "bad.json.gz"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=r"byte \d+"):
        read_trace(path)


def test_a_broken_event_is_named_by_its_byte(cat_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = gzip.decompress(cat_path.read_bytes())
    at = text.index(b'"dur":', len(text) // 2)
    path = tmp_path / "bad.json"
    path.write_bytes(text[:at] + b'"dur"?' + text[at + 6 :])
    with pytest.raises(TraceError, match="broken near byte") as caught:
        read_trace(path)
    assert abs(int(re.findall(r"byte (\d+)", str(caught.value))[0]) - at) <= 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no trace: byte 0"),
        ("\x00\x01", "no trace: byte 0"),
        ("{}", "no traceEvents"),
        ('{"events": {"traceEvents": []}}', "no traceEvents"),
        ('{"traceEvents": 3}', "no traceEvents"),
        ('{"traceEvents": [', "cut short"),
        ('{"traceEvents": []', "cut short"),
        ('{"traceEvents": [] "a": 1}', "broken near byte"),
        ('{"traceEvents": [], "traceEvents": []}', "second traceEvents"),
        ('{"traceEvents": [{"a": 1} {"b": 2}]}', "broken"),
        ("[] trailing", "goes on"),
        ('{"traceEvents": [1]}', "no object"),
        ('{"traceEvents": [{"cat": []}]}', "no object with a text cat"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "ts": 1, "dur": 1, "pid": 0, "tid": 1}]}', "has no name"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 1, "pid": [], "tid": 1}]}', "pid"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(text: str, expected: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=expected):
        read_trace(path)


def test_a_missing_file_is_refused_in_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.json cannot be read"):
        read_trace(tmp_path / "absent.json")


@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity", "-inf", "null", '"3"', "true", "1e999"])
@pytest.mark.parametrize("key", ["ts", "dur"])
def test_a_time_that_is_no_time_is_refused_with_its_byte(key: str, value: str, tmp_path: pathlib.Path) -> None:
    if (key, value) == ("ts", "-1"):
        value = '"-1"'  # a negative start is a time
    event = '{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 2, "pid": 0, "tid": 1}'
    broken = re.sub(rf'"{key}": \d', f'"{key}": {value}', event)
    text = f'{{"traceEvents": [{event}, {broken}]}}'
    path = tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match="byte") as caught:
        read_trace(path)
    if value != "1e999":  # the parser refuses the number itself
        assert f"at byte {text.index(broken)} " in str(caught.value)


def test_times_whose_sum_is_no_number_are_refused(kernels_as_trace: Callable[..., pathlib.Path]) -> None:
    with pytest.raises(TraceError, match="sum is not finite"):
        read_trace(kernels_as_trace(("k", 1, 1), ("k", 1e308, 1.7e308)))


def test_operators_are_read_only_where_nothing_ran_on_a_gpu(kernels_as_trace: Callable[..., pathlib.Path]) -> None:
    operator = {"ph": "X", "cat": "cpu_op", "name": "aten::cat", "ts": 1, "dur": 2, "pid": 9, "tid": 9}
    with_kernel = read_trace(kernels_as_trace(("k", 1, 1), more=(operator,)))
    assert (with_kernel.names, with_kernel.event_count) == (("k",), 2)
    without = read_trace(kernels_as_trace(more=(operator,)))
    assert (without.names, without.event_count, without.profiler) == (("aten::cat",), 1, Profiler.CPU)


def test_a_bare_nan_beside_the_times_does_no_harm(tmp_path: pathlib.Path) -> None:
    text = (
        '{"traceEvents": [{"ph": "X", "cat": "gpu_memcpy", "name": "nan inf", "ts": 1, "dur": 2, "pid": 0, "tid": 1, '
        '"args": {"memory bandwidth (GB/s)": inf, "x": NaN}}]}'
    )
    path = tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    assert read_trace(path).names == ("nan inf",)


def test_bytes_that_are_not_utf8_are_replaced_and_noted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(
        b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k\xff", "ts": 1, "dur": 2, "pid": 0, "tid": 1}]}'
    )
    trace = read_trace(path)
    assert trace.names == ("k\ufffd",)
    assert "UTF-8" in trace.notes[0]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(file_bytes=10_000), "more than 10000 bytes"),
        (Limits(kept_events=5), "more than 5 events"),
        (Limits(name_chars=10), "over 10 characters"),
    ],
    ids=["file", "events", "name"],
)
def test_what_is_over_a_limit_is_refused(limits: Limits, expected: str, cat_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=expected):
        read_trace(cat_path, limits)


def test_one_huge_event_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [{"name": "' + "x" * 300_000 + '"}]}', encoding="utf-8")
    with pytest.raises(TraceError, match="an event of more than 100000 bytes at byte 17"):
        read_trace(path, Limits(piece_bytes=1000, event_bytes=100_000))


def _launch(name: str) -> Json:
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "ts": 0, "dur": 1, "pid": 9, "tid": 9}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (("hipGraphLaunch", "hipLaunchKernel"), Profiler.ROCTRACER),
        (("cudaLaunchKernel",), Profiler.CUPTI),
        (("cuLaunchKernelEx",), Profiler.CUPTI),
        (("cudaLaunchKernel", "hipLaunchKernel"), Profiler.UNKNOWN),
        ((), Profiler.UNKNOWN),
    ],
    ids=["hip", "cuda-runtime", "cuda-driver", "both", "neither"],
)
def test_the_profiler_is_told_by_its_launches(
    calls: tuple[str, ...], expected: Profiler, kernels_as_trace: Callable[..., pathlib.Path]
) -> None:
    trace = read_trace(kernels_as_trace(("k", 1, 1), more=tuple(_launch(call) for call in calls)))
    assert trace.profiler is expected
    assert trace.profiler_how


def test_a_cpu_trace_offers_its_operators(cpu_path: pathlib.Path) -> None:
    trace = read_trace(cpu_path)
    assert trace.profiler is Profiler.CPU
    assert sum(trace.names[i] == "aten::cat" for i in trace.kernels.name) == 12
    assert set(trace.kernels.kind.tolist()) == {Kind.CPU_OP}


def test_ranks_are_grouped_in_order_and_decode_files_preferred(
    kernels_as_trace: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    for rank in (1, 0):
        for stage in ("DECODE", "EXTEND"):
            kernels_as_trace((stage, 1, 1), name=f"1790-TP-{rank}-{stage}.trace.json")
    traces = read_ranks(tmp_path)
    assert [(trace.rank, trace.names) for trace in traces] == [(0, ("DECODE",)), (1, ("DECODE",))]


def test_two_files_of_one_rank_are_refused(
    kernels_as_trace: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    for name in ("a-rank_3.json", "b-rank_3.json"):
        kernels_as_trace(("k", 1, 1), name=name)
    with pytest.raises(TraceError, match="two traces of rank 3"):
        read_ranks(tmp_path)


def test_a_folder_without_traces_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"holds no \*\.json"):
        read_ranks(tmp_path)


text_values = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["},{", "]}", '"', "\\", '\\"', "}, {"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | text_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text_values, inner, max_size=3),
    max_leaves=6,
)
event_objects = st.fixed_dictionaries(
    {
        "ph": st.just("X"),
        "cat": st.sampled_from(["kernel", "gpu_memcpy", "python_function"]),
        "name": text_values,
        "ts": st.floats(0, 1e6),
        "dur": st.floats(0, 1e3),
        "pid": st.integers(0, 3),
        "tid": st.integers(0, 3) | text_values,
        "args": st.dictionaries(text_values, json_values, max_size=3),
    }
)


def _read_text(text: bytes, limits: Limits) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.json")
        path.write_bytes(text)
        return read_trace(path, limits)


@settings(max_examples=60, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(
    events=st.lists(event_objects, max_size=12),
    repeat=st.sampled_from([1, 1, 400]),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n ", " : ")]),
    tail=st.dictionaries(text_values.filter(lambda key: key != "traceEvents"), json_values, max_size=2),
)
def test_any_valid_trace_reads_as_json_reads_it(
    events: list[Json], repeat: int, separators: tuple[str, str], tail: Json
) -> None:
    text = json.dumps({"traceEvents": events * repeat, **tail}, separators=separators).encode()
    trace = _read_text(text, SMALL)
    wanted = [e for e in events * repeat if e["cat"] in GPU]
    assert trace.event_count == len(events) * repeat
    base = min((e["ts"] for e in wanted), default=0.0)
    k = trace.kernels
    found = zip(k.name.tolist(), k.start_us.tolist(), k.duration_us.tolist(), k.lane.tolist(), strict=True)
    assert collections.Counter(
        (trace.names[n], s, d, trace.lanes[lane]) for n, s, d, lane in found
    ) == collections.Counter((e["name"], e["ts"] - base, e["dur"], Lane(e["pid"], e["tid"])) for e in wanted)


def test_a_cut_inside_a_name_full_of_braces_is_seen_wherever_it_is(tmp_path: pathlib.Path) -> None:
    event = {
        "ph": "X",
        "cat": "kernel",
        "name": '},{ ]} "\\',
        "ts": 1,
        "dur": 1,
        "pid": 0,
        "tid": 1,
        "args": {"a": [{}, {}]},
    }
    text = json.dumps({"traceEvents": [event, event]}).encode()
    second = text.rindex(b'{"ph"')
    path = tmp_path / "cut.json"
    for size in range(second + 1, len(text) - 2):
        path.write_bytes(text[:size])
        with pytest.raises(TraceError, match=rf"cut short: it ends at byte {size}, .* starts at byte {second};"):
            read_trace(path)


@settings(max_examples=150, deadline=None, derandomize=True, phases=UNSHRUNK)
@given(
    events=st.lists(event_objects, min_size=1, max_size=4),
    cut=st.floats(0, 1),
    noise=st.binary(max_size=6),
    keep_rest=st.booleans(),
)
def test_no_damage_crashes_the_reader(events: list[Json], cut: float, noise: bytes, keep_rest: bool) -> None:
    text = json.dumps({"traceEvents": events}).encode()
    at = int(cut * len(text))
    damaged = text[:at] + noise + (text[at:] if keep_rest else b"")
    try:
        _read_text(damaged, SMALL)
    except TraceError as error:
        message = str(error)
        assert "\n" not in message
        assert "byte" in message
