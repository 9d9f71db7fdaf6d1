"""One embedded engine for all tests of this folder that need a real model, and one with a planted defect."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from validation.arms import Place, embedded_arm


def _serve(folder: pathlib.Path, *options: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # a node of its own: it stays while arms run
        with embedded_arm("engine", "skip", "--device", "cpu", *options).session(Place(folder), print) as server:
            patch.undo()
            yield server.url


@pytest.fixture(scope="session")
def engine_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded engine, serving."""
    yield from _serve(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def planted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded engine with a broken rotation, serving."""
    yield from _serve(tmp_path_factory.mktemp("planted"), "--plant", "broken-rope")
