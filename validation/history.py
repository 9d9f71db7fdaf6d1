"""One scenario over recorded baselines: values with intervals, and where they changed. Pure but for ``read_files``.

Change points are found by ruptures' PELT (extra ``history``): least squares on the logs, in units of the recorded
spread. A change says that builds differ, not why; what cannot be compared is refused, not drawn side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from validation.judging.accuracy_arms import RecordedAccuracy
from validation.judging.score_interval import proportion_limits
from validation.judging.single_server import ScenarioBaseline
from validation.options import OptionError

SCHEMA = 1
"""Of ``validation.baselines``' files."""
MAX_BYTES = 64 * 2**20
CONFIDENCE = 0.95
FEWEST_FOR_CHANGE = 3
PENALTY = (4.0, 1.5)
"""A change must lower the squared error by the first, plus the second times the log of the number of records, in units
of the spread's square. Fitted to a simulation: with it 3 to 5 % of unchanged normal histories of 3 to 40 records get a
mark (tests/history)."""
FEWEST_FOR_SPREAD = 6
"""From so many records on, their own differences may say that the spread is larger than the launches' spread."""
_NORMAL = float(stats.norm.isf((1 - CONFIDENCE) / 2))
_MAD_TO_SD = 1.0 / float(stats.norm.ppf(0.75))
_Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class Point:
    """What one baseline says of the scenario."""

    name: str
    recorded_utc: str
    value: float
    """TPOT in ms, or accuracy as a share."""
    lower: float | None
    upper: float | None
    """Limits of the 95 % interval; None where one launch was recorded and its spread is not known."""
    launches: int


@dataclasses.dataclass(frozen=True)
class Change:
    """A mark: from ``first`` on the values lie elsewhere."""

    first: int
    """Index of the first point after the change."""
    percent: float
    """Change of the mean, in percent of the mean before."""


@dataclasses.dataclass(frozen=True)
class History:
    """One scenario over baselines, in the order they were recorded."""

    scenario: str
    unit: str
    """``ms`` for TPOT, ``share`` for accuracy."""
    hardware: str
    model: str
    points: tuple[Point, ...]
    changes: tuple[Change, ...]
    unmarked: str = ""
    """Why no change points were looked for; empty where they were."""


