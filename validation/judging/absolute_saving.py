"""How many milliseconds a token the candidate saves, scenario by scenario, and whether one constant fits them all.

Shown, not judged. An optimisation that removes one launch per layer saves a constant; a saving that grows with the
batch is another mechanism than the one claimed.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from validation.judging.tpot import RunTpot
from validation.verdicts import Finding

CONFIDENCE = 0.95
"""Two-sided level of each scenario's interval, alone: it decides nothing."""


def absolute_savings(
    runs: Sequence[RunTpot], concurrency: Mapping[str, int], candidate: str, baseline: str
) -> dict[str, Any]:
    """``scenarios`` (name to TPOT and saving in ms with Student's interval over blocks) and ``constant_saving_ms``.

    The constant is the mean weighted by 1 / variance; its chi-square takes the scenarios as independent, which those of
    one launch are not quite. Both are None below two scenarios or blocks. Scenarios without both arms are left out.
    """
    blocks: dict[str, dict[int, dict[str, list[float]]]] = collections.defaultdict(dict)
    for run in runs:
        arms = blocks[run.scenario].setdefault(run.block, {})
        arms.setdefault(run.arm, []).append(run.tpot_ms)
    scenarios: dict[str, dict[str, Any]] = {}
    fitted: list[tuple[float, float]] = []
    for name, by_block in blocks.items():
        pairs = [
            (statistics.fmean(arms[baseline]), statistics.fmean(arms[candidate]))
            for arms in by_block.values()
            if baseline in arms and candidate in arms
        ]
        if not pairs:
            continue
        savings = [before - after for before, after in pairs]
        saving = statistics.fmean(savings)
        row: dict[str, Any] = {
            "concurrency": concurrency.get(name),
            "baseline_tpot_ms": statistics.fmean(before for before, _ in pairs),
            "candidate_tpot_ms": statistics.fmean(after for _, after in pairs),
            "saving_ms": saving,
            "saving_lower_ms": None,
            "saving_upper_ms": None,
        }
        error = statistics.stdev(savings) / math.sqrt(len(savings)) if len(savings) > 1 else 0.0
        if error:
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(savings) - 1)) * error
            row |= {"saving_lower_ms": saving - half, "saving_upper_ms": saving + half}
            fitted.append((saving, error))
        scenarios[name] = row
    return {"scenarios": scenarios, **_constant(fitted)}


def with_savings(finding: Finding, savings: Mapping[str, Any]) -> Finding:
    """``finding`` with each scenario's saving beside its other numbers, and the constant's fit."""
    known: Mapping[str, Any] = finding.numbers.get("scenarios", {})
    names = [*known, *(name for name in savings["scenarios"] if name not in known)]
    scenarios = {name: {**known.get(name, {}), **savings["scenarios"].get(name, {})} for name in names}
    return dataclasses.replace(finding, numbers={**finding.numbers, **savings, "scenarios": scenarios})


def _constant(fitted: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    if len(fitted) < 2:
        return {"constant_saving_ms": None, "constant_saving_chi_square": None, "constant_saving_p": None}
    weights = [1 / error**2 for _, error in fitted]
    constant = sum(w * saving for w, (saving, _) in zip(weights, fitted, strict=True)) / sum(weights)
    chi_square = sum(w * (saving - constant) ** 2 for w, (saving, _) in zip(weights, fitted, strict=True))
    return {
        "constant_saving_ms": constant,
        "constant_saving_chi_square": chi_square,
        "constant_saving_p": float(stats.chi2.sf(chi_square, len(fitted) - 1)),
    }
