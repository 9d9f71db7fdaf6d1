"""``/v1/completions`` of SGLang, vLLM and llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from validation.client.backend import Answer, Prompt, Sampling
from validation.client.openai_stream import openai_fields, parse_openai


@dataclasses.dataclass(frozen=True)
class OpenAICompletions:
    """Token ids or text in, text out."""

    name: str = "openai_completions"
    path: str = "/v1/completions"

    def body(self, prompt: Prompt, sampling: Sampling, stream: bool) -> bytes:
        """The request's JSON. No ``model`` is named: the server answers with the one it has, and says which."""
        if prompt.messages is not None:
            raise ValueError(
                "openai_completions was given chat messages; expected text or input_ids, or use openai_chat"
            )
        asked = prompt.text if prompt.text is not None else prompt.input_ids
        fields = {"prompt": asked, **openai_fields(sampling, stream)}
        if sampling.return_logprob:
            fields["logprobs"] = 1
        return orjson.dumps(fields)

    def parse(self, events: Sequence[bytes]) -> Answer:
        """The answer in ``events``."""
        return parse_openai(events, _content)


def _content(choice: Mapping[str, Any]) -> tuple[str, bool]:
    text = choice.get("text") or ""
    return text, bool(text)


BACKEND = OpenAICompletions()
