"""What the plots draw, read from ``Finding.numbers``. Every key is optional: a plot whose keys are missing is left out.

``latency.*`` findings
    ``scenarios``: name to ``gain_percent`` (of the baseline's TPOT, above zero the candidate is faster),
    ``lower_percent``, ``upper_percent``, ``detectable_percent``; for the absolute saving also ``concurrency`` and
    ``saving_ms`` (or ``baseline_tpot_ms`` and ``candidate_tpot_ms``), ``saving_lower_ms``, ``saving_upper_ms``;
    ``gain_percent``, ``final_lower_percent``, ``final_upper_percent`` (or ``lower_percent``, ``upper_percent``);
    ``plan.smallest_useful_gain_percent``; ``constant_saving_ms``; ``block_gains_percent``, ``block_orders``.
``accuracy.*`` findings
    ``accuracy_per_run``: arm to the accuracy of each of its runs, 0 to 1 (or ``accuracy``: arm to accuracy),
    ``run_to_run.same_build_accuracies``, ``difference_points``, ``lower_points``, ``upper_points``, ``margin_points``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from validation.judgement import Judgement
from validation.reporting.values import is_list
from validation.verdicts import Evidence, Finding

MAX_ROWS = 60
"""Rows of a plot; a page has room for about as many."""
MAX_POINTS = 500
_LARGEST = 1e9
"""Nothing a report plots (percent, points, milliseconds) comes near it; larger numbers are no measurement."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """One row of a forest plot."""

    label: str
    estimate: float
    lower: float | None
    upper: float | None
    detectable: float | None = None
    primary: bool = False


@dataclasses.dataclass(frozen=True)
class Forest:
    """Intervals on one scale, and the limits they are held against."""

    finding: str
    rows: tuple[Interval, ...]
    limit: float | None


@dataclasses.dataclass(frozen=True)
class Saving:
    """The absolute saving of one scenario, in milliseconds a token."""

    label: str
    concurrency: float
    saving_ms: float
    lower_ms: float | None
    upper_ms: float | None


@dataclasses.dataclass(frozen=True)
class Savings:
    """Savings against concurrency, and the one constant that was fitted to them."""

    finding: str
    points: tuple[Saving, ...]
    constant_ms: float | None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The change that each block gave, in order."""

    finding: str
    changes: tuple[tuple[float, str], ...]
    """Percent of TPOT, below zero the candidate is faster; and the order of the arms in the block."""
    mean: float | None


@dataclasses.dataclass(frozen=True)
class Runs:
    """Accuracy of each run, in percent, by group."""

    finding: str
    groups: tuple[tuple[str, tuple[float, ...]], ...]
    floor: float | None
    """The reference's mean less the margin."""


def latency_forests(judgement: Judgement) -> Iterator[Forest]:
    """TPOT change per scenario in percent; below zero the candidate is faster."""
    for finding in _of(judgement, Evidence.LATENCY):
        numbers = finding.numbers
        rows = [
            row
            for name, values in _items(numbers.get("scenarios"))
            if (
                row := _change(
                    name, values, ("lower_percent", "upper_percent"), number(values.get("detectable_percent"))
                )
            )
        ]
        if not rows:
            continue
        ends = ("final_lower_percent", "final_upper_percent")
        if not all(key in numbers for key in ends):
            ends = ("lower_percent", "upper_percent")
        effect = finding.detectable
        detectable = effect.value if effect is not None and "percent" in effect.unit else None
        whole = _change("all scenarios", numbers, ends, detectable)
        if whole is not None:
            rows = [*rows[: MAX_ROWS - 1], dataclasses.replace(whole, primary=True)]
        plan = numbers.get("plan")
        useful = number(plan.get("smallest_useful_gain_percent")) if isinstance(plan, Mapping) else None
        yield Forest(finding.name, tuple(rows[:MAX_ROWS]), None if useful is None else -useful)


def _change(label: str, values: Mapping[str, Any], ends: tuple[str, str], detectable: float | None) -> Interval | None:
    gain, low, high = (number(values.get(key)) for key in ("gain_percent", *ends))
    if gain is None:
        return None
    return Interval(
        label,
        -gain,
        None if high is None else -high,
        None if low is None else -low,
        None if detectable is None else -detectable,
    )


