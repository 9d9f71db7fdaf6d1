"""Judgements of every verdict, made by hand, for the tests of the reports."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, settings

from validation.judgement import Judgement
from validation.records import SCHEMA, KernelCell, KernelCheck, Launch, Note, PathCount, Run
from validation.verdicts import ONE_BIT, AuditResult, AuditVerdict, Effect, Evidence, Finding, Verdict, not_run

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
"""For every property test: the same examples each time, and no clock."""

HOSTILE = (
    "<script>alert(1)</script> | [x](http://evil.example) ![i](http://evil.example/i.png) @maintainer #1 "
    "\x1b[2J\x1b]0;title\x07\r\n`code` ``` $x$ <!-- --> &lt; \u202e\u2066 \x00 www.evil.example owner/repo#2 \ud800"
)
"""Everything that a terminal, a browser, a forge or an XML parser might act on, in one line."""


def run(profile: str = "pr", **changes: Any) -> Run:
    declared = {
        "claimed_difference": ["query_path"],
        "smallest_useful_gain_percent": 0.3,
        "accuracy": {"non_inferiority_margin_points": 1.0, "extractor": "sglang_legacy"},
        "scenarios": ["8k1k-c4", "1k1k-c16"],
    }
    values: dict[str, Any] = {
        "run_id": "20260504-101500-3f2a",
        "schema": SCHEMA,
        "started_utc": "2026-05-04T10:15:00Z",
        "profile": profile,
        "tiers": ("kernel", "e2e"),
        "seed": 20260504,
        "command": ("pytest", "-m", "e2e", "--gate", profile, "--run-dir", "runs/cat skip"),
        "declared": declared,
        "provenance": {
            "commit": "0f3c2d1",
            "packages": {"torch": "2.13.0+cpu", "triton": "3.9.0", "amd-aiter": "0.1.7.post2.dev18"},
            "hardware": {"cpu": "2 cores", "gpu": None, "driver": None},
            "datasets": {"gsm8k_test_sha256": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"},
        },
    }
    return Run(**{**values, **changes})


def launches(**changed: Any) -> tuple[Launch, ...]:
    """Two blocks of two arms; ``changed`` goes into the candidate's identity."""
    made = []
    for block in range(2):
        for position, arm in enumerate(("cat", "skip") if block % 2 == 0 else ("skip", "cat")):
            identity = {
                "query_path": arm,
                "port": 30000 + 2 * block + position,
                "packages": {"torch": "2.13.0+cpu"},
                "server_args": {"kv_cache_dtype": "bfloat16"},
            }
            if arm == "skip":
                identity |= changed
            made.append(
                Launch(
                    f"b{block}-{arm}", arm, block, position, "http://127.0.0.1:1", 2.5, fresh=True, identity=identity
                )
            )
    return tuple(made)


def cells() -> tuple[KernelCell, ...]:
    providers = {"producer": "aiter 0.1.7", "consumer": "tilelang 0.1.15"}
    equal = (KernelCheck("q_all", True), KernelCheck("attention_output", True))
    broken = (
        KernelCheck("q_all", True),
        KernelCheck("k_pe", False, "3 of 512 elements differ, first at (0, 0, 7): 0x3f80 against 0x3f81 (one ulp)"),
    )
    return (
        KernelCell("cat_skip", "M1-H8-bf16", True, "", providers, equal, 0.8),
        KernelCell("cat_skip", "M16-H8-bf16", True, "", providers, broken, 1.25),
        KernelCell(
            "cat_skip", "M1-H8-e4m3fnuz", False, "e4m3fnuz is AMD's format; the CPU lacks it", providers, (), 0.0
        ),
        KernelCell("cat_skip", "M64-H8-bf16", True, "", providers, (), 0.0),
    )


def paths() -> tuple[PathCount, ...]:
    return (
        PathCount("cat_skip", "M1-H8-bf16", "cat", "dispatcher", 5, 5, 5, 9216, same_storage=False),
        PathCount("cat_skip", "M1-H8-bf16", "skip", "dispatcher", 5, 0, 0, 0, same_storage=True),
    )


def passing(evidence: Evidence, name: str = "", **numbers: Any) -> Finding:
    return Finding(
        name or f"{evidence.value}.primary",
        evidence,
        Verdict.PASS,
        "supported",
        f"The evidence supports {evidence.value}.",
        records=12,
        numbers=numbers or {"compared": 12, "unequal": 0},
        detectable=ONE_BIT,
    )


