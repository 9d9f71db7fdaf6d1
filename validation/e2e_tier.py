"""Gathers the end-to-end evidence of one pytest session, and judges it on the spot for the tests that wait for it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection

import pytest

from validation.arms import ArmError
from validation.baselines import check_model, model_of, record_baseline
from validation.e2e import Experiment, Wanted
from validation.e2e_plan import E2EPlan
from validation.judgement import Judgement, judge_folder
from validation.options import OptionError, Settings
from validation.records import Note, Run, read_run
from validation.runs import ActiveRun


def declared_plan(folder: pathlib.Path) -> E2EPlan:
    """The plan that the run's header declares: the one that is measured is the one that is judged."""
    return E2EPlan.from_json(next(r for r in read_run(folder) if isinstance(r, Run)).declared["e2e"])


def gather(run: ActiveRun, settings: Settings, selected: Collection[str], progress: Callable[[str], None]) -> Judgement:
    """Run the experiment for the ``selected`` kinds of evidence (``tokens``, ``accuracy``, ``latency``).

    Raises:
        pytest.exit.Exception: a server does not answer, or an option does not fit it: a usage error, never a skip.
    """
    wanted = Wanted(*(kind in selected for kind in ("tokens", "accuracy", "latency")))
    selection = {kind: kind in selected for kind in ("tokens", "accuracy", "latency")}
    run.journal.append(Note("selected", "which end-to-end tests were selected", selection))
    done = read_run(run.folder) if settings.resume else ()
    experiment = Experiment(settings, declared_plan(run.folder), run.folder, run.journal, progress, done)
    try:
        experiment.gather(wanted)
        run.journal.sync()
        judgement = judge_folder(run.folder)
        if settings.baseline and judgement.launches:
            check_model(judgement.run.declared["baseline"], model_of(judgement.launches[0].identity))
        if settings.record:
            progress(f"recorded {record_baseline(settings.record, read_run(run.folder)).name}")
    except OptionError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    except ArmError as error:
        if settings.server_url:
            pytest.exit(f"--server-url: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
        run.journal.append(Note("arm_failed", str(error)))
        run.journal.sync()
        raise
    return judgement
