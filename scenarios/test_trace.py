"""The trace tier: the removed kernel runs once per layer and step in the baseline's trace, never in the candidate's."""

from __future__ import annotations

import pytest

from validation.options import Settings
from validation.runs import ActiveRun
from validation.trace_tier import count_and_judge
from validation.verdicts import UNDECIDED_OR_WORSE

pytestmark = pytest.mark.trace


def test_trace(settings: Settings, active_run: ActiveRun) -> None:
    """Every trace finding passes; broken traces and missing ones are named."""
    findings = count_and_judge(settings, active_run.journal)
    bad = [
        f"{f.name} {f.verdict.value} ({f.reason}): {f.sentence}" for f in findings if f.verdict in UNDECIDED_OR_WORSE
    ]
    if bad:
        pytest.fail("; ".join(bad), pytrace=False)