PASSED = tuple(passing(e) for e in Evidence if e not in (Evidence.TRACE, Evidence.CLAIMS))
LATENCY_INCONCLUSIVE = Finding(
    "latency.primary",
    Evidence.LATENCY,
    Verdict.INCONCLUSIVE,
    "too_little_power",
    "Four blocks detect 0.9 % at best, and the smallest useful gain is 0.3 %.",
    records=4,
    numbers={"change_percent": -0.4},
    detectable=Effect(0.9, "percent of TPOT", "90 % power at 4 blocks"),
)
ACCURACY_FAIL = Finding(
    "accuracy.gsm8k",
    Evidence.ACCURACY,
    Verdict.FAIL,
    "worse_than_margin",
    "The candidate answers 3.1 points fewer questions right, more than the margin of 1.0.",
    records=2638,
    numbers={"difference_points": -3.1},
    detectable=Effect(0.8, "points", "90 % power"),
)
TRACE_NOT_APPLICABLE = Finding(
    "trace.stalls", Evidence.TRACE, Verdict.NOT_APPLICABLE, "no_gpu", "There is no GPU whose trace could be read."
)
AUDITS = (
    AuditResult(
        "tpot_table.relative_changes",
        AuditVerdict.CONSISTENT,
        "within_rounding",
        "All ten relative changes lie inside what two-decimal rounding allows.",
        {"scenarios": 10},
    ),
    AuditResult(
        "per_layer_saving",
        AuditVerdict.INCONSISTENT,
        "factor_off",
        "The table's saving is 5.4 to 6.4 us per layer, not 2.6.",
        {"claimed_us": 2.6, "derived_us": [5.4, 6.4]},
    ),
    AuditResult("throughput", AuditVerdict.UNSUPPORTED, "not_derivable", "Throughput also holds TTFT."),
)
NOTES = (
    Note("interpreter", "bf16 arithmetic of Triton's interpreter was repaired.", {"version": "3.9.0"}),
    Note("self_test", "the client measured its own TPOT error on a fake server", {"tpot_bias_percent": 0.004}),
)


def judgement(*findings: Finding, profile: str = "pr", **changes: Any) -> Judgement:
    values: dict[str, Any] = {
        "run": run(profile),
        "findings": findings,
        "audits": AUDITS,
        "notes": NOTES,
        "launches": launches(),
        "cells": cells(),
        "paths": paths(),
    }
    return Judgement(**{**values, **changes})


def replaced(finding: Finding, *others: Finding) -> tuple[Finding, ...]:
    """The passing findings with ``finding`` in the place of its own kind of evidence."""
    return (*(f for f in PASSED if f.evidence is not finding.evidence), finding, *others)


EXAMPLES: dict[str, Judgement] = {
    "pass": judgement(*PASSED, TRACE_NOT_APPLICABLE),
    "fail": judgement(*replaced(ACCURACY_FAIL)),
    "inconclusive": judgement(*replaced(LATENCY_INCONCLUSIVE)),
    "not_run": judgement(
        *replaced(not_run("tokens", Evidence.TOKENS, "vacuous", "A planted break would not have been seen."))
    ),
    "rehearsal": judgement(*replaced(LATENCY_INCONCLUSIVE, TRACE_NOT_APPLICABLE), profile="rehearsal"),
    "empty": Judgement(run("release"), ()),
    "hostile": Judgement(
        run(
            run_id=HOSTILE,
            started_utc=HOSTILE,
            command=("pytest", HOSTILE),
            declared={HOSTILE: HOSTILE, "claimed_difference": HOSTILE, "nested": [{HOSTILE: [HOSTILE]}]},
            provenance={HOSTILE: {HOSTILE: HOSTILE}, "list": [HOSTILE, {"a": HOSTILE}]},
        ),
        (
            Finding(
                HOSTILE,
                Evidence.TOKENS,
                Verdict.FAIL,
                "tokens_differ",
                HOSTILE,
                records=1,
                numbers={
                    HOSTILE: HOSTILE,
                    "first_divergences": [{"scenario": HOSTILE, "prompt": HOSTILE, "reference_text": HOSTILE}],
                    "scenarios": HOSTILE,
                    "nan": float("nan"),
                    "deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": HOSTILE}}}}}}},
                },
            ),
        ),
        (AuditResult(HOSTILE, AuditVerdict.UNSUPPORTED, "x", HOSTILE, {HOSTILE: HOSTILE}),),
        (Note(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}),),
        tuple(
            dataclasses.replace(launch, launch_id=HOSTILE, arm=arm, identity={HOSTILE: arm})
            for launch in launches()
            for arm in (HOSTILE, f"{HOSTILE}2")
        ),
        (
            KernelCell(
                HOSTILE, HOSTILE, True, HOSTILE, {HOSTILE: HOSTILE}, (KernelCheck(HOSTILE, False, HOSTILE),), 0.1
            ),
        ),
        (PathCount(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, 1, 1, 0, same_storage=False),),
    ),
}
