"""What the two OpenAI-compatible endpoints have in common, as SGLang, vLLM and llama.cpp serve them.

Counts come from ``usage`` in every event (``continuous_usage_stats``: SGLang, vLLM) or from ``timings`` (llama.cpp);
a server with neither still tells the total in its last event, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from validation.client.backend import DONE, Answer, BadAnswer, Sampling, Tally, count, load_event, section


def openai_fields(sampling: Sampling, stream: bool) -> dict[str, Any]:
    """The sampling fields of both endpoints. Servers ignore those they do not know."""
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "stream": stream,
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.ignore_eos:
        fields["ignore_eos"] = True
    if stream:
        fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        fields["timings_per_token"] = True
    return fields


def parse_openai(events: Sequence[bytes], content: Callable[[Mapping[str, Any]], tuple[str, bool]]) -> Answer:
    """The answer in ``events``; ``content`` gives a choice's text, and whether it brought any output."""
    tally, texts = Tally(), []
    prompt_tokens = cached_tokens = model = None
    try:
        for number, data in enumerate(events):
            if data == DONE:
                continue
            event = load_event(number, data)
            usage, timings = section(event, "usage", number), section(event, "timings", number)
            choices = event.get("choices") or []
            if type(choices) is not list or not {dict}.issuperset(map(type, choices)):
                raise BadAnswer(f"choices is {choices!r:.40} in event {number}; expected a list of objects")
            text, brought = content(choices[0]) if choices else ("", False)
            if type(text) is not str:
                raise BadAnswer(f"the text is {text!r:.40} in event {number}; expected a string")
            tokens = count(usage.get("completion_tokens", timings.get("predicted_n")), "completion_tokens", number)
            tally.add(number, tokens, brought, summary=not choices)
            if text:
                texts.append(text)
            if choices and choices[0].get("finish_reason") is not None:
                tally.finish_reason = str(choices[0]["finish_reason"])
            if usage or timings:
                details = section(usage, "prompt_tokens_details", number)
                prompt_tokens = count(usage.get("prompt_tokens", prompt_tokens), "prompt_tokens", number)
                told = details.get("cached_tokens", timings.get("cache_n", cached_tokens))
                cached_tokens = count(told, "cached_tokens", number)
            model = event.get("model") or model
        return tally.answer(
            text="".join(texts),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            model=None if model is None else str(model),
        )
    except BadAnswer as error:
        return Answer(text="".join(texts), model=None if model is None else str(model), error=str(error))
