"""What the three backends send, and that no event of any shape makes them raise."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.client import Answer, Backend, Prompt, Sampling
from validation.client.sse import Payloads
from validation.discovery import load_all

BACKENDS: dict[str, Backend] = load_all("scenarios/backends", "BACKEND")
TEXT, IDS = Prompt(text="one"), Prompt(input_ids=(5, 6))
CHAT = Prompt(messages=({"role": "user", "content": "one"},))


def sent(backend: str, prompt: Prompt, sampling: Sampling, stream: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(BACKENDS[backend].body(prompt, sampling, stream))
    return body


def test_native_body() -> None:
    sampling = Sampling(7, temperature=0.5, stop=("\n",), ignore_eos=True, return_logprob=True)
    assert sent("sglang_native", IDS, sampling) == {
        "input_ids": [5, 6],
        "sampling_params": {"max_new_tokens": 7, "temperature": 0.5, "ignore_eos": True, "stop": ["\n"]},
        "stream": True,
        "return_logprob": True,
    }


@pytest.mark.parametrize(
    ("backend", "prompt", "field", "value"),
    [
        ("sglang_native", TEXT, "text", "one"),
        ("openai_completions", TEXT, "prompt", "one"),
        ("openai_completions", IDS, "prompt", [5, 6]),
        ("openai_chat", TEXT, "messages", [{"role": "user", "content": "one"}]),
        ("openai_chat", CHAT, "messages", [{"role": "user", "content": "one"}]),
    ],
)
def test_prompt_field(backend: str, prompt: Prompt, field: str, value: object) -> None:
    assert sent(backend, prompt, Sampling(3))[field] == value


@pytest.mark.parametrize(
    ("backend", "prompt"), [("sglang_native", CHAT), ("openai_completions", CHAT), ("openai_chat", IDS)]
)
def test_a_prompt_that_the_endpoint_does_not_take(backend: str, prompt: Prompt) -> None:
    with pytest.raises(ValueError, match="was given"):
        BACKENDS[backend].body(prompt, Sampling(3), stream=True)


@pytest.mark.parametrize("stream", [True, False])
def test_usage_is_asked_for_in_every_event(stream: bool) -> None:
    asked = sent("openai_completions", TEXT, Sampling(3), stream).get("stream_options")
    assert asked == ({"include_usage": True, "continuous_usage_stats": True} if stream else None)


@pytest.mark.parametrize("fields", [{}, {"text": "a", "input_ids": (1,)}])
def test_a_prompt_is_exactly_one_thing(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Prompt(**fields)


KEYS = [
    "text",
    "output_ids",
    "meta_info",
    "completion_tokens",
    "finish_reason",
    "choices",
    "delta",
    "content",
    "usage",
    "timings",
    "prompt_tokens_details",
    "model",
    "message",
    "error",
    "type",
    "prompt_tokens",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("backend", BACKENDS)
@given(events=st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9), max_size=4))
def test_no_event_makes_parse_raise(backend: str, events: list[bytes]) -> None:
    answer = BACKENDS[backend].parse(events)
    assert isinstance(answer.text, str)
    assert answer.error is not None or answer.chunk_events


def test_llama_cpp_counts_with_timings() -> None:
    """Shape of llama.cpp's server: no usage before the last event, ``timings`` in each where they are asked for."""
    events = [
        {"choices": [{"text": "a", "index": 0, "finish_reason": None}], "timings": {"predicted_n": 1, "cache_n": 4}},
        {"choices": [{"text": "b", "index": 0, "finish_reason": None}], "timings": {"predicted_n": 3, "cache_n": 4}},
        {"choices": [{"text": "", "index": 0, "finish_reason": "length"}], "timings": {"predicted_n": 3, "cache_n": 4}},
        {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 9}},
    ]
    answer = BACKENDS["openai_completions"].parse([json.dumps(event).encode() for event in events] + [b"[DONE]"])
    assert answer.error is None
    assert (answer.text, answer.chunk_tokens, answer.output_tokens) == ("ab", (1, 3), 3)
    assert (answer.prompt_tokens, answer.cached_tokens) == (9, 4)


def test_a_total_at_the_end_is_no_chunk() -> None:
    """Shape of a server without continuous usage."""
    events = [
        b'{"choices": [{"text": "a", "finish_reason": null}]}',
        b'{"choices": [{"text": "b", "finish_reason": "stop"}]}',
        b'{"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 2}}',
    ]
    answer = BACKENDS["openai_completions"].parse(events)
    assert (answer.error, answer.chunk_events, answer.chunk_tokens, answer.output_tokens) == (None, (0, 1), None, 5)


def test_thinking_aloud_is_output_and_not_text() -> None:
    events = [
        b'{"choices": [{"delta": {"reasoning_content": "hm"}}], "usage": {"completion_tokens": 1}}',
        b'{"choices": [{"delta": {"content": "4"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}',
    ]
    answer = BACKENDS["openai_chat"].parse(events)
    assert (answer.text, answer.chunk_tokens) == ("4", (1, 2))


def test_an_aborted_request_is_an_error() -> None:
    event = {
        "text": "",
        "meta_info": {"completion_tokens": 3, "finish_reason": {"type": "abort", "message": "too long"}},
    }
    answer = BACKENDS["sglang_native"].parse([json.dumps(event).encode()])
    assert answer.error is not None
    assert "too long" in answer.error


