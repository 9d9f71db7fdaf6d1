"""Asks a server which model and build it serves, to notice that it became another one or was started again."""

from __future__ import annotations

import http.client
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import orjson

from validation.client.redaction import Secret, redact

TIMEOUT_S = 10.0
"""An idle server answers in milliseconds; one that takes longer is asked in vain, and nothing fails for it."""
_SERVER_INFO = ("/get_server_info", "/server_info", "/version")
"""Where servers tell their version: SGLang, newer SGLang, vLLM."""
_STARTED = re.compile(rb"^process_start_time_seconds ([0-9.eE+]+)\s*$", re.MULTILINE)
"""The Prometheus client library's standard name."""


def get_json(url: str, path: str, secret: Secret | None = None) -> Any:
    """The JSON at ``path`` of the server at ``url``; None where it has no such page. Redirects are not followed."""
    body = _get(url, path, secret)
    try:
        return None if body is None else redact(orjson.loads(body), secret)
    except ValueError:
        return None


def _get(url: str, path: str, secret: Secret | None) -> bytes | None:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {secret.value}"} if secret else {}
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def read_identity(url: str, secret: Secret | None = None) -> dict[str, Any]:
    """What the server says it serves: SGLang's model info, the names of the OpenAI endpoint and the server's version,
    where it has them."""
    identity: dict[str, Any] = {}
    info = get_json(url, "/get_model_info", secret)
    if isinstance(info, dict):
        identity |= {key: info[key] for key in ("model_path", "tokenizer_path", "weight_version") if key in info}
    models = get_json(url, "/v1/models", secret)
    if isinstance(models, dict) and isinstance(models.get("data"), list):
        identity["models"] = [item.get("id") for item in models["data"] if isinstance(item, dict)]
    version = _server_info(url, secret).get("version")
    return identity if version is None else {**identity, "version": version}


def read_start(url: str, secret: Secret | None = None) -> dict[str, Any]:
    """What is another value after each start of one build, where the server tells: the seed that SGLang draws unless
    it is given one, and the start time among Prometheus metrics."""
    seed = _server_info(url, secret).get("random_seed")
    time_s = _STARTED.search(_get(url, "/metrics", secret) or b"")
    return {
        **({} if seed is None else {"random_seed": seed}),
        **({} if time_s is None else {"process_start_time_seconds": time_s[1].decode("ascii")}),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What ``after`` says otherwise than ``before``, in words; empty where nothing does.

    What only one of them says cannot be compared: a server that is busy or gone has not become another one.
    """
    different = sorted(key for key in before if key in after and after[key] != before[key])
    return ", ".join(f"{key} was {before[key]!r:.80} and is {after[key]!r:.80}" for key in different)


class Watch:
    """Holds a server against what it was when the watch began."""

    def __init__(self, url: str, secret: Secret | None = None) -> None:
        self._url, self._secret = url, secret
        self._identity, self._start = read_identity(url, secret), read_start(url, secret)

    def changed(self) -> str:
        """What the server says otherwise of its model or build, in words; empty where it is the same, or gone."""
        return changes(self._identity, read_identity(self._url, self._secret))

    def restarted(self) -> str:
        """What shows that the server was started again since this was last asked; empty where nothing does."""
        now = read_start(self._url, self._secret)
        found = changes(self._start, now)
        self._start = {**self._start, **now}
        return found


def _server_info(url: str, secret: Secret | None) -> dict[str, Any]:
    for path in _SERVER_INFO:
        info = get_json(url, path, secret)
        if isinstance(info, dict):
            return info
    return {}
