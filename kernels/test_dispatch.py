"""Which path the installed SGLang takes in every cell of the decision table."""

from __future__ import annotations

import pytest

from validation.dispatch import read_installed_sglang
from validation.judging.dispatch import judge_reading
from validation.records import Journal
from validation.verdicts import Verdict


@pytest.mark.kernel
def test_installed_sglang_dispatches_as_reviewed(journal: Journal) -> None:
    note = read_installed_sglang().to_note()
    journal.append(note)
    contradicted = [f.sentence for f in judge_reading(note.data) if f.verdict is Verdict.FAIL]
    assert not contradicted