def read_files(paths: Sequence[pathlib.Path]) -> dict[str, dict[str, Any]]:
    """Recorded baselines by file name.

    Raises:
        OptionError: a file is no baseline of this schema, too large, or given twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise OptionError(f"{path.name} has {size} bytes; expected a recorded baseline of at most {MAX_BYTES}")
        try:
            data = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{path.name} is no JSON ({error}); expected a baseline recorded with --record") from None
        if path.name in found:
            raise OptionError(f"two files are called {path.name}; expected names of their own")
        _check(path.name, data)
        found[path.name] = data
    return found


def _check(name: str, data: Any) -> None:
    wanted = {"schema", "name", "recorded_utc", "model", "accuracy", "latency"}
    if not isinstance(data, dict) or wanted - set(data):
        raise OptionError(f"{name} is no recorded baseline; expected a file that --record wrote")
    if data["schema"] != SCHEMA:
        raise OptionError(f"{name} has schema version {data['schema']}; expected {SCHEMA}, record it anew")
    try:
        _latency(data)
        _accuracy(data)
        str(data["recorded_utc"]), hardware_of(data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise OptionError(f"{name} does not fit its schema ({error}); record it anew") from None


def history(
    files: Mapping[str, Mapping[str, Any]], scenario: str | None = None, hardware: str | None = None
) -> tuple[History, ...]:
    """The history of ``scenario``, or of every scenario that all files hold.

    Args:
        files: recorded baselines by name.
        scenario: a latency scenario, or ``accuracy``; None: all that every file holds.
        hardware: keep the baselines whose hardware holds this text.

    Raises:
        OptionError: nothing is left, or what is left cannot be compared; the sentence says which two and why.
    """
    kept = {n: d for n, d in files.items() if hardware is None or hardware.lower() in hardware_of(d).lower()}
    if not kept:
        known = ", ".join(sorted({hardware_of(data) for data in files.values()})) or "no file was given"
        raise OptionError(f"no baseline was recorded on {hardware or 'anything'}; expected one of: {known}")
    _refuse_incomparable(kept)
    ordered = dict(sorted(kept.items(), key=lambda item: (str(item[1]["recorded_utc"]), item[0])))
    first = next(iter(ordered.values()))
    everywhere = [s for s in scenarios_of(first) if all(s in scenarios_of(data) for data in ordered.values())]
    if scenario is not None and scenario not in everywhere:
        lacking = next((name for name, data in ordered.items() if scenario not in scenarios_of(data)), "")
        raise OptionError(
            f"{lacking} holds no scenario {scenario}; expected one that every file holds: "
            f"{', '.join(everywhere) or 'there is none'}"
        )
    if not everywhere:
        raise OptionError(f"the {len(ordered)} baselines share no scenario; expected files that measured the same ones")
    return tuple(_history(name, ordered) for name in ([scenario] if scenario else everywhere))


def scenarios_of(data: Mapping[str, Any]) -> list[str]:
    """What a baseline recorded: its latency scenarios, and ``accuracy``."""
    return [*data["latency"], *(["accuracy"] if data["accuracy"] is not None else [])]


def hardware_of(data: Mapping[str, Any]) -> str:
    """``8 x AMD Instinct MI355X``, or the processor and its cores where there is no GPU."""
    provenance = data.get("provenance") or {}
    names = [str(gpu.get("name") or gpu.get("rocm_smi") or gpu) for gpu in provenance.get("gpus") or []]
    if names:
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return f"{provenance.get('processor') or 'unknown processor'}, {provenance.get('cores') or '?'} cores"


def _refuse_incomparable(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ``OptionError`` unless all were recorded alike; the first differing property and pair are named."""
    first_name, first = next(iter(files.items()))
    one = _comparable(first)
    for name, data in files.items():
        other = _comparable(data)
        for key in one.keys() & other.keys():
            if one[key] != other[key]:
                raise OptionError(
                    f"{first_name} was recorded with {key} {one[key]!r}, {name} with {other[key]!r}; "
                    f"expected one {key}, leave one of them out{' or give --hardware' if key == 'hardware' else ''}"
                )


def _comparable(data: Mapping[str, Any]) -> dict[str, Any]:
    """What two baselines must share; the questions only where both asked some."""
    shared: dict[str, Any] = {
        "schema": data["schema"],
        "hardware": hardware_of(data),
        "model": data["model"],
        "profile": data.get("profile"),
    }
    accuracy = data["accuracy"]
    if accuracy is not None:
        shared["question set"] = accuracy["questions_sha256"]
        shared["prompt mode"] = accuracy["prompt_mode"]
        shared["extractor"] = accuracy["extractor"]
    return shared


def _history(scenario: str, files: Mapping[str, Mapping[str, Any]]) -> History:
    points, errors = [], []
    for name, data in files.items():
        point, error = _accuracy_point(name, data) if scenario == "accuracy" else _tpot_point(name, data, scenario)
        points.append(point)
        errors.append(error)
    scale = np.array([p.value for p in points]) if scenario == "accuracy" else np.log([p.value for p in points])
    sd, unmarked = _spread(scale, errors)
    starts = [] if unmarked else change_points(scale / sd)
    first = next(iter(files.values()))
    unit = "share" if scenario == "accuracy" else "ms"
    return History(
        scenario, unit, hardware_of(first), str(first["model"]), tuple(points), _changes(points, starts), unmarked
    )


def _tpot_point(name: str, data: Mapping[str, Any], scenario: str) -> tuple[Point, _Error | None]:
    """The point, and the error of its log; launches and days add as squares."""
    recorded = _latency(data)[scenario]
    parts = [(recorded.launch_sd_percent, recorded.launches), (recorded.day_sd_percent, recorded.days)]
    known = [(sd / 100, count) for sd, count in parts if sd is not None and count > 1]
    if not known:
        return Point(name, _when(data), recorded.tpot_ms, None, None, recorded.launches), None
    half = math.hypot(*(sd / math.sqrt(n) * float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1)) for sd, n in known))
    limits = recorded.tpot_ms * math.exp(-half), recorded.tpot_ms * math.exp(half)
    error = _Error(math.hypot(*(sd / math.sqrt(n) for sd, n in known)), min(n for _, n in known) - 1)
    return Point(name, _when(data), recorded.tpot_ms, *limits, recorded.launches), error


