"""SGLang's own ``/generate``. Every event tells ``completion_tokens`` so far; text and ids are cumulative, unless the
server runs with ``--incremental-streaming-output``."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from validation.client.backend import (
    DONE,
    Answer,
    BadAnswer,
    Prompt,
    Sampling,
    Tally,
    count,
    load_event,
    section,
)
from validation.client.sse import Payloads, windows

_NAME = b"completion_tokens"
_COUNT = b'"%b":' % _NAME
_COUNTED_TO_END = re.compile(_COUNT + rb" ?([1-9]\d*)(?=[,}])[^\n]*}}\n")
_MORE_DIGITS = 16
"""By so much may the rest of an event, from its count on, grow after the first."""


@dataclasses.dataclass(frozen=True)
class SglangNative:
    """Token ids or text in, text and token ids out."""

    name: str = "sglang_native"
    path: str = "/generate"

    def body(self, prompt: Prompt, sampling: Sampling, stream: bool) -> bytes:
        """The request's JSON."""
        if prompt.messages is not None:
            raise ValueError("sglang_native was given chat messages; expected text or input_ids, or use openai_chat")
        asked = {"text": prompt.text} if prompt.text is not None else {"input_ids": prompt.input_ids}
        params: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "ignore_eos": sampling.ignore_eos,
        }
        if sampling.stop:
            params["stop"] = sampling.stop
        fields = {**asked, "sampling_params": params, "stream": stream}
        if sampling.return_logprob:
            fields["return_logprob"] = True
        return orjson.dumps(fields)

    def parse(self, events: Sequence[bytes]) -> Answer:
        """The answer in ``events``."""
        return _parse_usual(Payloads.of(events)) or self._parse_slowly(events)

    def _parse_slowly(self, events: Sequence[bytes]) -> Answer:
        """Event by event: for other streams than ``_parse_usual`` knows, and to say what is wrong with them."""
        tally = Tally()
        texts: list[str] = []
        ids: list[list[int]] = []
        meta: dict[str, Any] = {}
        try:
            for number, data in enumerate(events):
                if data == DONE:
                    continue
                event = load_event(number, data)
                text, output_ids = event.get("text") or "", event.get("output_ids")
                if type(text) is not str or (output_ids is not None and type(output_ids) is not list):
                    raise BadAnswer(f"event {number} has a text or output_ids of another type than string and list")
                told = section(event, "meta_info", number)
                meta.update(told)
                tokens = count(told.get("completion_tokens"), "completion_tokens", number)
                grown = bool(text) and (not texts or text != texts[-1])
                tally.add(number, tokens, grown and tokens is None)
                if text:
                    texts.append(text)
                if output_ids:
                    ids.append(output_ids)
                if told.get("finish_reason") is not None:
                    tally.finish_reason = _finish(told["finish_reason"])
            return tally.answer(
                **_output(texts, ids, tally.tokens),
                prompt_tokens=count(meta.get("prompt_tokens"), "prompt_tokens", len(events)),
                cached_tokens=count(meta.get("cached_tokens"), "cached_tokens", len(events)),
            )
        except BadAnswer as error:
            return Answer(text=_output(texts, ids, None)["text"], error=str(error))


def _parse_usual(events: Payloads) -> Answer | None:
    """A whole cumulative stream in which each event brings tokens and the last one ends; None for any other.

    Every event but the last repeats what comes later, text and ids, so that only its count is read: decoding them all
    takes quadratic time in the length of the answer. The count stands near the event's end, at much the same place.
    """
    try:
        whole = events[:-1] if events[-1] == DONE else events
        last, first = orjson.loads(whole[-1]), whole[0]
        meta, text, output_ids = last["meta_info"], last["text"], last["output_ids"]
        tail_size = len(first) - first.index(_COUNT) + _MORE_DIGITS
        tails = windows(events.raw, whole.ends[:-1] + 1 - tail_size, tail_size).tobytes()
        total = meta["completion_tokens"]
        # the key cannot stand inside a text, whose quotes are escaped
        counts = (*orjson.loads(b"[%b]" % b",".join(_COUNTED_TO_END.findall(tails))), total)
        kind = meta["finish_reason"]["type"]
        numbers = total, meta["prompt_tokens"], meta["cached_tokens"]
        usual = (
            len(counts) == len(whole) == tails.count(_NAME) + 1
            and all(map(operator.lt, (0, *counts), counts))
            and whole.ends[0] + 1 >= tail_size
            and (np.frombuffer(events.raw, "u1")[whole.starts] == ord("{")).all()
            and len(output_ids) == total
            and kind in ("length", "stop")
            and type(text) is str
            and type(output_ids) is list
            and set(map(type, numbers)) == {int}
            and min(numbers) >= 0
            and "error" not in last
        )
        if not events.raw.isascii():
            events.raw.decode()  # invalid UTF-8 anywhere is an error, as in every other stream
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    if not usual:
        return None
    return Answer(
        text=text,
        output_ids=tuple(output_ids),
        chunk_events=tuple(range(len(counts))),
        chunk_tokens=counts,
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
        output_tokens=total,
        finish_reason=kind,
    )


def _finish(reason: Any) -> str:
    kind = reason.get("type") if isinstance(reason, dict) else reason
    if kind == "abort":
        raise BadAnswer(f"the server aborted the request: {reason!r:.160}")
    return str(kind)


def _output(texts: list[str], ids: list[list[int]], tokens: int | None) -> dict[str, Any]:
    """Text and ids. Cumulative events repeat what came before; incremental ones must be joined."""
    if ids:
        total = sum(map(len, ids))
        incremental = len(ids) > 1 and len(ids[-1]) != tokens and total == tokens
    else:
        incremental = len(texts) > 1 and not texts[-1].startswith(texts[-2])
    if incremental:
        return {"text": "".join(texts), "output_ids": tuple(i for part in ids for i in part) or None}
    return {"text": texts[-1] if texts else "", "output_ids": tuple(ids[-1]) if ids else None}


BACKEND = SglangNative()
