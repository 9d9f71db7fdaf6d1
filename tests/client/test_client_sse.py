"""Stamped bytes to stamped events: however the network cuts a stream, the events and their times are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.client import sse
from validation.client.hotloop import read_head
from validation.client.sse import BadStream, Payloads, events_of, read_events

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


PAYLOADS = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=8)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(payloads=PAYLOADS, network=CUTS, chunks=CUTS, newline=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_do_not_depend_on_how_the_stream_is_cut(
    payloads: list[bytes], network: list[int], chunks: list[int], newline: bytes
) -> None:
    body = b"".join(b"data: " + payload + newline + newline for payload in payloads)
    raw = HEAD + chunked(*cut(body, chunks))
    segments = cut(raw, network)
    events = read_events(segments, list(range(len(segments))))
    assert list(events.data) == payloads
    seen = b""
    arrived = 0
    for number, segment in enumerate(segments):
        seen += segment
        complete = sum(stamp <= number for stamp in events.stamps_ns)
        assert complete >= arrived
        arrived = complete
    assert arrived == len(payloads)


def test_an_event_has_the_time_of_its_last_byte() -> None:
    raw = PLAIN + b"data: one\n\ndata: two\n\n"
    first = raw.index(b"two")
    events = read_events([raw[:first], raw[first : first + 3], raw[first + 3 :]], [10, 20, 30])
    assert (list(events.data), events.stamps_ns) == ([b"one", b"two"], [10, 30])


def test_comments_other_fields_and_lines_of_one_event() -> None:
    body = b": ping\n\nevent: x\nid: 7\ndata: a\ndata:b\n\nretry: 3\n\ndata\n\n"
    assert list(read_events([PLAIN + body], [1]).data) == [b"a\nb", b""]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (PLAIN + b"data: a\n\ndata: b", "inside an event"),
        (HEAD + b"zz\r\nabc\r\n0\r\n\r\n", "chunked coding breaks"),
        (HEAD + b"5\r\nabc", "chunked coding breaks"),
        (HEAD + b"-3\r\nabc\r\n0\r\n\r\n", "chunked coding breaks"),
        (b"HTTP/1.1 200 OK\r\nContent-Type", "no HTTP/1 answer"),
        (b"\x16\x03\x01 TLS", "no HTTP/1 answer"),
    ],
)
def test_a_broken_stream_is_named(raw: bytes, says: str) -> None:
    with pytest.raises(BadStream, match=says):
        read_events([raw], [1])


@given(raw=st.binary(max_size=200), start=st.sampled_from([b"", HEAD, PLAIN]))
def test_any_bytes_are_events_or_a_bad_stream(raw: bytes, start: bytes) -> None:
    try:
        events = read_events([start + raw], [1])
    except BadStream:
        return
    assert len(events.data) == len(events.stamps_ns)


def test_another_body_than_a_stream_is_one_event() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    assert list(read_events([raw[:9], raw[9:]], [1, 2]).data) == [b"{}"]


def test_headers_are_read_without_regard_to_case() -> None:
    head = read_head(HEAD.replace(b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING:  Chunked"))
    assert head is not None
    assert head.chunked


def usual(*payloads: bytes) -> bytes:
    return HEAD + chunked(*(b"data: " + payload + b"\n\n" for payload in payloads))


def told(raw: bytes) -> tuple[list[bytes], list[int]] | str:
    try:
        events = events_of(raw, range(1, len(raw) + 1), range(len(raw)))
    except BadStream as error:
        return str(error)
    return list(events.data), events.stamps_ns


def test_the_usual_stream_takes_the_fast_pass() -> None:
    for raw in (usual(b"{}"), usual(b'{"a": 1}' * 40, b"[DONE]"), usual(b"", b"x" * 70_000)):
        assert sse._one_event_a_chunk(raw, len(HEAD)) is not None


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + chunked(b"data: a\rdata: b\n\n"),
        HEAD + chunked(b"data:ab\n\n"),
        HEAD + chunked(b"event:a\n\n", b"data: a\n\n"),
        HEAD + chunked(b"data: a\nid: 1\n"),
        usual(b"a", b"b").replace(b"\n\n\r\n", b"\n\n\t\n", 1),
        usual(b"a", b"b").replace(b"\n9\r\n", b"\na\r\n", 1),
        usual(b"a", b"b").replace(b"\n9\r\n", b"\n9\n", 1),
        usual(b"abc", b"b").replace(b"\nb\r\n", b"\nB\r\n", 1),
        usual(b"a", b"b").replace(b"\n9\r\n", b"\n09\r\n", 1),
        usual(b"a", b"b").replace(b"\n9\r\n", b"\n-9\r\n", 1),
        usual(b"a", b"b").replace(b"\n9\r\n", b"\n9;x\r\n", 1),
        usual(b"a", b"b").replace(b"0\r\n\r\n", b""),
        usual(b"a", b"b").replace(b"0\r\n\r\n", b"0\r\nTrailer: 1\r\n\r\n"),
    ],
    ids=[
        "lines",
        "no blank",
        "field",
        "id",
        "chunk's end",
        "size",
        "size's end",
        "upper case",
        "zero",
        "sign",
        "extension",
        "cut",
        "trailer",
    ],
)
def test_any_other_stream_does_not(raw: bytes) -> None:
    assert sse._one_event_a_chunk(raw, len(HEAD)) is None


# what servers, proxies and a hostile end could put in the way of the fast pass
TWISTS = [b"\r", b"\n", b"\r\n", b"\n\n", b"0", b"A", b" ", b"data: ", b"data:", b": x\n\n", b"0\r\n\r\n", b";x=1", b""]


@given(
    payloads=st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 8), st.sampled_from(TWISTS) | st.binary(max_size=2)), max_size=3
    ),
)
def test_the_fast_pass_says_what_the_slow_pass_says(
    payloads: list[bytes], changes: list[tuple[int, int, bytes]]
) -> None:
    raw = usual(*payloads)
    for place, removed, twist in changes:
        place = len(HEAD) + place % (len(raw) - len(HEAD) + 1)
        raw = raw[:place] + twist + raw[place + removed :]
    fast = told(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "_one_event_a_chunk", lambda raw, start: None)
        assert told(raw) == fast


@given(data=st.lists(st.binary(max_size=5), max_size=5), first=st.integers(0, 5), last=st.integers(-5, 5))
def test_payloads_are_the_sequence_of_what_they_hold(data: list[bytes], first: int, last: int) -> None:
    payloads = Payloads.of(data)
    assert (len(payloads), list(payloads), [payloads[i] for i in range(len(data))]) == (len(data), data, data)
    assert list(payloads[first:last]) == data[first:last]
    assert Payloads.of(payloads) is payloads
