"""Token ids to text, one at a time: whole characters out, stop strings held back until they are decided."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer


def byte_table(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token id of a byte-level BPE; special tokens have none."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {int(number) for number in tokenizer.get_added_tokens_decoder()}
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number not in special:
            table[number] = bytes(byte_of[character] for character in token)
    return table


class Detokenizer:
    """The text of a growing list of tokens, and whether one of ``stops`` has appeared in it."""

    def __init__(self, table: Sequence[bytes], stops: Sequence[str]) -> None:
        self._table = table
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        """Everything so far, cut before the stop string once there is one."""
        self.matched: str | None = None

    def push(self, token: int) -> None:
        """Append one token; ids beyond the vocabulary have no text."""
        self._append(self._decoder.decode(self._table[token] if token < len(self._table) else b""))

    def finish(self) -> None:
        """An incomplete character at the end becomes a replacement character."""
        if self.matched is None:
            self._append(self._decoder.decode(b"", final=True))

    @property
    def settled(self) -> str:
        """The part of ``text`` that no stop string can take back any more."""
        if self.matched is not None:
            return self.text
        for length in range(min(max(map(len, self._stops), default=1) - 1, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return self.text[:-length]
        return self.text

    def _append(self, piece: str) -> None:
        if not piece:
            return
        reach = max(map(len, self._stops), default=1) - 1
        start = max(0, len(self.text) - reach)
        self.text += piece
        hits = [(at, stop) for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if hits:
            at, self.matched = min(hits)
            self.text = self.text[:at]
