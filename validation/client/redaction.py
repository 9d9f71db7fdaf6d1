"""Keeps the API key out of everything that is written down."""

from __future__ import annotations

import dataclasses
from typing import Any

MASK = "[api key]"


@dataclasses.dataclass(frozen=True)
class Secret:
    """An API key that does not show itself in a repr, a traceback with locals, or a log.

    Raises:
        ValueError: it holds a character that no HTTP header may hold; the message does not quote it.
    """

    value: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if not self.value or not self.value.isascii() or not self.value.isprintable() or " " in self.value:
            raise ValueError("the API key is empty or holds a blank or unprintable character; expected visible ASCII")

    def __str__(self) -> str:
        return MASK

    def header(self) -> str:
        """The header line that carries the key."""
        return f"Authorization: Bearer {self.value}\r\n"

    def redact(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self.value, MASK)

    def redact_bytes(self, data: bytes) -> bytes:
        """``data`` without the key."""
        key = self.value.encode()
        return data.replace(key, MASK.encode()) if key in data else data


def as_secret(api_key: str | Secret | None) -> Secret | None:
    """``api_key`` as a ``Secret``, whatever form it was given in."""
    return Secret(api_key) if isinstance(api_key, str) else api_key


def redact(thing: Any, secret: Secret | None) -> Any:
    """``thing`` without the key: a text, or JSON data with texts in it."""
    if secret is None:
        return thing
    if isinstance(thing, str):
        return secret.redact(thing)
    if isinstance(thing, dict):
        return {secret.redact(str(key)): redact(value, secret) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [redact(value, secret) for value in thing]
    return thing
