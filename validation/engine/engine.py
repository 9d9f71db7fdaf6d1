"""The scheduler: continuous batching in one thread, deterministic to the bit whatever else is served.

One turn runs either one prefill chunk (64 tokens of the oldest request that still has some) or one decode step of all
running requests. New requests come in through a queue, results go out through one callback per turn.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from validation.engine.model import END_ID
from validation.engine.pool import PAGE_SIZE, PagePool
from validation.engine.profiling import Profile
from validation.engine.sampling import BadRequestError, SamplingParams, choose, log_probability
from validation.engine.serving import Batch, ServingModel, decode_bucket, decode_buckets
from validation.engine.text import Detokenizer


@dataclasses.dataclass(frozen=True)
class Update:
    """What is known of a request after a turn. Everything is cumulative."""

    request_id: str
    text: str
    output_ids: Sequence[int]
    prompt_tokens: int
    cached_tokens: int
    logprobs: Sequence[float] | None
    finish_reason: dict[str, Any] | None
    """``{"type": "stop" | "length" | "abort", ...}`` at the end, None before."""


@dataclasses.dataclass(eq=False)
class Request:
    """One prompt to continue, and how far it is."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    stream: bool
    return_logprob: bool
    detokenizer: Detokenizer
    output_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    cached: int = 0
    """Prompt tokens found in the prefix cache."""
    computed: int = 0
    """Prompt tokens whose keys are in the pool."""
    finish_reason: dict[str, Any] | None = None

    def update(self) -> Update:
        """The request as it stands, copied: the scheduler goes on while somebody reads it."""
        done = self.finish_reason is not None
        return Update(
            request_id=self.request_id,
            text=self.detokenizer.text if done else self.detokenizer.settled,
            output_ids=tuple(self.output_ids),
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            logprobs=tuple(self.logprobs) if self.return_logprob else None,
            finish_reason=self.finish_reason,
        )


