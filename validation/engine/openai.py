"""OpenAI's routes over the engine: completions, chat completions and the list of models."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from validation.engine.engine import Request, Update
from validation.engine.sampling import BadRequestError, SamplingParams
from validation.engine.server import (
    DONE,
    EventStream,
    Frontend,
    body_of,
    encoded,
    event,
    json_response,
    merged,
    unless_disconnected,
)

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions."""
_PASSED_ON = (
    "temperature",
    "stop",
    "ignore_eos",
    "seed",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "skip_special_tokens",
)


def chat_prompt(messages: Any) -> str:
    """What the checkpoint's chat template makes of ``messages``.

    Raises:
        BadRequestError: they are no messages of users and assistants that end with a user's.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages is no list or empty; expected at least one message")
    parts = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in ("user", "assistant"):
            role = message.get("role") if isinstance(message, Mapping) else message
            raise BadRequestError(f"a message of role {role!r} was given; expected 'user' or 'assistant'")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
        if not isinstance(content, str):
            raise BadRequestError(f"message content {content!r} was given; expected a string")
        parts.append(f" {content}\n\n" if message["role"] == "assistant" else f"Question: {content}\nAnswer:")
    if messages[-1]["role"] != "user":
        raise BadRequestError("the last message is not the user's; expected a question to answer")
    return "".join(parts)


def usage_of(updates: Sequence[Update]) -> dict[str, Any]:
    """Token counts over ``updates``."""
    prompt = sum(update.prompt_tokens for update in updates)
    completion = sum(len(update.output_ids) for update in updates)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(update.cached_tokens for update in updates)},
    }


def _finish(update: Update) -> dict[str, Any]:
    reason = update.finish_reason
    if reason is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": reason["type"], "matched_stop": reason.get("matched")}


class OpenAI:
    """The ``/v1`` routes."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend

    def routes(self) -> list[Route]:
        """Path, handler and methods of each."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
        ]

    @property
    def _model(self) -> str:
        return str(self.frontend.model_info["served_model_name"])

    async def models(self, request: HttpRequest) -> Response:
        """The one model."""
        info = self.frontend.model_info
        entry = {
            "id": self._model,
            "object": "model",
            "created": 0,
            "owned_by": "validation",
            "root": info["model_path"],
            "max_model_len": info["context_length"],
        }
        return json_response({"object": "list", "data": [entry]})

    async def completions(self, request: HttpRequest) -> Response:
        """Continue one prompt or several."""
        data = await body_of(request)
        if data.get("prompt") is None:
            raise BadRequestError("prompt is missing; expected a string, token ids, or a list of either")
        if data.get("echo"):
            raise BadRequestError("echo is not supported; expected false")
        prompts, _ = encoded(data["prompt"], self.frontend.tokenizer, "prompt")
        limit = data.get("max_tokens")
        params = self._params(data, DEFAULT_COMPLETION_TOKENS if limit is None else limit)
        return await self._answer(request, data, prompts, [params] * len(prompts), chat=False)

    async def chat_completions(self, request: HttpRequest) -> Response:
        """Answer a conversation; without a limit, up to the context length."""
        data = await body_of(request)
        prompt = self.frontend.tokenizer.encode(chat_prompt(data.get("messages"))).ids
        limit = data.get("max_completion_tokens", data.get("max_tokens"))
        room = self.frontend.model_info["context_length"] - len(prompt)
        params = self._params(data, max(1, room) if limit is None else limit)
        return await self._answer(request, data, [prompt], [params], chat=True)

    def _params(self, data: Mapping[str, Any], limit: Any) -> SamplingParams:
        if data.get("logprobs"):
            raise BadRequestError("logprobs are not served here; ask /generate with return_logprob")
        fields = {name: data[name] for name in _PASSED_ON if name in data}
        return SamplingParams.from_json({**fields, "max_new_tokens": limit})

    async def _answer(
        self,
        request: HttpRequest,
        data: Mapping[str, Any],
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        chat: bool,
    ) -> Response:
        stream = data.get("stream") or False
        options = data.get("stream_options") or {}
        if not isinstance(stream, bool) or not isinstance(options, Mapping):
            raise BadRequestError("stream or stream_options is of another type; expected a boolean and an object")
        requests = [
            self.frontend.prepare(prompt, param, stream=stream) for prompt, param in zip(prompts, params, strict=True)
        ]
        head = {"id": requests[0].request_id, "created": int(time.time()), "model": self._model}
        if stream:
            return EventStream(self._events(requests, head, options, chat=chat))
        work = asyncio.gather(*(self.frontend.last(r) for r in requests))
        updates = await unless_disconnected(request.receive, work)
        if updates is None:
            return Response(status_code=499)
        choices = []
        for index, update in enumerate(updates):
            content = {"message": {"role": "assistant", "content": update.text}} if chat else {"text": update.text}
            choices.append({"index": index, **content, "logprobs": None, **_finish(update)})
        kind = "chat.completion" if chat else "text_completion"
        return json_response({**head, "object": kind, "choices": choices, "usage": usage_of(updates)})

    async def _events(
        self, requests: Sequence[Request], head: Mapping[str, Any], options: Mapping[str, Any], *, chat: bool
    ) -> AsyncGenerator[bytes, None]:
        kind = "chat.completion.chunk" if chat else "text_completion"
        sent = [""] * len(requests)
        latest: dict[int, Update] = {}
        if chat:
            role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            yield event({**head, "object": kind, "choices": [role]})
        async with contextlib.aclosing(merged(self.frontend, requests)) as pairs:
            async for number, update in pairs:
                piece, sent[number] = update.text[len(sent[number]) :], update.text
                latest[number] = update
                content = {"delta": {"content": piece}} if chat else {"text": piece}
                choice = {"index": number, **content, "logprobs": None, **_finish(update)}
                chunk = {**head, "object": kind, "choices": [choice]}
                if options.get("continuous_usage_stats"):
                    chunk["usage"] = usage_of([update])
                yield event(chunk)
        if options.get("include_usage"):
            usage = usage_of([latest[number] for number in sorted(latest)])
            yield event({**head, "object": kind, "choices": [], "usage": usage})
        yield DONE