def latency_savings(judgement: Judgement) -> Iterator[Savings]:
    """Absolute saving per token against concurrency."""
    for finding in _of(judgement, Evidence.LATENCY):
        points = []
        for name, values in _items(finding.numbers.get("scenarios")):
            concurrency, saving = number(values.get("concurrency")), number(values.get("saving_ms"))
            before, after = number(values.get("baseline_tpot_ms")), number(values.get("candidate_tpot_ms"))
            if saving is None and before is not None and after is not None:
                saving = before - after
            if concurrency is not None and concurrency > 0 and saving is not None:
                ends = (number(values.get(key)) for key in ("saving_lower_ms", "saving_upper_ms"))
                points.append(Saving(name, concurrency, saving, *ends))
        if len(points) > 1:
            yield Savings(finding.name, tuple(points[:MAX_ROWS]), number(finding.numbers.get("constant_saving_ms")))


def latency_blocks(judgement: Judgement) -> Iterator[Blocks]:
    """The primary's change block by block: drift would show as a trend, a bad block as a jump."""
    for finding in _of(judgement, Evidence.LATENCY):
        gains = finding.numbers.get("block_gains_percent")
        if not is_list(gains):
            continue
        orders = finding.numbers.get("block_orders")
        orders = orders if is_list(orders) and len(orders) == len(gains) else [""] * len(gains)
        changes = [
            (-gain, str(order))
            for value, order in zip(gains, orders, strict=True)
            if (gain := number(value)) is not None
        ]
        if len(changes) == len(gains) > 1:
            mean = number(finding.numbers.get("gain_percent"))
            yield Blocks(finding.name, tuple(changes[:MAX_POINTS]), None if mean is None else -mean)


def accuracy_runs(judgement: Judgement) -> Iterator[Runs]:
    """Accuracy of every run of every arm, and of the recorded runs of one build."""
    for finding in _of(judgement, Evidence.ACCURACY):
        numbers = finding.numbers
        per_run = numbers.get("accuracy_per_run")
        source = per_run if isinstance(per_run, Mapping) else numbers.get("accuracy")
        groups = []
        for arm, values in source.items() if isinstance(source, Mapping) else ():
            shares = [number(v) for v in (values if is_list(values) else [values])]
            if shares and all(share is not None and 0 <= share <= 1 for share in shares):
                groups.append((str(arm), tuple(100 * share for share in shares[:MAX_POINTS] if share is not None)))
        if not groups:
            continue
        run_to_run = numbers.get("run_to_run")
        recorded = run_to_run.get("same_build_accuracies") if isinstance(run_to_run, Mapping) else None
        shares = [number(v) for v in recorded] if is_list(recorded) else []
        if len(shares) > 1 and all(share is not None and 0 <= share <= 1 for share in shares):
            groups.append(
                ("runs of one build", tuple(100 * share for share in shares[:MAX_POINTS] if share is not None))
            )
        margin = number(numbers.get("margin_points"))
        reference = groups[0][1]
        floor = None if margin is None or len(groups) < 2 else sum(reference) / len(reference) - abs(margin)
        yield Runs(finding.name, tuple(groups[:MAX_ROWS]), floor)


def accuracy_forest(judgement: Judgement) -> Forest | None:
    """Difference of accuracy, candidate less reference, in points, one row a finding."""
    rows, margins = [], []
    for finding in _of(judgement, Evidence.ACCURACY):
        keys = ("difference_points", "lower_points", "upper_points", "margin_points")
        difference, low, high, margin = (number(finding.numbers.get(key)) for key in keys)
        if difference is not None and low is not None and high is not None:
            rows.append(Interval(finding.name.removeprefix("accuracy."), difference, low, high))
            margins.append(None if margin is None else -abs(margin))
    if not rows:
        return None
    return Forest("accuracy", tuple(rows[:MAX_ROWS]), margins[0] if len(set(margins)) == 1 else None)


def number(value: Any) -> float | None:
    """``value`` as a float that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before the conversion: an integer beyond a float's range would raise.
    return float(value) if -_LARGEST < value < _LARGEST and not math.isnan(value) else None


def _items(mapping: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(mapping, Mapping):
        yield from ((str(key), value) for key, value in mapping.items() if isinstance(value, Mapping))


def _of(judgement: Judgement, evidence: Evidence) -> Iterator[Finding]:
    return (finding for finding in judgement.findings if finding.evidence is evidence)
