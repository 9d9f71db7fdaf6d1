"""Counts the kernels of the given traces, journals the counts, and judges them."""

from __future__ import annotations

import pytest

from validation.e2e_plan import BASELINE, CANDIDATE
from validation.judgement import trace_findings
from validation.judging.trace import TraceClaim
from validation.kernel_case import kernel_cases
from validation.options import Settings
from validation.profile_tier import count_collected
from validation.records import Journal
from validation.verdicts import Finding


def claim_of(case: str) -> TraceClaim:
    """What a case claims of a trace: its removed kernel, once per layer and step."""
    return TraceClaim(removed=kernel_cases()[case].removed_kernel)


def count_and_judge(settings: Settings, journal: Journal) -> list[Finding]:
    """The findings on ``--baseline-trace`` and ``--candidate-trace``; the counts go to the journal.

    Raises:
        pytest.UsageError: no traces were given.
    """
    if not settings.baseline_trace:
        raise pytest.UsageError(
            "no traces were given; expected --baseline-trace=FILE and --candidate-trace=FILE, one of each a rank"
        )
    claim = claim_of("cat_skip")
    notes = [
        count_collected(arm, files, claim)
        for arm, files in ((BASELINE, settings.baseline_trace), (CANDIDATE, settings.candidate_trace))
    ]
    for note in notes:
        journal.append(note)
    journal.sync()
    return trace_findings(notes)
