"""Recorded baselines: what one server did, kept so that a later one can be compared with it.

A baseline is one JSON file in a folder of them (``--baselines``): accuracy by question, TPOT by scenario, the
server's identity and the provenance. It is refused where it was recorded for another schema, model or question set.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from validation.e2e_plan import CANDIDATE, E2EPlan
from validation.gsm8k import SCORERS
from validation.judging.accuracy_arms import RecordedAccuracy, record_accuracy
from validation.judging.single_server import ScenarioBaseline
from validation.judging.tpot import measure_runs
from validation.options import OptionError
from validation.records import Launch, Question, Record, Request, Run

SCHEMA = 1
MAX_BYTES = 64 * 2**20


def load_baseline(folder: pathlib.Path, name: str, plan: E2EPlan) -> dict[str, Any]:
    """The baseline ``name`` of ``folder`` as JSON data, checked against ``plan``.

    Raises:
        OptionError: it does not exist, is of another schema, or was recorded for another question set or prompt mode.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none is recorded yet"
        raise OptionError(
            f"--baseline {name} does not exist; expected one of: {known}; record one with --record {name}"
        )
    data = _read(path, name)
    accuracy = data["accuracy"]
    try:
        recorded = None if accuracy is None else RecordedAccuracy.from_json(accuracy)
        for scenario in data["latency"].values():
            ScenarioBaseline(**scenario)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OptionError(f"--baseline {name} cannot be read ({error}); record it anew") from None
    if recorded is not None:
        wanted = dataclasses.replace(plan.accuracy, model=recorded.model)
        mismatch = recorded.mismatch(wanted)
        if mismatch:
            raise OptionError(f"--baseline {name} cannot be compared: {mismatch}")
    return data


def check_model(baseline: Mapping[str, Any], model: str) -> None:
    """Raise ``OptionError`` where a baseline was recorded for another model than the server that answers now."""
    if baseline["model"] != model:
        raise OptionError(
            f"--baseline {baseline['name']} was recorded for the model {baseline['model']}, the server serves {model}; "
            "expected the same model, record a baseline of this one with --record"
        )


def model_of(identity: Mapping[str, Any]) -> str:
    """The model that a server names, by whichever route it has; empty where it names none."""
    server = identity.get("server", {})
    info = server.get("get_model_info") if isinstance(server, Mapping) else None
    if isinstance(info, Mapping) and info.get("model_path"):
        return pathlib.PurePath(str(info["model_path"])).name
    models = server.get("v1_models") if isinstance(server, Mapping) else None
    entries = models.get("data", []) if isinstance(models, Mapping) else []
    return str(entries[0].get("id", "")) if entries else ""


def path_to_record(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where the baseline ``name`` will be written.

    Raises:
        OptionError: there is one already.
    """
    path = folder / f"{name}.json"
    if path.exists():
        raise OptionError(f"--record {name} exists already; expected a new name, a baseline is never overwritten")
    return path


def record_baseline(folder: pathlib.Path, name: str, records: Sequence[Record]) -> pathlib.Path:
    """Write what the candidate of a run did as the baseline ``name``; returns the file.

    Raises:
        OptionError: the run measured nothing, or the baseline exists already.
    """
    path = path_to_record(folder, name)
    run = next(r for r in records if isinstance(r, Run))
    plan = E2EPlan.from_json(run.declared["e2e"])
    launches = [r for r in records if isinstance(r, Launch) and r.arm == CANDIDATE]
    if not launches:
        raise OptionError(f"--record {name} has nothing to record; expected a run that reached its server")
    questions = [r for r in records if isinstance(r, Question) and r.scenario == plan.accuracy_scenario]
    requests = [r for r in records if isinstance(r, Request)]
    model = model_of(launches[0].identity)
    accuracy = dataclasses.replace(plan.accuracy, model=model)
    recorded = record_accuracy(requests, questions, accuracy, SCORERS[accuracy.extractor], name) if questions else None
    data = {
        "schema": SCHEMA,
        "name": name,
        "recorded_utc": run.started_utc,
        "profile": run.profile,
        "model": model,
        "accuracy": None if recorded is None else recorded.to_json(),
        "latency": {key: dataclasses.asdict(value) for key, value in _latency(records).items()},
        "identity": dict(launches[0].identity),
        "provenance": dict(run.provenance),
        "command": list(run.command),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _latency(records: Sequence[Record]) -> dict[str, ScenarioBaseline]:
    tpots: dict[str, list[float]] = defaultdict(list)
    for run in measure_runs(records, CANDIDATE):
        tpots[run.scenario].append(run.tpot_ms)
    return {
        name: ScenarioBaseline(
            tpot_ms=statistics.geometric_mean(values),
            launches=len(values),
            launch_sd_percent=100 * statistics.stdev(math.log(v) for v in values) if len(values) > 1 else None,
            days=1,
            day_sd_percent=None,
        )
        for name, values in tpots.items()
    }


def _read(path: pathlib.Path, name: str) -> dict[str, Any]:
    if path.stat().st_size > MAX_BYTES:
        raise OptionError(f"--baseline {name} is {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OptionError(f"--baseline {name}: {path.name} is no JSON ({error}); record it anew") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise OptionError(f"--baseline {name} has schema version {found}; expected {SCHEMA}, record it anew")
    missing = {"name", "model", "accuracy", "latency"} - set(data)
    if missing:
        raise OptionError(f"--baseline {name} lacks {', '.join(sorted(missing))}; record it anew")
    return dict(data)
