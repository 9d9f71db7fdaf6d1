"""Word problems as token arrays, drawn in parallel. No torch here: the workers that draw must start fast."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import os

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from validation.engine import problems

LONGEST = 136
"""Tokens of the longest example kept, a multiple of 8 for the attention kernels; nothing drawn so far was longer."""

QUESTION_WEIGHT = 0.1
"""Share of a question token in the loss: what to ask is chance, what to answer is not."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Examples of one split, padded."""

    ids: npt.NDArray[np.uint16]  # (N, LONGEST)
    prompt_lengths: npt.NDArray[np.int64]  # (N,)
    lengths: npt.NDArray[np.int64]  # (N,), the end token included

    def __len__(self) -> int:
        return len(self.ids)


def draw_corpus(tokenizer: str, split: problems.Split, seed: int, examples: int, *, end_id: int, pad_id: int) -> Corpus:
    """``examples`` tokenised draws; ``tokenizer`` is the text of tokenizer.json."""
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # one process draws on one core, and forked ones must not share threads
    )
    encode = Tokenizer.from_str(tokenizer).encode_batch
    ids = np.full((examples, LONGEST), pad_id, dtype=np.uint16)
    prompt_lengths, lengths = np.zeros(examples, dtype=np.int64), np.zeros(examples, dtype=np.int64)
    source = problems.draws(split, seed)
    row = 0
    while row < examples:
        drawn = list(itertools.islice(source, examples - row))
        prompts = encode([p.prompt for p in drawn])
        completions = encode([p.completion for p in drawn])
        for prompt, completion in zip(prompts, completions, strict=True):
            tokens = [*prompt.ids, *completion.ids, end_id]
            if len(tokens) <= LONGEST:
                ids[row, : len(tokens)] = tokens
                prompt_lengths[row], lengths[row] = len(prompt.ids), len(tokens)
                row += 1
    return Corpus(ids, prompt_lengths, lengths)


def draw_in_parallel(tokenizer: str, seed: int, examples: int, workers: int, *, end_id: int, pad_id: int) -> Corpus:
    """``examples`` training draws from ``workers`` processes; the same whatever ``workers``."""
    shard = min(20_000, examples)
    seeds = [seed * 1_000_000 + number for number in range(-(-examples // shard))]
    draw = functools.partial(_shard, tokenizer, shard, end_id, pad_id)
    if workers < 2:
        parts = [draw(s) for s in seeds]
    else:
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = list(pool.map(draw, seeds))
    return Corpus(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.prompt_lengths for p in parts]),
        np.concatenate([p.lengths for p in parts]),
    )


def _shard(tokenizer: str, examples: int, end_id: int, pad_id: int, seed: int) -> Corpus:
    return draw_corpus(tokenizer, "train", seed, examples, end_id=end_id, pad_id=pad_id)