def native_events(counts: list[int], extra: dict[str, Any]) -> list[bytes]:
    """A cumulative stream as SGLang sends it, ``extra`` behind the count."""
    return [
        json.dumps(
            {
                "text": 'a "completion_tokens": 7, ' * count,
                "output_ids": list(range(count)),
                "meta_info": {
                    "finish_reason": {"type": "length"} if count == counts[-1] else None,
                    "prompt_tokens": 3,
                    "cached_tokens": 0,
                    "completion_tokens": count,
                    **extra,
                },
            }
        ).encode()
        for count in counts
    ] + [b"[DONE]"]


@pytest.mark.parametrize("extra", [{}, {"e2e_latency": 0.5}, {"x": {"y": 1}}], ids=["last", "inside", "before"])
def test_the_fast_pass_of_a_native_stream_takes_the_counts_that_the_slow_pass_takes(extra: dict[str, Any]) -> None:
    native: Any = BACKENDS["sglang_native"]
    events = native_events([1, 3, 4, 12], extra)
    fast: Answer | None = native.parse.__globals__["_parse_usual"](Payloads.of(events))
    assert fast is not None
    assert fast == native._parse_slowly(events)
    assert (fast.error, fast.chunk_tokens) == (None, (1, 3, 4, 12))


@pytest.mark.parametrize(
    ("number", "before", "after"),
    [
        (1, b'"completion_tokens": 3', b'"completion_tokens": 2, "completion_tokens": 3'),
        (1, b'"completion_tokens": 3', b'"completion_tokens": 3.5'),
        (1, b'"completion_tokens": 3', b'"completion_tokens": 03'),
        (1, b'"completion_tokens": 3', b'"completion_tokens": null'),
        (1, b'"completion_tokens": 3', b'"prompt_tokens": 3'),
        (3, b'"completion_tokens": 12', b'"completion_tokens": 11'),
        (3, b'"cached_tokens": 0', b'"cached_tokens": -1'),
        (3, b'"cached_tokens": 0', b'"cached_tokens": true'),
        (3, b'"length"', b'"abort"'),
        (3, b'{"text"', b'{"error": "late", "text"'),
        (1, b"a ", b"\xff "),
        (1, b"a ", "\u00e9 ".encode()),
    ],
    ids=str,
)
def test_the_fast_pass_of_a_changed_native_stream_says_what_the_slow_pass_says(
    number: int, before: bytes, after: bytes
) -> None:
    native: Any = BACKENDS["sglang_native"]
    events = native_events([1, 3, 4, 12], {})
    assert before in events[number]
    events[number] = events[number].replace(before, after, 1)
    assert native.parse(events) == native._parse_slowly(events)


def test_a_count_told_twice_an_event_is_left_to_the_slow_pass() -> None:
    native: Any = BACKENDS["sglang_native"]
    events = native_events([1, 3, 4, 12], {"x": {"completion_tokens": 2}})
    assert native.parse.__globals__["_parse_usual"](Payloads.of(events)) is None
    assert native.parse(events).chunk_tokens == (1, 3, 4, 12)


@given(
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    text=st.text(max_size=6) | st.sampled_from(['"completion_tokens":7}}', "\\", "\n\n"]),
    extra=st.sampled_from([{}, {"cached_tokens": 12}, {"e2e_latency": 0.25}, {"x" * 80: "y" * 80}]),
    compact=st.booleans(),
)
def test_the_fast_pass_of_a_native_stream_is_the_slow_pass(
    steps: list[int], text: str, extra: dict[str, Any], compact: bool
) -> None:
    native: Any = BACKENDS["sglang_native"]
    events = []
    for item in native_events(list(itertools.accumulate(steps)), extra)[:-1]:
        event = json.loads(item)
        event["text"] = text * len(event["output_ids"])
        separators = (",", ":") if compact else None
        events.append(json.dumps(event, ensure_ascii=compact, separators=separators).encode("utf-8", "replace"))
    fast: Answer | None = native.parse.__globals__["_parse_usual"](Payloads.of([*events, b"[DONE]"]))
    assert fast == native._parse_slowly(events)


@pytest.mark.parametrize("kept", [slice(1, None), slice(-1), slice(-2), slice(-3)], ids=str)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_event_without_its_beginning_or_end_is_an_error(number: int, kept: slice) -> None:
    events = native_events([1, 3, 4], {})
    events[number] = events[number][kept]
    assert f"event {number} is not valid JSON" in str(BACKENDS["sglang_native"].parse(events).error)


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5) | st.just([1, 2, 5]),
    event=st.integers(0, 9),
    cut=st.integers(1, 400),
    twist=st.sampled_from([b"", b"}", b"{", b"\xff", b"[1]"]),
)
def test_a_native_stream_cut_short_is_no_answer_of_the_fast_pass(
    counts: list[int], event: int, cut: int, twist: bytes
) -> None:
    """Counts that fall or stand still, and an event whose end is missing: the fast pass leaves them to the slow one."""
    native: Any = BACKENDS["sglang_native"]
    events = native_events(counts, {})
    assert native.parse(events) == native._parse_slowly(events)
    number = event % len(counts)
    events[number] = events[number][: -min(cut, len(events[number]))] + twist
    assert native.parse(events) == native._parse_slowly(events)
