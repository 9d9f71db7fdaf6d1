"""Reads a claims document strictly: anything else is one error that names file, field and what was expected."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from validation.judging.claims_document import SCHEMA, Claims, LargestGain, ModelFacts, Statement
from validation.judging.claims_figures import ClaimError, Figure

MAX_CHARACTERS = 1_000_000
MAX_ITEMS = 1_000
"""Rows of a table, statements, runs: far beyond a reviewable document, and small enough to audit at once."""
MAX_LABEL = 300
MAX_COUNT = 10**9

_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in typing.get_args(Statement)}


def claims_from_json(text: str, file: str = "claims") -> Claims:
    """The claims in a JSON document; ``file`` is its name for error messages.

    Raises:
        ClaimError: the text is no such document, too large, or refers to a table or row that it does not hold.
    """
    claims = typing.cast(Claims, _read(Claims, text, file))
    checked(claims, file)
    return claims


def facts_from_json(text: str, file: str = "model facts") -> ModelFacts:
    """The model facts in a JSON document; raises ``ClaimError`` as ``claims_from_json`` does."""
    facts = typing.cast(ModelFacts, _read(ModelFacts, text, file))
    _unique([fact.name for fact in facts.facts], f"{file}: facts")
    for fact in facts.facts:
        if not fact.source:
            raise ClaimError(f"{file}: fact {fact.name!r} has no source; expected where its value was read")
    return facts


def checked(claims: Claims, file: str) -> None:
    """Raise ``ClaimError`` where names repeat or a statement refers to nothing."""
    _unique([table.name for table in claims.tables], f"{file}: tables")
    _unique([statement.name for statement in claims.statements], f"{file}: statements")
    rows = {table.name: {row.name for row in table.rows} for table in claims.tables}
    for index, statement in enumerate(claims.statements):
        where = f"{file}: statements[{index}]"
        for field in ("table", "other_table"):
            named = getattr(statement, field, None)
            if named is not None and named not in rows:
                raise ClaimError(f"{where}.{field} is {named!r}, expected one of {sorted(rows)[:9]}")
        if isinstance(statement, LargestGain) and statement.row not in rows[statement.table]:
            raise ClaimError(f"{where}.row is {statement.row!r}, expected a row of {statement.table!r}")


def _unique(names: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise ClaimError(f"{where} hold the name {name!r} twice or empty; expected a name of its own for each")
        seen.add(name)


def _read(cls: type[Any], text: str, file: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ClaimError(f"{file} holds {len(text)} characters, expected at most {MAX_CHARACTERS}")
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
    except ClaimError as error:
        raise ClaimError(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ClaimError(f"{file} is no JSON document ({str(error)[:120]}), expected one of schema {SCHEMA}") from error
    return _build(cls, data, f"{file}: ")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ClaimError(f"the key {key[:40]!r} stands twice in one object; expected it once")
        data[key] = value
    return data


def _build(cls: type[Any], data: Any, at: str) -> Any:
    where = at.rstrip(". ").rstrip(":")
    if not isinstance(data, Mapping):
        raise ClaimError(f"{where} is {_shown(data)}, expected an object")
    hints = {key: hint for key, hint in typing.get_type_hints(cls).items() if key != "kind"}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    fields = {key: value for key, value in data.items() if not (key == "kind" and hasattr(cls, "kind"))}
    for key in fields:
        if key not in hints:
            raise ClaimError(f"{at}{key[:40]} is unknown, expected one of {', '.join(sorted(hints))}")
    for key in sorted(required - set(fields)):
        raise ClaimError(f"{at}{key} is missing, expected {_expected(hints[key])}")
    return cls(**{key: _typed(hints[key], value, f"{at}{key}") for key, value in fields.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` demands it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint == Statement:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ClaimError(f"{where}.kind is {_shown(kind)}, expected one of {', '.join(sorted(_KINDS))}")
        return _build(_KINDS[kind], value, f"{where}.")
    if origin is tuple and isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise ClaimError(f"{where} holds {len(value)} items, expected at most {MAX_ITEMS}")
        return tuple(_typed(options[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        fits = [o for o in options if (o is int) == (type(value) is int) and o is not type(None)]
        if fits:
            return _typed(fits[0], value, where)
    if origin is Literal and value in options and isinstance(value, str):
        return value
    if hint is Figure and isinstance(value, str):
        try:
            return Figure(value)
        except ClaimError as error:
            raise ClaimError(f"{where}: {error}") from None
    if hint is str and isinstance(value, str) and len(value) <= MAX_LABEL and value.isprintable():
        return value
    if hint is int and type(value) is int and 0 <= value <= MAX_COUNT:
        least = _LEAST.get(where.rpartition(".")[2], 0)
        if where.endswith("schema") and value != SCHEMA:
            raise ClaimError(f"{where} is {value}, expected {SCHEMA}")
        if value >= least:
            return value
        raise ClaimError(f"{where} is {value}, expected at least {least}")
    if dataclasses.is_dataclass(hint) and hint is not Figure:
        return _build(typing.cast("type[Any]", hint), value, f"{where}.")
    raise ClaimError(f"{where} is {_shown(value)}, expected {_expected(hint)}")


_LEAST = {"layers": 1, "questions": 1, "runs_per_arm": 1, "profiled_steps": 1, "per_layer": 1}


def _expected(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_expected(o) for o in options)
    if origin is Literal:
        return "one of " + ", ".join(options)
    if origin is tuple:
        return "a list"
    names = {
        Figure: 'a decimal in quotes such as "21.21"',
        str: f"a printable line of at most {MAX_LABEL} characters",
        int: f"an integer from 0 to {MAX_COUNT}",
        type(None): "null",
    }
    return names.get(hint, "an object")


def _shown(value: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), repr(value)[:60])
