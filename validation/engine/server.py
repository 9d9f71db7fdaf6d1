"""SGLang's HTTP surface over the engine: ``/generate`` and its neighbours here, ``/v1`` in ``openai``."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tokenizers import Tokenizer

from validation.engine.engine import Engine, Request, Update
from validation.engine.profiling import Profile
from validation.engine.sampling import BadRequestError, SamplingParams
from validation.engine.text import Detokenizer, byte_table

HEALTH_TIMEOUT_S = 20.0
"""How long ``/health_generate`` waits for a token (SGLang's default for its own)."""


class Frontend:
    """The event loop's side of the engine: submits requests and hands each one's updates to whoever waits for them."""

    def __init__(self, tokenizer: Tokenizer, model_info: Mapping[str, Any], server_info: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.model_info = dict(model_info)
        self.server_info = dict(server_info)
        self.engine: Engine
        self._table = byte_table(tokenizer)
        self._listeners: dict[str, asyncio.Queue[Update | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def deliver(self, updates: list[Update]) -> None:
        """Called from the engine's thread after each turn."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, updates)

    def _dispatch(self, updates: list[Update]) -> None:
        for update in updates:
            listener = self._listeners.get(update.request_id)
            if listener is not None:
                listener.put_nowait(update)

    def prepare(
        self, prompt: Sequence[int], params: SamplingParams, *, stream: bool, logprobs: bool = False, rid: str = ""
    ) -> Request:
        """A request that can be run; raises ``BadRequestError`` where it never could."""
        self.engine.check(prompt, params)
        if rid in self._listeners:
            raise BadRequestError(f"rid {rid!r} is being served already; expected a new one")
        name = rid or uuid.uuid4().hex
        return Request(name, list(prompt), params, stream, logprobs, Detokenizer(self._table, params.stop))

    async def run(self, request: Request) -> AsyncGenerator[Update, None]:
        """The updates of ``request`` up to its last; leaving early aborts it."""
        self._loop = asyncio.get_running_loop()
        listener: asyncio.Queue[Update | None] = asyncio.Queue()
        self._listeners[request.request_id] = listener
        self.engine.submit(request)
        finished = False
        try:
            while (update := await listener.get()) is not None:
                finished = update.finish_reason is not None
                yield update
                if finished:
                    return
        finally:
            del self._listeners[request.request_id]
            if not finished:
                self.engine.abort(request.request_id)

    async def last(self, request: Request) -> Update:
        """The final update of ``request``."""
        async with contextlib.aclosing(self.run(request)) as updates:
            async for update in updates:
                if update.finish_reason is not None:
                    return update
        raise RuntimeError(f"request {request.request_id} ended without a final update")


def json_response(data: Any, status: int = 200) -> Response:
    """``data`` as JSON."""
    return Response(orjson.dumps(data), status, media_type="application/json")


def error_response(message: str, status: int = 400) -> Response:
    """One sentence, where SGLang's native routes and OpenAI's clients look for it."""
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    error = {"message": message, "type": kind, "code": status}
    return json_response({"object": "error", "error": error, "message": message, "type": kind, "code": status}, status)


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Server-sent events, one body message each; a client that goes away ends the source at once."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.events = events
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an ASGI application."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def feed() -> None:
            async with contextlib.aclosing(self.events) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await unless_disconnected(receive, feed())


async def unless_disconnected(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of ``work``, or None where the client went away first and ``work`` was cancelled."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def body_of(request: HttpRequest, *, empty: bool = False) -> dict[str, Any]:
    """The JSON object in a request; raises ``BadRequestError`` where there is none."""
    raw = await request.body()
    if empty and not raw.strip():
        return {}
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON ({error}); expected an object") from error
    if not isinstance(data, dict):
        raise BadRequestError(f"the body is {type(data).__name__}; expected an object")
    return data


def prompts_of(data: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[list[list[int]], bool]:
    """The prompts of a ``/generate`` body as token ids, and whether they came as a list."""
    text, ids = data.get("text"), data.get("input_ids")
    if (text is None) == (ids is None):
        raise BadRequestError("text and input_ids were both given or both left out; expected one of them")
    return encoded(text if ids is None else ids, tokenizer, "text" if ids is None else "input_ids")


def encoded(prompt: Any, tokenizer: Tokenizer, field: str) -> tuple[list[list[int]], bool]:
    """A string, a list of strings, token ids or a list of those as token ids, and whether it was a list of prompts."""
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt).ids], False
    if isinstance(prompt, list) and prompt:
        if all(isinstance(entry, str) for entry in prompt):
            return [tokenizer.encode(entry).ids for entry in prompt], True
        if _is_ids(prompt):
            return [prompt], False
        if all(_is_ids(entry) for entry in prompt):
            return prompt, True
    raise BadRequestError(f"{field} {str(prompt)[:60]!r} was given; expected a string, token ids, or a list of either")


def _is_ids(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in entry)


def generate_chunk(update: Update, started: float, index: int | None = None) -> dict[str, Any]:
    """One answer of ``/generate``, final or not."""
    meta: dict[str, Any] = {
        "id": update.request_id,
        "finish_reason": update.finish_reason,
        "prompt_tokens": update.prompt_tokens,
        "completion_tokens": len(update.output_ids),
        "cached_tokens": update.cached_tokens,
        "weight_version": "default",
    }
    if update.logprobs is not None:
        pairs = zip(update.logprobs, update.output_ids, strict=True)
        meta["input_token_logprobs"] = []
        meta["output_token_logprobs"] = [[logprob, token, None] for logprob, token in pairs]
    if update.finish_reason is not None:
        meta["e2e_latency"] = time.perf_counter() - started
    chunk: dict[str, Any] = {"text": update.text, "output_ids": update.output_ids, "meta_info": meta}
    if index is not None:
        chunk["index"] = index
    return chunk


async def merged(frontend: Frontend, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of several requests as they come, each with its request's number."""
    queue: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()

    async def pump(number: int, request: Request) -> None:
        async with contextlib.aclosing(frontend.run(request)) as updates:
            async for update in updates:
                queue.put_nowait((number, update))

    tasks = [asyncio.ensure_future(pump(number, request)) for number, request in enumerate(requests)]
    left = len(tasks)
    try:
        while left:
            number, update = await queue.get()
            left -= update.finish_reason is not None
            yield number, update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Native:
    """SGLang's own routes."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend

    def routes(self) -> list[Route]:
        """Path, handler and methods of each."""
        both = ["GET", "POST"]
        return [
            Route("/health", self.health),
            Route("/health_generate", self.health_generate),
            Route("/get_model_info", self.model_info),
            Route("/model_info", self.model_info),
            Route("/get_server_info", self.server_info),
            Route("/server_info", self.server_info),
            Route("/flush_cache", self.flush_cache, methods=both),
            Route("/generate", self.generate, methods=["POST", "PUT"]),
            Route("/start_profile", self.start_profile, methods=both),
            Route("/stop_profile", self.stop_profile, methods=both),
        ]

    async def health(self, request: HttpRequest) -> Response:
        """200 while the engine's thread lives."""
        return Response(status_code=200 if self.frontend.engine.alive else 503)

    async def health_generate(self, request: HttpRequest) -> Response:
        """200 once one token was generated."""
        if not self.frontend.engine.alive:
            return Response(status_code=503)
        probe = self.frontend.prepare([2], SamplingParams(max_new_tokens=1, ignore_eos=True), stream=False)
        try:
            await asyncio.wait_for(self.frontend.last(probe), HEALTH_TIMEOUT_S)
        except asyncio.TimeoutError:
            return Response(status_code=503)
        return Response(status_code=200)

    async def model_info(self, request: HttpRequest) -> Response:
        """What is served."""
        return json_response(self.frontend.model_info)

    async def server_info(self, request: HttpRequest) -> Response:
        """How it is served, and how busy it is."""
        return json_response({**self.frontend.server_info, "internal_states": [self.frontend.engine.counts()]})

    async def flush_cache(self, request: HttpRequest) -> Response:
        """Forget every cached prefix; 400 while requests run."""
        done = await asyncio.to_thread(self.frontend.engine.flush_cache)
        if not done:
            return error_response("the cache was not flushed because requests are running; wait until they have ended")
        return Response("Cache flushed.\n", media_type="text/plain")

    async def start_profile(self, request: HttpRequest) -> Response:
        """Record the coming turns of the engine."""
        profile = Profile.from_json(await body_of(request, empty=True))
        await asyncio.to_thread(self.frontend.engine.start_profile, profile)
        return Response("Start profiling.\n", media_type="text/plain")

    async def stop_profile(self, request: HttpRequest) -> Response:
        """Write the trace."""
        path = await asyncio.to_thread(self.frontend.engine.stop_profile)
        return Response(f"Stop profiling. The trace is {path}\n", media_type="text/plain")

    async def generate(self, request: HttpRequest) -> Response:
        """Continue one prompt or several."""
        started = time.perf_counter()
        data = await body_of(request)
        prompts, many = prompts_of(data, self.frontend.tokenizer)
        params = _params_of(data.get("sampling_params"), len(prompts))
        stream, logprobs = data.get("stream", False), data.get("return_logprob", False)
        names = data.get("rid")
        if not isinstance(stream, bool) or not isinstance(logprobs, bool):
            raise BadRequestError("stream or return_logprob is no boolean; expected true or false")
        rids = [names] if isinstance(names, str) else names or [""] * len(prompts)
        if len(rids) != len(prompts) or len(set(rids) - {""}) < len([r for r in rids if r]):
            raise BadRequestError(
                f"{len(rids)} rids were given for {len(prompts)} prompts; expected one for each, all different"
            )
        requests = [
            self.frontend.prepare(prompt, param, stream=stream, logprobs=logprobs, rid=rid)
            for prompt, param, rid in zip(prompts, params, rids, strict=True)
        ]
        if stream:
            return EventStream(self._events(requests, started, many))
        work = asyncio.gather(*(self.frontend.last(r) for r in requests))
        updates = await unless_disconnected(request.receive, work)
        if updates is None:
            return Response(status_code=499)
        chunks = [generate_chunk(u, started, i if many else None) for i, u in enumerate(updates)]
        return json_response(chunks if many else chunks[0])

    async def _events(self, requests: Sequence[Request], started: float, many: bool) -> AsyncGenerator[bytes, None]:
        if many:
            async with contextlib.aclosing(merged(self.frontend, requests)) as pairs:
                async for number, update in pairs:
                    yield event(generate_chunk(update, started, number))
        else:
            async with contextlib.aclosing(self.frontend.run(requests[0])) as updates:
                async for update in updates:
                    yield event(generate_chunk(update, started))
        yield DONE


def _params_of(data: Any, prompts: int) -> list[SamplingParams]:
    if isinstance(data, list):
        if len(data) != prompts:
            raise BadRequestError(
                f"{len(data)} sampling_params were given for {prompts} prompts; expected one for each"
            )
        return [SamplingParams.from_json(entry) for entry in data]
    return [SamplingParams.from_json(data)] * prompts


def application(frontend: Frontend, engine: Engine) -> Starlette:
    """The ASGI application; its lifespan starts and stops the engine's thread."""
    from validation.engine.openai import OpenAI

    frontend.engine = engine

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    async def bad_request(request: HttpRequest, error: Exception) -> Response:
        return error_response(str(error))

    handlers: Mapping[Any, Callable[[HttpRequest, Exception], Awaitable[Response]]] = {BadRequestError: bad_request}
    routes = [*Native(frontend).routes(), *OpenAI(frontend).routes()]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
