"""Real traces, and writers of changed ones."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

DATA = pathlib.Path(__file__).parent / "data"
Json = dict[str, Any]


def _folders() -> list[pathlib.Path]:
    """The traces in the tree, and the folder of uncut ones where ``TRACES_PATH`` names it."""
    named = os.environ.get("TRACES_PATH")
    return [DATA, *([pathlib.Path(named)] if named else [])]


@pytest.fixture(params=_folders(), ids=lambda folder: "cut" if folder == DATA else "uncut")
def arms(request: pytest.FixtureRequest) -> tuple[pathlib.Path, pathlib.Path]:
    """The files of cat and skip."""
    cat, skip = (next(request.param.glob(f"*_{arm}_*.json.gz")) for arm in ("cat", "skip"))
    return cat, skip


@pytest.fixture
def cat_path() -> pathlib.Path:
    return DATA / "sglang0512_h200_cat_decode.json.gz"


@pytest.fixture
def skip_path() -> pathlib.Path:
    return DATA / "sglang0512_h200_skip_decode.json.gz"


@pytest.fixture
def cpu_path() -> pathlib.Path:
    return DATA / "torch_cpu_decode.json.gz"


@pytest.fixture
def load() -> Callable[[pathlib.Path], Json]:
    """A trace file as one JSON object."""
    return lambda path: dict(json.loads(gzip.decompress(path.read_bytes())))


@pytest.fixture
def save(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write a JSON object as a trace file."""

    def write(data: Any, name: str = "trace.json") -> pathlib.Path:
        path = tmp_path / name
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def kernels_as_trace(save: Callable[..., pathlib.Path]) -> Callable[..., pathlib.Path]:
    """Write a trace of kernels given as (name, start_us, duration_us) or (name, start_us, duration_us, stream)."""

    def write(*kernels: tuple[Any, ...], name: str = "trace.json", more: tuple[Json, ...] = ()) -> pathlib.Path:
        events = [
            {
                "ph": "X",
                "cat": "kernel",
                "name": kernel[0],
                "ts": kernel[1],
                "dur": kernel[2],
                "pid": 0,
                "tid": kernel[3] if len(kernel) > 3 else 7,
                "args": {"correlation": i},
            }
            for i, kernel in enumerate(kernels)
        ]
        return save({"schemaVersion": 1, "traceEvents": [*events, *more]}, name)

    return write
