"""Reads a Markdown, CSV or TSV table of baseline, candidate and change, every decimal as printed.

A first row of headers names the columns: one baseline, one candidate, at most one change; the others label the row.
A unit may stand in cells (``21.21 ms``) or headers (``before (ms)``, ``baseline_tpot_ms``); rows of different units
become a table for each. The change column's ``Convention`` is read from its header and cells where it can be, else it
is ``signed``. An arrow is a sign there, and decoration in a column of reductions, gains or speed-ups. Rows labelled
average, geomean and the like become statements about the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from validation.judging.claims_document import (
    SCHEMA,
    Aggregate,
    Better,
    Claims,
    Convention,
    MetricTable,
    Row,
    Statement,
    Statistic,
)
from validation.judging.claims_figures import ClaimError, Figure
from validation.judging.claims_reading import MAX_CHARACTERS, MAX_ITEMS, MAX_LABEL, checked

Role = Literal["baseline", "candidate", "change"]
MAX_COLUMNS = 50
_REDUCED = frozenset({"reduction", "decrease", "saving", "savings", "saved"})
_POINTS = frozenset({"pp", "pts", "points"})
_GAINED = frozenset({"improvement", "gain"})
_POSITIVE = _REDUCED | _GAINED | {"speedup"}
"""Headers of change columns whose convention has a sign of its own."""
_WORDS: Mapping[Role, frozenset[str]] = {
    "change": frozenset({"change", "delta", "δ", "diff", "difference", "increase"}) | _POSITIVE,
    "baseline": frozenset(
        {"baseline", "before", "base", "old", "main", "reference", "ref", "stock", "control", "original", "unpatched"}
    ),
    "candidate": frozenset(
        {"candidate", "after", "new", "patched", "pr", "optimized", "optimised", "ours", "treatment"}
    ),
}
_LOWER = frozenset({"tpot", "ttft", "itl", "tbt", "latency", "time", "duration", "e2el"})
_HIGHER = frozenset({"throughput", "tps", "qps", "rps", "accuracy", "bandwidth", "flops", "tflops", "goodput", "score"})
_TIMES = {"us": "us", "µs": "us", "μs": "us", "usec": "us", "ms": "ms", "msec": "ms", "s": "s", "sec": "s", "ns": "ns"}
_MISSING = frozenset(
    {"", "-", "\u2013", "\u2014", "?", "/", "n/a", "na", "none", "null", "nan", "tbd"}
    | {"oom", "fail", "failed", "error", "timeout"}
)
_AVERAGES: Mapping[str, Statistic] = {
    "average": "average_change",
    "avg": "average_change",
    "mean": "average_change",
    "overall": "average_change",
    "geomean": "geometric_mean_change",
    "geometric mean": "geometric_mean_change",
    "median": "median_change",
}
_CELL = re.compile(
    r"([~\u2248]?)([+-]?)(\d+(?:,\d{3})*(?:\.\d+)?)\s*"
    r"([^\d\s.,+-][^\d\s,]{0,15}(?: ?/ ?[a-z]{1,8})?)?\Z",
    re.ASCII,
)
"""About-sign, sign, digits with their thousands separators, unit."""
_SWEPT = re.compile(
    r"(?:^|(?<=[^a-z]))(?:concurrency|conc|batch|bsz|bs|qps|c|b|n|m)?\s*[=:_ -]?\s*(\d{1,9})(?=$|[^\w])",
    re.ASCII | re.IGNORECASE,
)
_TOKEN = re.compile(r"[a-zµμΔδ%][a-z0-9µμ/%]*")


def claims_from_table(
    text: str,
    file: str = "table",
    *,
    name: str = "table",
    metric: str | None = None,
    unit: str | None = None,
    better: Better | None = None,
    change: Convention | None = None,
    columns: Mapping[Role, str] | None = None,
    title: str = "",
    source: str = "",
) -> Claims:
    """The first table in ``text`` as claims; what is given by keyword is not guessed, and holds for every row.

    ``columns`` names the header of a role where the words in it do not tell (``{"candidate": "with patch"}``).

    Raises:
        ClaimError: no such table, a cell that is no number, a row in two units, or a metric of which neither its unit
            nor its name tells whether lower is better.
    """
    if len(text) > MAX_CHARACTERS:
        raise ClaimError(f"{file} holds {len(text)} characters, expected at most {MAX_CHARACTERS}")
    header, body = _grid(text, file)
    roles = _roles(header, columns or {}, file)
    lines = [_line(header, roles, cells, f"{file}: row {number}", number) for number, cells in enumerate(body, 1)]
    units = {line.unit for line in lines if line.unit}
    whole = unit or (next(iter(units)) if len(units) == 1 else _unit_of([header[i] for i in roles.values()]))
    groups: dict[str, list[_Line]] = {}
    for line in lines:
        groups.setdefault(unit or line.unit or whole, []).append(line)
    tables: list[MetricTable] = []
    statements: list[Statement] = []
    for unit_, members in groups.items():
        table_name = name if len(groups) == 1 else f"{name}.{unit_ or 'no unit'}"
        rows = tuple(line.row for line in members if line.statistic is None)
        metric_ = metric or _metric([header[index] for index in roles.values()], [row.name for row in rows])
        change_units = {line.change_unit for line in members if line.change_unit}
        convention = change or _convention(header[roles["change"]] if "change" in roles else "", change_units, unit_)
        better_ = better or _better(unit_, metric_, file)
        tables.append(MetricTable(table_name, metric_, unit_, better_, rows, convention))
        statements += _aggregates(table_name, [line for line in members if line.statistic is not None])
    for label in (*(table.metric for table in tables), *groups, name, title, source):
        _label(label, file)
    claims = Claims(SCHEMA, title or file, source or file, tuple(tables), tuple(statements))
    checked(claims, file)
    return claims


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of the table: a scenario, or a ``statistic`` over the others."""

    row: Row
    statistic: Statistic | None
    unit: str
    change_unit: str


