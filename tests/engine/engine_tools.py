"""Helpers of the engine's tests: an engine in this process, and what it says to some prompts."""

from __future__ import annotations

import itertools
import pathlib
import queue
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer

from validation.discovery import ROOT, load_leaf
from validation.engine import problems
from validation.engine.engine import Engine, Request, Update
from validation.engine.model import GlmMoeDsa, ModelConfig, initialise, load_checkpoint
from validation.engine.pool import PagePool
from validation.engine.sampling import SamplingParams
from validation.engine.serving import ServingModel
from validation.engine.text import Detokenizer, byte_table
from validation.operations import Provider

CHECKPOINT = ROOT / "validation" / "engine" / "checkpoint"
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
TABLE = byte_table(TOKENIZER)
PAGES = 128


def torch_provider() -> Provider:
    """The provider under test."""
    provider: Provider = load_leaf(ROOT / "kernels" / "providers" / "torch_ops.py").PROVIDER
    return provider


def random_weights(config: ModelConfig, seed: int = 0) -> tuple[GlmMoeDsa, Mapping[str, torch.Tensor]]:
    """An untrained model whose weights are bfloat16 numbers, and the same weights by name."""
    model = GlmMoeDsa(config)
    initialise(model, seed)
    weights = {name: tensor.detach().bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model, weights


def serving_model(
    folder: pathlib.Path = CHECKPOINT, *, query_path: str = "skip", index_topk: int = 64, plant: str | None = None
) -> ServingModel:
    """The checkpoint in ``folder``, ready to serve."""
    config, weights = load_checkpoint(folder)
    provider = torch_provider()
    if provider.producer is None or provider.consumer is None:
        raise ValueError("the torch provider lacks a role")
    return ServingModel(
        config,
        weights,
        pages=PAGES,
        index_topk=index_topk,
        query_path=query_path,
        producer=provider.producer,
        consumer=provider.consumer,
        plant=plant,
    )


class Session:
    """A running engine; ``say`` submits prompts all at once and returns their final updates in order."""

    def __init__(self, model: ServingModel, concurrency: int = 16) -> None:
        self.updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self.engine = Engine(model, PagePool(PAGES), concurrency, self._deliver)
        self.engine.start()

    def _deliver(self, updates: list[Update]) -> None:
        for update in updates:
            self.updates.put(update)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine.stop()

    def submit(self, name: str, prompt: Sequence[int], params: SamplingParams, *, stream: bool = False) -> None:
        """Queue one prompt."""
        self.engine.check(prompt, params)
        self.engine.submit(Request(name, list(prompt), params, stream, True, Detokenizer(TABLE, params.stop)))

    def say(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Update]:
        """The final update of each prompt."""
        for number, prompt in enumerate(prompts):
            self.submit(str(number), prompt, params)
        final = [self.updates.get(timeout=120) for _ in prompts]
        return sorted(final, key=lambda update: int(update.request_id))


def word_problems(count: int, seed: int = 5) -> list[problems.WordProblem]:
    """The first evaluation problems of a seed."""
    return list(itertools.islice(problems.draws("eval", seed), count))


def prompts_of(drawn: Sequence[problems.WordProblem]) -> list[list[int]]:
    """Their prompts as token ids."""
    return [TOKENIZER.encode(problem.prompt).ids for problem in drawn]
