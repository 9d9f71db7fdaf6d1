"""Where the spread of a latency experiment comes from: launches, runs of a launch, requests, drift and position.

Shown, not judged: the verdict rests on block data, whose spread holds all of it already.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from validation.judging.tpot import RunTpot


@dataclasses.dataclass(frozen=True)
class Components:
    """Standard deviations and effects in percent of TPOT; None where the data cannot tell."""

    launches: int
    launch_sd_percent: float | None
    """Between launches of an arm, runs' part taken off (method of moments, cut off at 0)."""
    launch_degrees: int
    shared_launch_sd_percent: float | None
    """The part that moves all scenarios of a launch together."""
    own_launch_sd_percent: float | None
    """The part that each scenario of a launch has for itself."""
    run_sd_percent: float | None
    """Between runs of a launch."""
    request_sd_percent: float
    """Between requests of a run. They share decode steps: it gives no standard error."""
    drift_percent_per_launch: float | None
    """Slope of TPOT over the order of launches, arms apart."""
    drift_se_percent: float | None
    position_effect_percent: float | None
    """How much slower the later half of a block runs than the earlier half."""
    position_se_percent: float | None

    def to_json(self) -> dict[str, Any]:
        """The components as JSON data."""
        return dataclasses.asdict(self)


def components(runs: Sequence[RunTpot]) -> Components:
    """Variance components, drift and position effect of ``runs`` (two arms or one, any number of scenarios).

    The launch means of a scenario are fitted by ordinary least squares on arm, order of launch and place in the block;
    what is left over is launches plus runs. Raises ``ValueError`` where ``runs`` is empty.
    """
    if not runs:
        raise ValueError("no runs were given; expected at least one")
    order = {key: i for i, key in enumerate(sorted({(r.block, r.position, r.launch_id) for r in runs}))}
    by_scenario: dict[str, dict[tuple[int, int, str], list[RunTpot]]] = collections.defaultdict(dict)
    for r in runs:
        by_scenario[r.scenario].setdefault((r.block, r.position, r.launch_id), []).append(r)
    within = [
        (len(group) - 1, statistics.variance([math.log(r.tpot_ms) for r in group]))
        for launches in by_scenario.values()
        for group in launches.values()
        if len(group) > 1
    ]
    degrees_run = sum(d for d, _ in within)
    run_variance = sum(d * v for d, v in within) / degrees_run if degrees_run else None
    complete = [key for key in order if all(key in launches for launches in by_scenario.values())]
    per_launch = statistics.fmean(len(g) for launches in by_scenario.values() for g in launches.values())
    fit = _fit(complete, by_scenario, order)
    run_part = (run_variance or 0.0) / per_launch
    launch_variance = shared = own = None
    if fit is not None:
        launch_variance = max(0.0, fit.residual - run_part)
        if fit.shared is not None:
            shared = min(launch_variance, max(0.0, fit.shared))
            own = launch_variance - shared
    return Components(
        launches=len(order),
        launch_sd_percent=_sd(launch_variance),
        launch_degrees=fit.degrees if fit else 0,
        shared_launch_sd_percent=_sd(shared),
        own_launch_sd_percent=_sd(own),
        run_sd_percent=_sd(run_variance),
        request_sd_percent=100 * statistics.fmean(r.request_sd_ms / r.tpot_ms for r in runs),
        drift_percent_per_launch=None if fit is None else 100 * fit.drift[0],
        drift_se_percent=None if fit is None else 100 * fit.drift[1],
        position_effect_percent=None if fit is None or fit.position is None else 100 * fit.position[0],
        position_se_percent=None if fit is None or fit.position is None else 100 * fit.position[1],
    )


@dataclasses.dataclass(frozen=True)
class _Fit:
    residual: float
    """Variance left over, mean of the scenarios."""
    shared: float | None
    """Mean covariance of the scenarios' residuals."""
    degrees: int
    drift: tuple[float, float]
    position: tuple[float, float] | None


def _fit(
    launches: Sequence[tuple[int, int, str]],
    by_scenario: dict[str, dict[tuple[int, int, str], list[RunTpot]]],
    order: dict[tuple[int, int, str], int],
) -> _Fit | None:
    arms = sorted({by_scenario[s][key][0].arm for s in by_scenario for key in launches})
    if not launches or not arms:
        return None
    first = next(iter(by_scenario.values()))
    last_place = {key[0]: max(k[1] for k in launches if k[0] == key[0]) for key in launches}
    place = [key[1] / last_place[key[0]] - 0.5 if last_place[key[0]] else 0.0 for key in launches]
    columns = [[float(first[key][0].arm == arm) for key in launches] for arm in arms]
    columns.append([float(order[key]) for key in launches])
    if np.linalg.matrix_rank(np.array([*columns, place]).T) == len(columns) + 1:
        columns.append(place)
    design = np.array(columns).T
    degrees = len(launches) - design.shape[1]
    if degrees < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    y = np.array(
        [
            [statistics.fmean(math.log(r.tpot_ms) for r in by_scenario[s][key]) for s in sorted(by_scenario)]
            for key in launches
        ]
    )
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    left = y - design @ coefficients
    covariance = left.T @ left / degrees
    count = covariance.shape[0]
    # The mean over scenarios is what a reader compares with the primary; its own residual gives the standard errors.
    mean_variance = float(np.mean(left, axis=1) @ np.mean(left, axis=1)) / degrees
    errors = np.sqrt(mean_variance * np.diag(np.linalg.inv(design.T @ design)))
    means = coefficients.mean(axis=1)
    has_position = design.shape[1] == len(arms) + 2
    return _Fit(
        residual=float(np.trace(covariance)) / count,
        shared=float((covariance.sum() - np.trace(covariance)) / (count * (count - 1))) if count > 1 else None,
        degrees=degrees,
        drift=(float(means[len(arms)]), float(errors[len(arms)])),
        position=(float(means[-1]), float(errors[-1])) if has_position else None,
    )


def _sd(variance: float | None) -> float | None:
    return None if variance is None else 100 * math.sqrt(variance)