def _line(header: Sequence[str], roles: Mapping[Role, int], cells: Sequence[str], where: str, number: int) -> _Line:
    figures: dict[Role, Figure | None] = {}
    units: dict[Role, str] = {}
    for role, index in roles.items():
        arrows = not _POSITIVE & set(_tokens(header[index]))
        figures[role], units[role] = _figure(cells[index], f"{where}, column {header[index][:40]!r}", arrows)
    named = {_TIMES.get(unit.casefold(), unit) for role, unit in units.items() if role != "change" and unit}
    if len(named) > 1:
        raise ClaimError(f"{where} has values in {' and '.join(sorted(named))}, expected one unit for a row")
    words = [cell for index, cell in enumerate(cells) if cell and index not in roles.values()]
    label = _label(" ".join(words) or str(number), where)
    at, group = _swept(label)
    row = Row(label, figures["baseline"], figures["candidate"], figures.get("change"), group, at)
    return _Line(row, _AVERAGES.get(label.casefold()), next(iter(named), ""), units.get("change", ""))


def _grid(text: str, file: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first Markdown table, else of the text as CSV, every cell cleaned."""
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    rule = next((i for i, line in enumerate(lines) if i and _is_rule(line) and "|" in lines[i - 1]), None)
    grid: list[list[str]]
    if rule is not None:
        end = next((i for i in range(rule + 1, len(lines)) if "|" not in lines[i]), len(lines))
        grid = [_split(lines[i]) for i in (rule - 1, *range(rule + 1, end))]
    else:
        filled = [line for line in lines if line]
        first = filled[0] if filled else ""
        delimiter = max("\t;,", key=first.count)
        try:
            grid = list(csv.reader(filled, delimiter=delimiter, strict=True, skipinitialspace=True))
        except csv.Error as error:
            raise ClaimError(f"{file} is no CSV table ({error}), expected a header and rows of cells") from error
    if len(grid) < 2 or len(grid[0]) < 2:
        raise ClaimError(f"{file} holds no table, expected a Markdown or CSV table with a header and at least one row")
    if len(grid) > MAX_ITEMS + 1 or len(grid[0]) > MAX_COLUMNS:
        size = f"{len(grid) - 1} rows of {len(grid[0])} columns"
        raise ClaimError(f"{file} holds {size}, expected at most {MAX_ITEMS} and {MAX_COLUMNS}")
    for number, line in enumerate(grid[1:], 1):
        if len(line) != len(grid[0]):
            raise ClaimError(f"{file}: row {number} has {len(line)} cells, expected {len(grid[0])} as in the header")
    cleaned = [[_clean(cell) for cell in line] for line in grid]
    return cleaned[0], cleaned[1:]


def _is_rule(line: str) -> bool:
    return "-" in line and bool(re.fullmatch(r"[|:\- \t]+", line)) and "|" in line


def _split(line: str) -> list[str]:
    inner = line.removeprefix("|").removesuffix("|") if not line.endswith("\\|") else line.removeprefix("|")
    return [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _clean(cell: str) -> str:
    """A cell without Markdown emphasis, outer brackets and typographic minus signs."""
    return " ".join(cell.replace("*", "").replace("`", "").replace("\u2212", "-").replace("\u00a0", " ").split())


def _label(text: str, where: str) -> str:
    if len(text) > MAX_LABEL or not text.isprintable():
        raise ClaimError(
            f"{where} is labelled {text[:40]!r}, expected a printable line of {MAX_LABEL} characters at most"
        )
    return text


def _roles(header: Sequence[str], named: Mapping[Role, str], file: str) -> dict[Role, int]:
    roles: dict[Role, int] = {}
    for role, words in _WORDS.items():
        if role in named:
            found = [i for i, head in enumerate(header) if head.casefold() == named[role].casefold()]
        else:
            found = [i for i, head in enumerate(header) if words & set(_tokens(head)) and i not in roles.values()]
        if len(found) == 1:
            roles[role] = found[0]
        elif found or role != "change" or role in named:
            raise ClaimError(
                f"{file} has {len(found)} columns for the {role} among {[head[:40] for head in header][:9]}, "
                f"expected one; name it in columns"
            )
    if len(set(roles.values())) < len(roles):
        raise ClaimError(f"{file}: one column is named for two roles, expected a column for each")
    return roles


def _tokens(head: str) -> list[str]:
    return [token for part in re.split(r"[_\s()\[\],:]+", head.casefold()) for token in _TOKEN.findall(part)]


def _figure(cell: str, where: str, arrows: bool) -> tuple[Figure | None, str]:
    """The number in a cell and its unit; None where the cell says that there is none."""
    text = cell[1:-1] if cell.startswith("(") and cell.endswith(")") else cell
    if text.casefold() in _MISSING:
        return None, ""
    arrow = {"↓": "-", "↑": "+"}.get(text[:1], "")
    match = _CELL.match(text[1:].lstrip() if arrow else text)
    if not match or (arrow and match[2]):
        raise ClaimError(f'{where} is {cell[:40]!r}, expected a number such as "21.21", "1,234.5 tok/s" or "-2.17%"')
    about, sign, digits, unit = match.groups()
    try:
        figure = Figure(("~" if about else "") + (arrow if arrows and arrow else sign) + digits.replace(",", ""))
    except ClaimError as error:
        raise ClaimError(f"{where}: {error}") from None
    return figure, (unit or "").replace(" ", "")


def _swept(label: str) -> tuple[Figure | None, str]:
    """The last number of a label, as place along a sweep, and the rest of the label as the group."""
    matches = list(_SWEPT.finditer(label))
    if not matches:
        return None, ""
    last = matches[-1]
    return Figure(last[1]), " ".join((label[: last.start()] + " " + label[last.end() :]).split())


def _unit_of(headers: Sequence[str]) -> str:
    """The one unit that headers name, or none."""
    tokens = [token for head in headers for token in _tokens(head)]
    known = {_TIMES.get(token, token) for token in tokens if token in _TIMES or token.endswith("/s")}
    return known.pop() if len(known) == 1 else ""


def _metric(headers: Sequence[str], labels: Sequence[str]) -> str:
    """The first word of a header, or of a label, that names a metric."""
    for text in (*headers, *labels):
        for token in _tokens(text):
            if token in _LOWER | _HIGHER:
                return token.upper() if len(token) <= 4 else token
    return "value"


def _better(unit: str, metric: str, file: str) -> Better:
    words = set(_tokens(metric))
    if words & _HIGHER or unit.casefold().endswith(("/s", "flops", "tps", "/sec")):
        return "higher"
    if words & _LOWER or unit in _TIMES.values():
        return "lower"
    raise ClaimError(f"{file} holds {metric!r} in {unit!r}, of which it is not known what is better; state better")


def _convention(head: str, units: set[str], unit: str) -> Convention:
    words = set(_tokens(head))
    named_unit = {_TIMES.get(word, word) for word in words | {u.casefold() for u in units}}
    in_unit = unit not in ("", "%") and unit.casefold() in named_unit and not {"%", "percent"} & named_unit
    if in_unit or (unit == "%" and named_unit & _POINTS):
        return "absolute_gain" if words & (_REDUCED | _GAINED) else "difference"
    if "speedup" in words:
        return "speedup_percent" if {"%", "percent"} & named_unit else "speedup_ratio"
    if units & {"x", "X", "\u00d7"}:
        return "speedup_ratio"
    if words & _REDUCED:
        return "reduction"
    return "improvement" if words & _GAINED else "signed"


def _aggregates(table: str, lines: Sequence[_Line]) -> list[Statement]:
    """A statement for each number in a line of averages."""
    found: list[Statement] = []
    for number, line in enumerate(lines, 1):
        wanted: list[tuple[str, Statistic, Figure | None]] = []
        if line.statistic == "geometric_mean_change":
            wanted += [("baseline", "geometric_mean_baseline", line.row.baseline)]
            wanted += [("candidate", "geometric_mean_candidate", line.row.candidate)]
        elif line.statistic == "average_change":
            wanted += [("baseline", "mean_baseline", line.row.baseline)]
            wanted += [("candidate", "mean_candidate", line.row.candidate)]
        if line.statistic is not None:
            wanted += [("change", line.statistic, line.row.change)]
        label = line.row.name.casefold()
        found += [Aggregate(f"{table}.{label}{number}.{role}", table, s, v) for role, s, v in wanted if v is not None]
    return found
