"""The end-to-end tier: tokens, accuracy and latency of the arms, gathered once and judged one finding at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from validation.options import Settings
from validation.profiles import is_required
from validation.verdicts import UNDECIDED_OR_WORSE, Evidence, Finding

pytestmark = pytest.mark.e2e

Judge = Callable[[Evidence], Sequence[Finding]]


def test_tokens(e2e_findings: Judge, settings: Settings) -> None:
    """Both arms answer the same prompts with the same tokens, and a planted break would have been seen."""
    _check(e2e_findings(Evidence.TOKENS), settings)


def test_accuracy(e2e_findings: Judge, settings: Settings) -> None:
    """The candidate is not worse than the baseline by the declared margin."""
    _check(e2e_findings(Evidence.ACCURACY), settings)


def test_latency(e2e_findings: Judge, settings: Settings) -> None:
    """The candidate's TPOT is lower, judged on blocks of fresh launches."""
    _check(e2e_findings(Evidence.LATENCY), settings)


def _check(findings: Sequence[Finding], settings: Settings) -> None:
    """Fail on what is no PASS where the profile requires it; what is only reported is an expected failure."""
    bad = [f for f in findings if f.verdict in UNDECIDED_OR_WORSE]
    if not bad:
        return
    text = "; ".join(f"{f.name} {f.verdict.value} ({f.reason}): {f.sentence}" for f in bad)
    if not is_required(bad[0].evidence, settings.profile):
        pytest.xfail(f"reported, does not decide a {settings.profile.value}: {text}")
    pytest.fail(text, pytrace=False)