class Engine:
    """Owns the model, the pool and the thread that runs them. ``deliver`` is called from that thread."""

    def __init__(
        self,
        model: ServingModel,
        pool: PagePool,
        max_running_requests: int,
        deliver: Callable[[list[Update]], None],
    ) -> None:
        self.model, self.pool = model, pool
        self.max_running_requests = max_running_requests
        self.buckets = decode_buckets(model, max_running_requests)
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: collections.deque[Request] = collections.deque()
        self._prefilling: collections.deque[Request] = collections.deque()
        self._running: list[Request] = []
        self._requests: dict[str, Request] = {}
        self._profile: Profile | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._device = model.device
        self.failure: str | None = None
        """The traceback that ended the thread."""

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current turn; requests in flight get no further update."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are being served."""
        return self._thread.is_alive()

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise ``BadRequestError`` where the prompt can never be served."""
        config = self.model.config
        if not prompt:
            raise BadRequestError("the prompt is empty; expected at least one token")
        wrong = next((t for t in prompt if not 0 <= t < config.vocab_size), None)
        if wrong is not None:
            raise BadRequestError(f"input id {wrong} was given; expected 0 to {config.vocab_size - 1}")
        total = len(prompt) + params.max_new_tokens
        limit = min(config.max_position_embeddings, self.pool.size * PAGE_SIZE)
        if total > limit:
            raise BadRequestError(
                f"{len(prompt)} prompt tokens and max_new_tokens {params.max_new_tokens} are {total} tokens; "
                f"expected at most {limit}"
            )

    def submit(self, request: Request) -> None:
        """Queue a request that ``check`` let pass."""

        def enter() -> None:
            self._requests[request.request_id] = request
            self._waiting.append(request)

        self._inbox.put(enter)

    def abort(self, request_id: str) -> None:
        """Stop working on a request, if it is still being worked on."""

        def leave() -> None:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request, {"type": "abort", "message": "aborted"})

        self._inbox.put(leave)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` in the engine's thread between two turns; its result, or its exception."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answer.put((function(), None))
            except Exception as error:
                answer.put((None, error))

        self._inbox.put(run)
        result, error = answer.get()
        if error is not None:
            raise error
        return result

    def flush_cache(self) -> bool:
        """Forget every cached prefix, unless requests are running or waiting (as SGLang refuses too)."""

        def flush() -> bool:
            if self._requests:
                return False
            self.pool.flush()
            return True

        return bool(self.call(flush))

    def start_profile(self, profile: Profile) -> None:
        """Record the coming turns. Raises ``BadRequestError`` while another profile runs."""

        def start() -> None:
            if self._profile is not None:
                raise BadRequestError("a profile is running already; stop it first")
            profile.start()
            self._profile = profile

        self.call(start)

    def stop_profile(self) -> str:
        """Write the trace and return its path. Raises ``BadRequestError`` where none runs."""

        def stop() -> str:
            if self._profile is None:
                raise BadRequestError("no profile is running; start one first")
            profile, self._profile = self._profile, None
            return profile.stop()

        return str(self.call(stop))

    def counts(self) -> dict[str, int]:
        """Requests by state and free pages, as they were a moment ago."""
        return {
            "running": len(self._running),
            "waiting": len(self._waiting) + len(self._prefilling),
            "available_pages": self.pool.available,
        }

    def _run(self) -> None:
        try:
            torch.set_num_threads(1)
            while self._take_inbox():
                updates = self._turn()
                if updates:
                    self._deliver(updates)
        except Exception:
            self.failure = traceback.format_exc()
            for request in self._requests.values():
                request.finish_reason = {"type": "abort", "message": "the engine failed; see its log"}
            self._deliver([request.update() for request in self._requests.values()])
            raise

    def _take_inbox(self) -> bool:
        """Run what was sent; wait where there is nothing else to do. False to stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._requests)
            except queue.Empty:
                return True
            if message is None:
                return False
            message()
            if self._requests and self._inbox.empty():
                return True

    def _turn(self) -> list[Update]:
        self._admit()
        if not self._prefilling and not self._running:
            return []
        if self._profile is None or (self._profile.by_stage and self._prefilling):
            touched = self._prefill() if self._prefilling else self._decode()
        else:
            label = "prefill" if self._prefilling else f"decode bs={len(self._running)}"
            with self._profile.step(label):
                touched = self._prefill() if self._prefilling else self._decode()
            if self._profile.finished:
                self._profile.stop()
                self._profile = None
        return [r.update() for r in touched if r.stream or r.finish_reason is not None]

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._prefilling) < self.max_running_requests:
            request = self._waiting[0]
            total = len(request.prompt) + request.params.max_new_tokens
            matched = self.pool.match(request.prompt)
            fresh = self.pool.allocate(-(-total // PAGE_SIZE) - len(matched))
            if fresh is None:
                self.pool.release(matched)
                return
            self._waiting.popleft()
            request.pages = matched + fresh
            request.cached = request.computed = len(matched) * PAGE_SIZE
            self._prefilling.append(request)

    def _prefill(self) -> list[Request]:
        request = self._prefilling[0]
        start = request.computed
        tokens = request.prompt[start : start + PAGE_SIZE]
        count, page = len(tokens), start // PAGE_SIZE
        padding = [0] * (PAGE_SIZE - count)
        first_slot = request.pages[page] * PAGE_SIZE
        batch = Batch(
            ids=self._int64(tokens + padding),
            positions=self._int64(list(range(start, start + PAGE_SIZE))),
            slots=self._int64(list(range(first_slot, first_slot + count)) + [-1] * len(padding)),
            pages=self._int64(request.pages[: page + 1])[None],
            decode=False,
        )
        logits = self.model.forward(batch, self._int64([count - 1]))
        request.computed += count
        if request.computed < len(request.prompt):
            return []
        self._prefilling.popleft()
        self.pool.publish(request.pages, request.prompt)
        self._running.append(request)
        self._extend([request], logits)
        return [request]

    def _decode(self) -> list[Request]:
        requests = list(self._running)
        rows = decode_bucket(len(requests), self.buckets)
        empty = rows - len(requests)
        positions = [len(r.prompt) + len(r.output_ids) - 1 for r in requests]
        reach = max(positions) // PAGE_SIZE + 1
        slots = [r.pages[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for r, p in zip(requests, positions, strict=True)]
        pages = [(r.pages[:reach] + [0] * reach)[:reach] for r in requests] + [[0] * reach] * empty
        batch = Batch(
            ids=self._int64([r.output_ids[-1] for r in requests] + [0] * empty),
            positions=self._int64(positions + [0] * empty),
            slots=self._int64(slots + [-1] * empty),
            pages=self._int64(pages),
            decode=True,
        )
        logits = self.model.forward(batch, self._int64(list(range(rows))))
        self._extend(requests, logits)
        return requests

    def _extend(self, requests: Sequence[Request], logits: torch.Tensor) -> None:
        """Append one token to each of ``requests``, and finish those that are done."""
        rows = logits.cpu().numpy()
        for request, row in zip(requests, rows, strict=False):
            token = choose(row, request.params, len(request.output_ids))
            request.output_ids.append(token)
            if request.return_logprob:
                request.logprobs.append(log_probability(row, token))
            ended = token == END_ID and not request.params.ignore_eos
            if not ended:
                request.detokenizer.push(token)
            if ended:
                self._finish(request, {"type": "stop", "matched": END_ID})
            elif request.detokenizer.matched is not None:
                self._finish(request, {"type": "stop", "matched": request.detokenizer.matched})
            elif len(request.output_ids) >= request.params.max_new_tokens:
                self._finish(request, {"type": "length", "length": len(request.output_ids)})

    def _finish(self, request: Request, reason: dict[str, Any]) -> None:
        request.detokenizer.finish()
        request.finish_reason = reason
        del self._requests[request.request_id]
        for group in (self._waiting, self._prefilling, self._running):
            if request in group:
                group.remove(request)
        self.pool.release(request.pages)
        request.pages = []

    def _int64(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
