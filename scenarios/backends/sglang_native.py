"""SGLang's own ``/generate``. Every event tells ``completion_tokens`` so far; text and ids are cumulative, unless the
server runs with ``--incremental-streaming-output``."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Any

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

_COUNT = b'"completion_tokens":'


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
        return _parse_usual(events) or self._parse_slowly(events)

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


def _parse_usual(events: Sequence[bytes]) -> Answer | None:
    """A whole cumulative stream in which each event brings tokens and the last one ends; None for any other.

    Every event but the last repeats what comes later, text and ids, so that only its count is read: decoding them all
    takes quadratic time in the length of the answer.
    """
    whole = events[:-1] if events and events[-1] == DONE else events
    try:
        last = orjson.loads(whole[-1])
        meta, text, output_ids = last["meta_info"], last["text"], last["output_ids"]
        # the key cannot stand inside a text, whose quotes are escaped
        counts = [int(event.rpartition(_COUNT)[2].partition(b",")[0].removesuffix(b"}}")) for event in whole]
        kind = meta["finish_reason"]["type"]
        numbers = [*output_ids, meta["completion_tokens"], meta["prompt_tokens"], meta["cached_tokens"]]
        usual = (
            all(map(operator.lt, [0, *counts], counts))
            and all(map(bytes.startswith, whole, itertools.repeat(b"{")))
            and all(map(bytes.endswith, whole, itertools.repeat(b"}}")))
            and len(output_ids) == meta["completion_tokens"] == counts[-1]
            and kind in ("length", "stop")
            and type(text) is str
            and set(map(type, numbers)) == {int}
            and "error" not in last
        )
        b"".join(whole).decode()  # invalid UTF-8 anywhere is an error, as in every other stream
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    if not usual:
        return None
    return Answer(
        text=text,
        output_ids=tuple(output_ids),
        chunk_events=tuple(range(len(counts))),
        chunk_tokens=tuple(counts),
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
        output_tokens=counts[-1],
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
