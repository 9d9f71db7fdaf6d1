"""The claim audit: an author's own table, re-derived. Reported; it never decides a verdict."""

from __future__ import annotations

import pathlib

import pytest

from validation.discovery import ROOT
from validation.judging.claims import audit, claims_from_json, facts_from_json
from validation.options import Settings
from validation.records import Journal, Note

pytestmark = pytest.mark.claims
SEED = ROOT / "baselines" / "seed_pr24125" / "claims.json"


def test_claims(settings: Settings, journal: Journal) -> None:
    """Every claims file is read and audited; its facts are ``model_facts.json`` beside it, where there is one."""
    for path in settings.claims or (SEED,):
        claims, facts_path = path.read_text("utf-8"), path.parent / "model_facts.json"
        facts = facts_path.read_text("utf-8") if facts_path.is_file() else None
        journal.append(Note("claims", f"claims of {path.name}", _data(path, claims, facts)))
        results = audit(
            claims_from_json(claims, path.name), None if facts is None else facts_from_json(facts, facts_path.name)
        )
        assert results, f"{path.name} makes no claim that can be checked; see baselines/seed_pr24125/claims.json"


def _data(path: pathlib.Path, claims: str, facts: str | None) -> dict[str, str | None]:
    return {"file": path.name, "claims": claims, "facts": facts, "facts_file": "model_facts.json"}
