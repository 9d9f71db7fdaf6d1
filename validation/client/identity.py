"""Asks a server which model it serves, to notice that it became another one."""

from __future__ import annotations

import http.client
import urllib.parse
from typing import Any

import orjson

from validation.client.redaction import Secret, redact

TIMEOUT_S = 10.0
"""An idle server answers in milliseconds; one that takes longer is asked in vain, and nothing fails for it."""


def get_json(url: str, path: str, secret: Secret | None = None) -> Any:
    """The JSON at ``path`` of the server at ``url``; None where it has no such page. Redirects are not followed."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {secret.value}"} if secret else {}
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        return redact(orjson.loads(answer.read()), secret) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def read_identity(url: str, secret: Secret | None = None) -> dict[str, Any]:
    """What the server says it serves: SGLang's model info and the names of the OpenAI endpoint, where it has them."""
    identity: dict[str, Any] = {}
    info = get_json(url, "/get_model_info", secret)
    if isinstance(info, dict):
        identity |= {key: info[key] for key in ("model_path", "tokenizer_path", "weight_version") if key in info}
    models = get_json(url, "/v1/models", secret)
    if isinstance(models, dict) and isinstance(models.get("data"), list):
        identity["models"] = [item.get("id") for item in models["data"] if isinstance(item, dict)]
    return identity
