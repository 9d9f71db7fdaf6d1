"""Which evidence a profile requires, and the exit status and headline that follow. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

from validation.verdicts import EVIDENCE_OF_TIER, Evidence, Finding, Tier, Verdict, not_run

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_UNDECIDED = 6
"""None failed, but a required finding is INCONCLUSIVE or NOT_RUN. 2 to 5 are pytest's own."""


class Profile(str, enum.Enum):
    """How much evidence a verdict needs."""

    REHEARSAL = "rehearsal"
    PR = "pr"
    RELEASE = "release"


REQUIRED: Mapping[Profile, frozenset[Evidence]] = {
    Profile.REHEARSAL: frozenset({Evidence.KERNEL_BITS, Evidence.PATH_PROOF, Evidence.TOKENS, Evidence.ACCURACY}),
    Profile.PR: frozenset(
        {
            Evidence.KERNEL_BITS,
            Evidence.PATH_PROOF,
            Evidence.DISPATCH,
            Evidence.TOKENS,
            Evidence.ACCURACY,
            Evidence.LATENCY,
        }
    ),
    Profile.RELEASE: frozenset(set(Evidence) - {Evidence.CLAIMS}),
}
"""Evidence outside the set is gathered and reported, and does not decide."""


def is_required(evidence: Evidence, profile: Profile) -> bool:
    """Whether ``profile`` needs ``evidence`` to sign off."""
    return evidence in REQUIRED[profile]


def with_missing(findings: Sequence[Finding], profile: Profile, tiers: Iterable[Tier]) -> list[Finding]:
    """``findings``, and a NOT_RUN for each required kind of evidence in ``tiers`` that no finding speaks of."""
    present = {finding.evidence for finding in findings}
    expected = [evidence for tier in tiers for evidence in EVIDENCE_OF_TIER[tier]]
    missing = [e for e in expected if is_required(e, profile) and e not in present]
    return [
        *findings,
        *(
            not_run(
                e.value, e, "not_gathered", f"{e.value} is required by the {profile.value} profile and was not gathered"
            )
            for e in missing
        ),
    ]


def exit_status(findings: Sequence[Finding], profile: Profile) -> int:
    """0, 1 or 6. No required finding at all is undecided: missing evidence never passes."""
    verdicts = {f.verdict for f in findings if is_required(f.evidence, profile)}
    if Verdict.FAIL in verdicts:
        return EXIT_FAIL
    if not verdicts or verdicts & {Verdict.INCONCLUSIVE, Verdict.NOT_RUN}:
        return EXIT_UNDECIDED
    return EXIT_PASS


def headline(findings: Sequence[Finding], profile: Profile, tiers: Iterable[Tier], rehearsed_on: str = "") -> str:
    """The one sentence a release manager reads. Only a full release profile says "signed off".

    ``rehearsed_on`` names what stood in for the real thing (``CUDA`` for a path that only ROCm takes): whatever the
    profile, such a run is a rehearsal and says so.
    """
    status = exit_status(findings, profile)
    required = [f for f in findings if is_required(f.evidence, profile)]
    bad = [f.name for f in required if f.verdict is Verdict.FAIL]
    undecided = [f"{f.name} ({f.reason})" for f in required if f.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_RUN)]
    whole = set(tiers) >= {Tier.KERNEL, Tier.E2E} | ({Tier.TRACE} if profile is Profile.RELEASE else set())
    if status == EXIT_FAIL:
        outcome = f"FAILED: {', '.join(bad)}"
    elif status == EXIT_UNDECIDED:
        outcome = f"not decided: {', '.join(undecided) or 'no required evidence was gathered'}"
    elif not whole:
        outcome = f"passed, for the {' and '.join(t.value for t in tiers)} tier alone"
    elif profile is Profile.RELEASE and not rehearsed_on:
        outcome = "signed off: every required finding passed"
    else:
        outcome = "passed: every required finding passed"
    prefix = {Profile.REHEARSAL: "Rehearsal", Profile.PR: "Pull request", Profile.RELEASE: "Release"}[profile]
    if rehearsed_on:
        prefix = f"Rehearsal on {rehearsed_on} ({profile.value} profile)"
    return f"{prefix} {outcome}"
