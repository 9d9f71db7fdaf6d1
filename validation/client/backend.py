"""What a server speaks: how a prompt becomes a request body, and how its stream becomes an answer.

A backend is one file in ``scenarios/backends`` that declares a ``BACKEND``; what those files share stands here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

DONE = b"[DONE]"
"""The last event of an OpenAI-style stream; it holds no JSON."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked: a text, token ids or chat messages.

    Raises:
        ValueError: not exactly one of the three was given.
    """

    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, str], ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("text", "input_ids", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a prompt was given {', '.join(given) or 'nothing'}; expected one of text, input_ids, messages"
            )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the answer is drawn. ``ignore_eos`` makes every answer ``max_new_tokens`` long."""

    max_new_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    return_logprob: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """One parsed stream. ``None`` says that the server did not tell; ``error`` that there is no answer."""

    text: str = ""
    output_ids: tuple[int, ...] | None = None
    chunk_events: tuple[int, ...] = ()
    """Numbers of the events that brought content."""
    chunk_tokens: tuple[int, ...] | None = None
    """The server's cumulative token count at each of them."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    model: str | None = None
    """The name under which the server answered."""
    error: str | None = None


class Backend(Protocol):
    """One kind of server. ``parse`` never raises for what a server sent: it answers with an error."""

    name: str
    path: str
    """The endpoint, such as ``/generate``."""

    def body(self, prompt: Prompt, sampling: Sampling, stream: bool) -> bytes:
        """The request's JSON; raises ``ValueError`` for a kind of prompt that the endpoint does not take."""

    def parse(self, events: Sequence[bytes]) -> Answer:
        """The answer in ``events``, the data of each server-sent event in order of arrival (or one whole body)."""


class BadAnswer(ValueError):  # noqa: N818 - an answer, not an exception, is bad
    """What came is no answer; the message says why."""


class Tally:
    """Collects an answer's chunks and checks that the server's counts make sense."""

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.counts: list[int] = []
        self.tokens: int | None = None
        self.counted = True
        self.finish_reason: str | None = None

    def add(self, number: int, tokens: int | None, content: bool, summary: bool = False) -> None:
        """Event ``number`` told ``tokens`` so far (None: it told nothing) and brought ``content`` or not.

        A ``summary`` event only tells the total; it is no chunk, whatever it counts.

        Raises:
            BadAnswer: the count went backwards, or content came after the end.
        """
        before = self.tokens or 0
        if tokens is not None and tokens < before:
            raise BadAnswer(f"the token count went backwards in event {number}: {tokens} after {before}")
        grown = tokens is not None and tokens > before and not summary
        if self.finish_reason is not None and (content or grown):
            raise BadAnswer(f"events out of order: event {number} brings content after the one with the finish reason")
        if grown or (content and tokens is None):
            self.chunks.append(number)
            if tokens is None:
                self.counted = False
            else:
                self.counts.append(tokens)
        if tokens is not None:
            self.tokens = tokens

    def answer(self, **fields: Any) -> Answer:
        """The whole; raises ``BadAnswer`` where the stream was cut short or is empty."""
        if self.finish_reason is None:
            raise BadAnswer(f"the stream ended after {len(self.chunks)} chunks without a finish reason")
        if self.tokens == 0 or not self.chunks:
            raise BadAnswer(f"zero tokens: the server finished with {self.finish_reason!r} and no content")
        counts = tuple(self.counts) if self.counted and len(self.counts) == len(self.chunks) else None
        return Answer(
            chunk_events=tuple(self.chunks),
            chunk_tokens=counts,
            output_tokens=self.tokens,
            finish_reason=self.finish_reason,
            **fields,
        )


def load_event(number: int, data: bytes) -> dict[str, Any]:
    """One event's JSON object.

    Raises:
        BadAnswer: invalid UTF-8 or JSON, no object, or the server's own error message.
    """
    try:
        event = orjson.loads(data)
    except ValueError as error:
        raise BadAnswer(f"event {number} is not valid JSON ({error}): {_excerpt(data)}") from None
    if type(event) is not dict:
        raise BadAnswer(f"event {number} is a JSON {type(event).__name__}, expected an object: {_excerpt(data)}")
    if event.get("error"):
        raise BadAnswer(f"event {number} is an error: {_excerpt(data)}")
    return event


def count(value: object, what: str, number: int) -> int | None:
    """``value`` as a token count; None stays None.

    Raises:
        BadAnswer: it is no whole number of at least 0.
    """
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise BadAnswer(f"{what} is {value!r:.40} in event {number}; expected a whole number of at least 0")
    return value


def section(event: Mapping[str, Any], key: str, number: int) -> Mapping[str, Any]:
    """The object under ``key``, empty where the server leaves it out; raises ``BadAnswer`` where it is another type."""
    value = event.get(key)
    if value is None:
        return {}
    if type(value) is not dict:
        raise BadAnswer(f"{key} is {value!r:.40} in event {number}; expected an object")
    return value


def _excerpt(data: bytes) -> str:
    return data[:160].decode("utf-8", "replace")
