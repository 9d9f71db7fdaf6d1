"""The tokenizer: byte-level BPE over single digits, trained on word problems, so that arithmetic sees every digit."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from validation.engine import problems

TRAINING_TEXTS = 20_000
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>")
"""In the order of ``model.END_ID`` and ``model.PAD_ID``."""


def train_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """The tokenizer of ``vocab_size`` tokens; the same for the same seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = itertools.islice(problems.draws("train", seed), TRAINING_TEXTS)
    tokenizer.train_from_iterator((p.prompt + p.completion for p in texts), trainer)
    return tokenizer
