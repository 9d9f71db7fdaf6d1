"""The case pages of a run, beside its report."""

from __future__ import annotations

import pathlib

from validation.case_page.html import to_case_page
from validation.case_page.model import About, cases_of
from validation.discovery import load_all
from validation.judgement import judge_folder
from validation.reporting.write import write_atomically


def write_case_pages(run: pathlib.Path) -> list[pathlib.Path]:
    """Write ``case_NAME.html`` into the folder of a run for every case whose paths it counted; returns them.

    Raises:
        ValueError: the run counted no case's paths.
        RecordError: its records cannot be read.
    """
    judgement = judge_folder(run)
    cases = cases_of(judgement)
    if not cases:
        raise ValueError(f"{run} counted no launches and bytes of a case; expected a run of `pytest -m kernel`")
    known = {case.name: case for case in load_all("kernels/cases", "CASE").values()}
    written = []
    for name in cases:
        case = known.get(name)
        about = About(case.claim, case.source, getattr(case, "removed_op", "")) if case else None
        path = run / f"case_{name}.html"
        write_atomically(path, to_case_page(judgement, name, about).encode())
        written.append(path)
    return written
