"""What an end-to-end run declares before it starts, and back from its JSON: the judges read nothing else. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from validation.judging.accuracy_arms import AccuracyPlan
from validation.judging.latency import LatencyPlan, LaunchSd
from validation.judging.tokens import TokensPlan

BASELINE, CANDIDATE, CONTROL = "baseline", "candidate", "control"


@dataclasses.dataclass(frozen=True)
class E2EPlan:
    """Arms, scenarios, blocks and thresholds of one run."""

    form: str
    arms: tuple[str, ...]
    accuracy_scenario: str
    questions: int
    questions_sha256: str
    tokens_scenario: str
    tokens_questions: int
    latency_scenarios: tuple[str, ...]
    max_blocks: int
    latency_runs: int
    accuracy: AccuracyPlan
    tokens: TokensPlan
    latency: LatencyPlan
    claimed_difference: tuple[str, ...] = ()
    """Keys of the arms' identities that the claim itself changes, such as ``query_path``."""
    visits: int = 1
    """Launches of an arm in a block; with 2 a block is a quadruple, ABBA or BAAB."""
    builds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arm to what its build was when the run was declared, as ``Build.identity`` tells it but for untracked files; arms
    of which nothing was said are left out."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> E2EPlan:
        """The plan that ``to_json`` wrote (JSON makes lists of its tuples)."""
        latency = dict(data["latency"])
        recorded = latency.pop("recorded_launch_sd")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        fields["accuracy"] = AccuracyPlan(**data["accuracy"])
        fields["tokens"] = TokensPlan(**_tuples(data["tokens"]))
        fields["latency"] = LatencyPlan(
            **_tuples(latency), recorded_launch_sd=None if recorded is None else LaunchSd(**recorded)
        )
        return E2EPlan(**fields)


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
