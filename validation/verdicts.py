"""The vocabulary of a judgement: what was found, how sure it is, and why.

A ``Finding`` is one claim judged on gathered evidence. An ``AuditResult`` is one line of an author's own arithmetic,
re-derived; it is reported and never gates. Both are plain data: they are written to ``findings.json`` as they are.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Number = bool | int | float | str | None
Numbers = Mapping[str, Any]
"""JSON data: scalars, or lists and string-keyed mappings of them. Units stand in the key (``tpot_ms``)."""

_REASON = re.compile(r"[a-z][a-z0-9_]*\Z")


class Verdict(str, enum.Enum):
    """What the evidence says about one claim. Only PASS signs off."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_RUN = "NOT_RUN"
    NOT_APPLICABLE = "NOT_APPLICABLE"


UNDECIDED_OR_WORSE = frozenset({Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_RUN})
"""Verdicts that do not let a claim through."""


class AuditVerdict(str, enum.Enum):
    """What re-deriving an author's own figures says about them."""

    CONSISTENT = "CONSISTENT"
    INCONSISTENT = "INCONSISTENT"
    UNSUPPORTED = "UNSUPPORTED"


class Evidence(str, enum.Enum):
    """The kinds of evidence a claim can rest on, in the order a report climbs them."""

    KERNEL_BITS = "kernel_bits"
    PATH_PROOF = "path_proof"
    DISPATCH = "dispatch"
    TOKENS = "tokens"
    ACCURACY = "accuracy"
    LATENCY = "latency"
    TRACE = "trace"
    CLAIMS = "claims"


class Tier(str, enum.Enum):
    """A pytest marker and the evidence that its tests gather."""

    KERNEL = "kernel"
    E2E = "e2e"
    TRACE = "trace"
    CLAIMS = "claims"


EVIDENCE_OF_TIER: Mapping[Tier, tuple[Evidence, ...]] = {
    Tier.KERNEL: (Evidence.KERNEL_BITS, Evidence.PATH_PROOF, Evidence.DISPATCH),
    Tier.E2E: (Evidence.TOKENS, Evidence.ACCURACY, Evidence.LATENCY),
    Tier.TRACE: (Evidence.TRACE,),
    Tier.CLAIMS: (Evidence.CLAIMS,),
}


@dataclasses.dataclass(frozen=True)
class Effect:
    """The smallest effect a check could have detected, e.g. ``Effect(0.4, "percent of TPOT", "90 % power")``."""

    value: float
    unit: str
    how: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.value < 0:
            raise ValueError(f"a detectable effect of {self.value!r} was given; expected a finite number of at least 0")
        if not self.unit or not self.how:
            raise ValueError("a detectable effect without unit or derivation was given; name both")

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.unit} ({self.how})"


ONE_BIT = Effect(1, "bit", "every byte is compared")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim, its verdict, and what the verdict rests on.

    ``name`` is stable over runs (``latency.primary``); ``reason`` is a snake_case code a machine can act on;
    ``sentence`` is for people; ``records`` counts the raw records behind the verdict.

    Raises:
        ValueError: the verdict claims more than its evidence: PASS, FAIL or INCONCLUSIVE without a record, PASS
            without numbers or without the smallest effect it could have detected.
    """

    name: str
    evidence: Evidence
    verdict: Verdict
    reason: str
    sentence: str
    records: int = 0
    numbers: Numbers = dataclasses.field(default_factory=dict)
    detectable: Effect | None = None

    def __post_init__(self) -> None:
        if self.evidence is Evidence.CLAIMS:
            raise ValueError(f"finding {self.name!r} is about claims; an author's arithmetic is an AuditResult")
        if not _REASON.match(self.reason):
            raise ValueError(f"finding {self.name!r} has reason {self.reason!r}; expected a snake_case code")
        if not self.name or not self.sentence.strip():
            raise ValueError(f"finding {self.name!r} has no name or no sentence; give both")
        gathered = self.verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)
        if gathered and self.records < 1:
            raise ValueError(
                f"finding {self.name!r} is {self.verdict.value} on 0 records; gather evidence or say NOT_RUN"
            )
        if self.verdict is Verdict.PASS and (not self.numbers or self.detectable is None):
            raise ValueError(
                f"finding {self.name!r} is PASS without numbers and a smallest detectable effect; give both"
            )

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Finding:
        """The finding that ``to_json`` wrote; raises ``ValueError`` where the data claims more than its evidence."""
        effect = data["detectable"]
        return Finding(
            name=data["name"],
            evidence=Evidence(data["evidence"]),
            verdict=Verdict(data["verdict"]),
            reason=data["reason"],
            sentence=data["sentence"],
            records=data["records"],
            numbers=data["numbers"],
            detectable=None if effect is None else Effect(**effect),
        )


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """One of an author's figures, re-derived from the author's other figures. Reported; does not gate."""

    name: str
    verdict: AuditVerdict
    reason: str
    sentence: str
    numbers: Numbers = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _REASON.match(self.reason):
            raise ValueError(f"audit result {self.name!r} has reason {self.reason!r}; expected a snake_case code")

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> AuditResult:
        """The result that ``to_json`` wrote."""
        return AuditResult(
            data["name"], AuditVerdict(data["verdict"]), data["reason"], data["sentence"], data["numbers"]
        )


def not_run(name: str, evidence: Evidence, reason: str, sentence: str, numbers: Numbers | None = None) -> Finding:
    """A finding for evidence that was not gathered."""
    return Finding(name, evidence, Verdict.NOT_RUN, reason, sentence, numbers=numbers or {})


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that decides a group: FAIL, then NOT_RUN, INCONCLUSIVE, PASS, and NOT_APPLICABLE only if all are."""
    for verdict in (Verdict.FAIL, Verdict.NOT_RUN, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return Verdict.NOT_APPLICABLE if verdicts else Verdict.NOT_RUN


def _json(thing: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(thing)
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in fields.items()}
