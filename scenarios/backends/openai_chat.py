"""``/v1/chat/completions`` of SGLang, vLLM and llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from validation.client.backend import Answer, Prompt, Sampling
from validation.client.openai_stream import openai_fields, parse_openai


@dataclasses.dataclass(frozen=True)
class OpenAIChat:
    """Messages in, text out; a plain text becomes one user message."""

    name: str = "openai_chat"
    path: str = "/v1/chat/completions"

    def body(self, prompt: Prompt, sampling: Sampling, stream: bool) -> bytes:
        """The request's JSON."""
        if prompt.input_ids is not None:
            raise ValueError("openai_chat was given input_ids; expected messages or text, or use openai_completions")
        messages = prompt.messages if prompt.messages is not None else ({"role": "user", "content": prompt.text},)
        fields = {"messages": messages, **openai_fields(sampling, stream)}
        if sampling.return_logprob:
            fields["logprobs"] = True
        return orjson.dumps(fields)

    def parse(self, events: Sequence[bytes]) -> Answer:
        """The answer in ``events``."""
        return parse_openai(events, _content)


def _content(choice: Mapping[str, Any]) -> tuple[str, bool]:
    """What a model thinks aloud takes decode steps like the answer, but is no part of its text."""
    part = choice.get("delta") or choice.get("message") or {}
    text = part.get("content") or ""
    thought = part.get("reasoning_content") or part.get("reasoning") or ""
    return text, bool(text or thought)


BACKEND = OpenAIChat()
