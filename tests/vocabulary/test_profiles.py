"""What each profile requires, and the exit status and headline that follow."""

from __future__ import annotations

import pytest

from validation.profiles import EXIT_FAIL, EXIT_PASS, EXIT_UNDECIDED, Profile, exit_status, headline, with_missing
from validation.verdicts import ONE_BIT, Evidence, Finding, Tier, Verdict

TABLE = {
    Profile.REHEARSAL: {"kernel_bits", "path_proof", "tokens", "accuracy"},
    Profile.PR: {"kernel_bits", "path_proof", "dispatch", "tokens", "accuracy", "latency"},
    Profile.RELEASE: {"kernel_bits", "path_proof", "dispatch", "tokens", "accuracy", "latency", "trace"},
}
"""The table in docs/verdicts.md, written down a second time."""


def finding(evidence: Evidence, verdict: Verdict) -> Finding:
    return Finding(evidence.value, evidence, verdict, "reason", "a sentence", 1, {"n": 1}, ONE_BIT)


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("evidence", [e for e in Evidence if e is not Evidence.CLAIMS])
def test_only_required_evidence_decides(profile: Profile, evidence: Evidence) -> None:
    good = [finding(e, Verdict.PASS) for e in Evidence if e not in (evidence, Evidence.CLAIMS)]
    required = evidence.value in TABLE[profile]
    for verdict, status in (
        (Verdict.FAIL, EXIT_FAIL),
        (Verdict.INCONCLUSIVE, EXIT_UNDECIDED),
        (Verdict.NOT_RUN, EXIT_UNDECIDED),
        (Verdict.NOT_APPLICABLE, EXIT_PASS),
        (Verdict.PASS, EXIT_PASS),
    ):
        assert exit_status([*good, finding(evidence, verdict)], profile) == (status if required else EXIT_PASS)


def test_a_failure_outweighs_what_is_undecided() -> None:
    findings = [finding(Evidence.KERNEL_BITS, Verdict.FAIL), finding(Evidence.TOKENS, Verdict.NOT_RUN)]
    assert exit_status(findings, Profile.PR) == EXIT_FAIL


def test_no_evidence_at_all_passes_nothing() -> None:
    assert exit_status([], Profile.REHEARSAL) == EXIT_UNDECIDED


def test_missing_required_evidence_becomes_not_run_in_its_tier_only() -> None:
    present = [finding(Evidence.KERNEL_BITS, Verdict.PASS)]
    names = {f.evidence.value: f.verdict for f in with_missing(present, Profile.PR, [Tier.KERNEL])}
    assert names == {"kernel_bits": Verdict.PASS, "path_proof": Verdict.NOT_RUN, "dispatch": Verdict.NOT_RUN}
    rehearsal = with_missing(present, Profile.REHEARSAL, [Tier.KERNEL])
    assert {f.evidence.value for f in rehearsal} == {"kernel_bits", "path_proof"}


@pytest.mark.parametrize("profile", list(Profile))
def test_only_a_whole_release_says_signed_off(profile: Profile) -> None:
    everything = [finding(e, Verdict.PASS) for e in Evidence if e is not Evidence.CLAIMS]
    line = headline(everything, profile, list(Tier))
    assert ("signed off" in line) == (profile is Profile.RELEASE)
    assert line.startswith({"rehearsal": "Rehearsal", "pr": "Pull request", "release": "Release"}[profile.value])
    assert "signed off" not in headline(everything, profile, [Tier.KERNEL])
    rehearsed = headline(everything, profile, list(Tier), "CUDA")
    assert "signed off" not in rehearsed
    assert rehearsed.startswith("Rehearsal on CUDA")
    undecided = [*everything[:-1], finding(Evidence.KERNEL_BITS, Verdict.INCONCLUSIVE)]
    assert "signed off" not in headline(undecided, profile, list(Tier))
