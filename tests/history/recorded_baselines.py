"""Baselines as ``--record`` writes them, with chosen values."""

from __future__ import annotations

from typing import Any


def recorded(
    number: int,
    tpot_ms: float | dict[str, float],
    *,
    launch_sd_percent: float | None = 0.2,
    launches: int = 8,
    gpu: str = "AMD Instinct MI355X",
    marks: tuple[str, ...] | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """Release ``number``: one file's content."""
    tpots = tpot_ms if isinstance(tpot_ms, dict) else {"1k1k-c4": tpot_ms}
    accuracy = None
    if marks is not None:
        indexes = list(range(len(marks[0])))
        named = {"name": f"r{number}", "model": "GLM", "questions_sha256": "ab", "prompt_mode": "vllm"}
        accuracy = {**named, "extractor": "sglang_last", "indexes": indexes, "runs": list(marks)}
    latency = {
        name: {
            "tpot_ms": value,
            "launches": launches,
            "launch_sd_percent": launch_sd_percent,
            "days": 1,
            "day_sd_percent": None,
        }
        for name, value in tpots.items()
    }
    data = {
        "schema": 1,
        "name": f"r{number}",
        "recorded_utc": f"2026-01-{number + 1:02d}T00:00:00+00:00",
        "model": "GLM",
        "profile": "release",
        "accuracy": accuracy,
        "latency": latency,
        "identity": {},
        "provenance": {"gpus": [{"name": gpu}] * 8},
        "command": ["pytest"],
    }
    return {**data, **changed}


def releases(*tpots_ms: float, **options: Any) -> dict[str, dict[str, Any]]:
    """One file a release, in order."""
    return {f"r{i:02d}.json": recorded(i, value, **options) for i, value in enumerate(tpots_ms)}
