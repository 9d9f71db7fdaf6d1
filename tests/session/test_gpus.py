"""Each xdist worker takes one GPU, in turn, from those the environment allows; a machine without GPUs is left alone."""

from __future__ import annotations

import os

import pytest

from validation import gpus


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpus.VISIBLE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("worker", "expected"), [("gw0", "0"), ("gw1", "1"), ("gw2", "0")])
def test_workers_take_gpus_in_turn(worker: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count", lambda: 2)
    gpus.choose_for_worker(worker)
    assert [os.environ.get(name) for name in gpus.VISIBLE].count(expected) == 1


def test_a_restricted_environment_stays_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    monkeypatch.setattr(gpus, "count", lambda: 8)
    gpus.choose_for_worker("gw1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_without_gpus_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count", lambda: 0)
    gpus.choose_for_worker("gw1")
    assert not [name for name in gpus.VISIBLE if name in os.environ]
