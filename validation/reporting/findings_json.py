"""A judgement as JSON data under the published schema ``findings.schema.json``, for machines and for ``verify``."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from validation import profiles
from validation.judgement import Judgement
from validation.reporting import contents, environment, values

SCHEMA = 1
SCHEMA_FILE = pathlib.Path(__file__).with_name("findings.schema.json")


def to_findings_json(judgement: Judgement) -> dict[str, Any]:
    """The whole judgement as strict JSON data; texts are whole and raw, so a viewer must escape them."""
    run = judgement.run
    return {
        "schema": SCHEMA,
        "headline": values.jsonable(judgement.headline),
        "exit_status": judgement.exit_status,
        "profile": judgement.profile.value,
        "tiers": [tier.value for tier in judgement.tiers],
        "run": {
            "run_id": values.jsonable(run.run_id),
            "started_utc": values.jsonable(run.started_utc),
            "seed": run.seed,
            "command": values.jsonable(run.command),
            "declared": values.jsonable(run.declared),
            "provenance": values.jsonable(run.provenance),
        },
        "findings": [
            {
                **values.jsonable(finding.to_json()),
                "required": profiles.is_required(finding.evidence, judgement.profile),
            }
            for finding in judgement.findings
        ],
        "audits": [values.jsonable(audit.to_json()) for audit in judgement.audits],
        "kernel_cells": [
            {
                "case": values.jsonable(cell.case),
                "cell": values.jsonable(cell.cell),
                "verdict": verdict,
                "why": values.jsonable(why),
            }
            for cell in judgement.cells
            for verdict, why in [contents.cell_result(cell)]
        ],
        "environment_differences": [
            {"key": values.jsonable(d.key), "kind": d.kind, "values": values.jsonable(d.values)}
            for d in environment.differences(judgement)
        ],
        "notes": [
            {
                "topic": values.jsonable(note.topic),
                "sentence": values.jsonable(note.sentence),
                "data": values.jsonable(contents.note_data(note)),
            }
            for note in judgement.notes
        ],
    }


def dumped(judgement: Judgement) -> str:
    """``findings.json`` as it is written: the same judgement always gives the same bytes."""
    return json.dumps(to_findings_json(judgement), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
