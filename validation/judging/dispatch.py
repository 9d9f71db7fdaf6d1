"""Judges a reading of an SGLang tree against the decision table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.judging.dispatch_table import (
    CONCATENATED,
    FLASHMLA,
    GATED,
    UNREADABLE,
    Action,
    backend_key,
    backend_table,
    caller_table,
)
from validation.records import Note, Record
from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run

TOPIC = "dispatch"
"""Topic of the ``Note`` that holds the reading of the installed SGLang."""

INSTALL = "pip install 'sglang>=0.5.12'"

_BEFORE_REVIEW = frozenset(backend_key("hip", implementation, CONCATENATED, "decode") for implementation in FLASHMLA)
_OPTIMISED = frozenset(backend_key("hip", implementation, CONCATENATED, "decode") for implementation in GATED)


def judge_dispatch(records: Sequence[Record]) -> list[Finding]:
    """``dispatch.backend`` and ``dispatch.caller`` from the last reading among ``records``; none where nobody read."""
    readings = [r.data for r in records if isinstance(r, Note) and r.topic == TOPIC]
    return judge_reading(readings[-1]) if readings else []


def judge_reading(reading: Mapping[str, Any]) -> list[Finding]:
    """Both findings for the JSON form of one ``validation.dispatch.DispatchReading``."""
    if reading["method"] == "not_installed":
        sentence = f"no SGLang is installed here, so its dispatch was not read; install it with: {INSTALL}"
        return [not_run(name, Evidence.DISPATCH, "sglang_missing", sentence) for name in _NAMES]
    return [
        _finding("dispatch.backend", reading, reading["backend"], _accepted_backend()),
        _finding("dispatch.caller", reading, reading["caller"], _accepted_caller()),
    ]


_NAMES = ("dispatch.backend", "dispatch.caller")


def _accepted_backend() -> Mapping[str, tuple[str, ...]]:
    return {
        key: (rule.action.value,) if rule.later is None else (rule.action.value, rule.later.value)
        for key, rule in backend_table().items()
    }


def _accepted_caller() -> Mapping[str, tuple[str, ...]]:
    return {key: (rule.form,) for key, rule in caller_table().items()}


def _finding(
    name: str, reading: Mapping[str, Any], cells: Mapping[str, str], accepted: Mapping[str, tuple[str, ...]]
) -> Finding:
    seen = {key: cells.get(key, f"{UNREADABLE}not in the reading") for key in accepted}
    unreadable = sorted(key for key, value in seen.items() if value.startswith(UNREADABLE))
    different = sorted(key for key in accepted if key not in unreadable and seen[key] not in accepted[key])
    tree = f"SGLang {reading['version']} ({reading['module']}, read by {reading['method']})"
    verdict, reason, sentence = _decide(name, tree, seen, different, unreadable)
    return Finding(
        name,
        Evidence.DISPATCH,
        verdict,
        reason,
        sentence,
        records=len(seen) - len(unreadable) or 1,
        numbers={
            "cells": len(accepted),
            "as_merged": sum(seen[key] == accepted[key][0] for key in accepted),
            "as_later_release": sum(seen[key] in accepted[key][1:] for key in accepted),
            "different": {key: f"{seen[key]}, expected {accepted[key][0]}" for key in different},
            "unreadable": {key: seen[key].removeprefix(UNREADABLE) for key in unreadable},
            "version": reading["version"],
            "module": reading["module"],
            "method": reading["method"],
        },
        detectable=Effect(1, "cell", f"each of {len(accepted)} cells is decided") if not unreadable else None,
    )


def _decide(
    name: str, tree: str, seen: Mapping[str, str], different: Sequence[str], unreadable: Sequence[str]
) -> tuple[Verdict, str, str]:
    """The most specific thing that the differing cells say."""
    if name == "dispatch.caller" and different and CONCATENATED not in seen.values():
        return Verdict.FAIL, "optimisation_absent", f"{tree} never hands the concatenated query to its backend"
    if set(different) == _BEFORE_REVIEW and all(seen[key] == Action.REUSES.value for key in different):
        sentence = f"{tree} gates {' and '.join(FLASHMLA)} too, as the pull request did before its review"
        return Verdict.FAIL, "gates_before_review", sentence
    if set(different) >= _OPTIMISED and all(seen[key] == Action.CONCATENATES.value for key in _OPTIMISED):
        return Verdict.FAIL, "optimisation_absent", f"{tree} concatenates again what its caller already concatenated"
    if different:
        first = different[0]
        sentence = f"{tree} differs from the decision table in {len(different)} cells, first {first}: {seen[first]}"
        return Verdict.FAIL, "dispatch_differs", sentence
    if unreadable:
        first = unreadable[0]
        sentence = f"{tree} leaves {len(unreadable)} cells undecided, first {first}: {seen[first]}"
        return Verdict.INCONCLUSIVE, "cells_unreadable", sentence
    sentence = f"{tree} decides all {len(seen)} cells as the reviewed change or a successor does"
    return Verdict.PASS, "as_reviewed", sentence