def _accuracy_point(name: str, data: Mapping[str, Any]) -> tuple[Point, _Error | None]:
    """The point, and its error; a question without an answer counts in no run."""
    recorded = _accuracy(data)
    if recorded is None:
        raise ValueError(f"{name} holds no accuracy")
    answered = [i for i in range(len(recorded.indexes)) if all(run[i] != "-" for run in recorded.runs)]
    scores = np.array([[run[i] == "1" for i in answered] for run in recorded.runs], dtype=float)
    if not scores.size:
        raise OptionError(f"{name} holds no question that every run answered; expected at least one")
    lower, upper = proportion_limits(scores, alpha=(1 - CONFIDENCE) / 2)
    error = _Error((upper - lower) / 2 / _NORMAL, len(answered))
    return Point(name, _when(data), float(scores.mean()), lower, upper, len(recorded.runs)), error


@dataclasses.dataclass(frozen=True)
class _Error:
    """A standard error and its degrees of freedom."""

    value: float
    degrees: int


def _spread(values: _Values, errors: Sequence[_Error | None]) -> tuple[float, str]:
    """The standard deviation of a point that did not change, or why it is not known."""
    if len(values) < FEWEST_FOR_CHANGE:
        return 1.0, f"{len(values)} records: a change is looked for from {FEWEST_FOR_CHANGE} on"
    known = [error for error in errors if error is not None]
    recorded = math.sqrt(statistics.fmean(error.value**2 for error in known)) if known else 0.0
    if known:  # estimated from few launches it may be too small, as Student's t knows
        recorded *= float(stats.t.isf((1 - CONFIDENCE) / 2, sum(error.degrees for error in known))) / _NORMAL
    # Days, drivers and rooms differ too. Most neighbours have no change between them, so the median step shows that.
    steps = np.abs(np.diff(values))
    own = float(np.median(steps)) * _MAD_TO_SD / math.sqrt(2) if len(values) >= FEWEST_FOR_SPREAD else 0.0
    if max(recorded, own) <= 0:
        return 1.0, f"no spread was recorded, and {len(values)} records are too few to tell it from changes"
    return max(recorded, own), ""


def change_points(values: _Values) -> list[int]:
    """Indices of the first value after each change; ``values`` in units of their standard deviation.

    Raises:
        OptionError: ruptures is not installed.
    """
    try:
        import ruptures
    except ImportError:
        raise OptionError(
            "change points need the package ruptures; install it with pip install 'serving-validation[history]'"
        ) from None
    if len(values) < 2:
        return []
    search = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(values.reshape(-1, 1))
    ends: list[int] = search.predict(pen=PENALTY[0] + PENALTY[1] * math.log(len(values)))
    return ends[:-1]


def _changes(points: Sequence[Point], starts: Sequence[int]) -> tuple[Change, ...]:
    bounds = [0, *starts, len(points)]
    means = [statistics.fmean(p.value for p in points[a:b]) for a, b in itertools.pairwise(bounds)]
    return tuple(
        Change(start, 100 * (after / before - 1))
        for start, before, after in zip(starts, means, means[1:], strict=False)
    )


def _when(data: Mapping[str, Any]) -> str:
    return str(data["recorded_utc"])


def _latency(data: Mapping[str, Any]) -> dict[str, ScenarioBaseline]:
    found = {str(name): ScenarioBaseline(**values) for name, values in data["latency"].items()}
    for name, recorded in found.items():
        if not (math.isfinite(recorded.tpot_ms) and recorded.tpot_ms > 0 and recorded.launches >= 1):
            raise ValueError(f"{name} has a TPOT of {recorded.tpot_ms} ms over {recorded.launches} launches")
    return found


def _accuracy(data: Mapping[str, Any]) -> RecordedAccuracy | None:
    return None if data["accuracy"] is None else RecordedAccuracy.from_json(data["accuracy"])
