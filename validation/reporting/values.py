"""JSON data laid out for people: flattened to dotted keys, arranged as tables, written as strict JSON."""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

MAX_DEPTH = 6
"""Nesting that is still laid out; anything deeper is shown as JSON text."""
MAX_JSON_DEPTH = 50
"""Nesting that is still written; a hostile record may hold thousands of levels."""
MAX_ROWS = 400
"""Rows of one table; the rest is counted, and stands in findings.json or the raw records."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A list of records laid out: the cells are untrusted text, not yet escaped."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: int = 0
    """Rows that were left out."""


def tables(data: Mapping[str, Any], title: str = "") -> tuple[Table, ...]:
    """JSON data laid out: the scalars as one key-value table, and each list of mappings as a table of its own."""
    scalars: list[tuple[str, str]] = []
    others: list[Table] = []
    for key, value in data.items():
        if is_list(value) and value and all(isinstance(item, Mapping) for item in value):
            columns = tuple(dict.fromkeys(str(column) for item in value for column in item))
            rows = [tuple(shown(item.get(column)) if column in item else "" for column in columns) for item in value]
            others.append(Table(str(key), columns, tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS)))
        elif _is_table(value):
            columns = tuple(dict.fromkeys(str(column) for item in value.values() for column in item))
            rows = [
                (str(name), *(shown(item.get(column)) if column in item else "" for column in columns))
                for name, item in value.items()
            ]
            others.append(Table(str(key), ("", *columns), tuple(rows[:MAX_ROWS]), max(0, len(rows) - MAX_ROWS)))
        elif isinstance(value, Mapping):
            scalars.extend(flattened(value, str(key), 1))
        else:
            scalars.append((str(key), shown(value)))
    first = Table(title, ("key", "value"), tuple(scalars[:MAX_ROWS]), max(0, len(scalars) - MAX_ROWS))
    return (first, *others) if scalars else tuple(others)


def _is_table(value: Any) -> bool:
    """Whether ``value`` maps names to records of the same keys, such as scenarios to their numbers."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(item, Mapping) for item in value.values()):
        return False
    keys = {frozenset(map(str, item)) for item in value.values()}
    return len(keys) == 1 and len(next(iter(keys))) > 1


def flattened(data: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Dotted key and value text for each leaf of JSON data; a list of scalars is one leaf."""
    if isinstance(data, Mapping) and depth < MAX_DEPTH:
        for key, value in data.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    elif is_list(data) and depth < MAX_DEPTH and any(isinstance(item, Mapping) for item in data):
        for index, item in enumerate(data):
            yield from flattened(item, f"{prefix}[{index}]", depth + 1)
    else:
        yield prefix, shown(data)


def shown(value: Any) -> str:
    """A value as text: numbers to six significant digits, words as they are, structures as JSON."""
    value = jsonable(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if is_list(value) and not any(isinstance(item, Mapping) or is_list(item) for item in value):
        return ", ".join(shown(item) for item in value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def jsonable(value: Any, depth: int = 0) -> Any:
    """``value`` as strict JSON data; a number that JSON lacks becomes its name (``"nan"``, ``"inf"``)."""
    if value is None or isinstance(value, (bool, str)):
        # A lone surrogate cannot be written as UTF-8; a server's broken answer must not stop the report.
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if number - number == 0 else str(number)
    if depth == MAX_JSON_DEPTH:
        return "nested too deeply to be shown"
    if isinstance(value, Mapping):
        return {jsonable(str(key)): jsonable(item, depth + 1) for key, item in value.items()}
    if is_list(value):
        return [jsonable(item, depth + 1) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return jsonable(value.tolist(), depth + 1)
    return jsonable(str(value))


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether ``value`` is a JSON array (a string is none)."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
