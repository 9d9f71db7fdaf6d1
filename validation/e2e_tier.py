"""Gathers the end-to-end evidence of one pytest session, and judges it on the spot for the tests that wait for it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import TypeGuard

import pytest

from validation.arms import PROBE_TIMEOUT_S, describe, wait_ready
from validation.baselines import check_model, model_of, record_baseline
from validation.e2e import Experiment, Wanted
from validation.e2e_plan import E2EPlan
from validation.judgement import Judgement, judge_folder
from validation.options import OptionError, Settings
from validation.records import Note, Record, ScenarioRun, read_run
from validation.runs import ActiveRun, disk_trouble, header
from validation.server_process import ArmError, ServerChangedError


def declared_plan(folder: pathlib.Path) -> E2EPlan:
    """The plan that the run's header declares: the one that is measured is the one that is judged."""
    return E2EPlan.from_json(header(folder).declared["e2e"])


def gather(run: ActiveRun, settings: Settings, selected: Collection[str], progress: Callable[[str], None]) -> Judgement:
    """Run the experiment for the ``selected`` kinds of evidence (``tokens``, ``accuracy``, ``latency``).

    Raises:
        pytest.exit.Exception: a server does not answer, or an option does not fit it: a usage error, never a skip.
    """
    wanted = Wanted(*(kind in selected for kind in ("tokens", "accuracy", "latency")))
    selection = {kind: kind in selected for kind in ("tokens", "accuracy", "latency")}
    done = read_run(run.folder) if settings.resume else ()
    before = next((r.data for r in done if isinstance(r, Note) and r.topic == "selected"), selection)
    if before != selection:
        pytest.exit(
            f"--resume {run.folder} was started for {_kinds(before)}, now {_kinds(selection)} is selected; "
            "expected the same tests",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    changed = next((r.client["server_changed"] for r in done if _saw_change(r)), "")
    if changed:
        pytest.exit(
            f"--resume {run.folder} cannot go on ({changed}); expected one server a run, measure again",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    run.journal.append(Note("selected", "which end-to-end tests were selected", selection))
    experiment = Experiment(settings, declared_plan(run.folder), run.folder, run.journal, progress, done)
    try:
        if settings.baseline and settings.server_url:
            _check_baseline(run.folder, settings, settings.server_url)
        if settings.ray and settings.ray_resources:
            from validation import distributed

            resources = distributed.resources_of(settings.ray_resources, "--ray-resources")
            distributed.gather(experiment, wanted, distributed.Cluster(resources, settings.ray))
        else:
            experiment.gather(wanted)
        run.journal.sync()
        judgement = judge_folder(run.folder)
        if settings.record:
            path = record_baseline(settings.baselines, settings.record, read_run(run.folder))
            progress(f"recorded {path}")
    except OptionError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    except OSError as error:
        trouble = disk_trouble(run.folder, error)
        if not trouble:
            raise
        pytest.exit(trouble, returncode=pytest.ExitCode.INTERRUPTED)
    except ArmError as error:
        if settings.server_url and not isinstance(error, ServerChangedError):
            pytest.exit(f"--server-url: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
        reason = "server_changed" if isinstance(error, ServerChangedError) else "arm_failed"
        run.journal.append(Note("arm_failed", str(error), {"reason": reason}))
        run.journal.sync()
        pytest.fail(str(error), pytrace=False)
    return judgement


def _saw_change(record: Record) -> TypeGuard[ScenarioRun]:
    """Whether it tells of a server that became another one while it answered."""
    return isinstance(record, ScenarioRun) and bool(record.client.get("server_changed"))


def _kinds(selection: Mapping[str, bool]) -> str:
    return " and ".join(kind for kind, wanted in selection.items() if wanted)


def _check_baseline(folder: pathlib.Path, settings: Settings, url: str) -> None:
    """Ask the server for its model before anything is measured."""
    wait_ready(url, PROBE_TIMEOUT_S, None, None, lambda line: None, settings.api_key)
    model = model_of({"server": describe(url, settings.api_key)})
    check_model(header(folder).declared["baseline"], model)
