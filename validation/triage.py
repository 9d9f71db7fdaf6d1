"""Which failing jobs can have anything to do with a change, and which evidence touches it. Pure but for ``main``.

A table of data (``triage_sglang.json`` is the one for SGLang) says of each source file where it is loaded at all, and
where a change of it takes effect by its own gate; and of each job what it runs. A job is cleared only by a
contradiction between the two that can be named. What the table does not know is never cleared.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import fnmatch
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from validation.reporting.escape import terminal

SCHEMA = 1
TABLE = pathlib.Path(__file__).with_name("triage_sglang.json")
Conditions = Mapping[str, frozenset[str]]
"""Attribute (``hardware``, ``architecture``, ``phase``) to every value that is needed, or run; absent: not known."""


class TableError(ValueError):
    """A table that cannot be used; the message says what was expected."""


class Relation(str, enum.Enum):
    """What a job or a kind of evidence has to do with the changed files, from the closest to none."""

    TOUCHES = "touches"
    """Runs the changed code."""
    MAY_TOUCH = "may touch"
    """Nothing contradicts it, and not everything is known."""
    UNKNOWN = "unknown"
    """The table does not know the file or the job: look for yourself."""
    GATED = "behind the gate"
    """Loads the file, and the change's own gate keeps it out: as sure as the dispatch evidence is."""
    CANNOT = "cannot touch"
    """Never loads the file."""


@dataclasses.dataclass(frozen=True)
class Path:
    """Source files and where they matter."""

    pattern: str
    loaded_where: Conditions
    effective_where: Conditions
    why: str


@dataclasses.dataclass(frozen=True)
class Runner:
    """A job, a test, or a kind of evidence, and what it runs."""

    pattern: str
    runs: Conditions
    why: str


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known about one code base."""

    subject: str
    paths: tuple[Path, ...]
    jobs: tuple[Runner, ...]
    evidence: tuple[Runner, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One job or kind of evidence, and why it stands where it stands."""

    name: str
    relation: Relation
    reason: str


@dataclasses.dataclass(frozen=True)
class Triage:
    """The whole answer."""

    subject: str
    failed: tuple[Answer, ...]
    evidence: tuple[Answer, ...]


def triage(changed: Sequence[str], failed: Sequence[str], table: Table) -> Triage:
    """What each of ``failed`` (jobs or tests) and each kind of evidence has to do with the files ``changed``."""
    jobs = []
    for name in failed:
        known = next((job for job in table.jobs if fnmatch.fnmatchcase(name.lower(), job.pattern)), None)
        if known is None:
            jobs.append(Answer(name, Relation.UNKNOWN, "the table does not know this job"))
        else:
            jobs.append(_answer(name, known, changed, table))
    return Triage(
        table.subject,
        tuple(jobs),
        tuple(_answer(runner.pattern, runner, changed, table) for runner in table.evidence),
    )


def _answer(name: str, runner: Runner, changed: Sequence[str], table: Table) -> Answer:
    """The closest relation over all changed files; the reason names the file that brought it."""
    if not changed:
        return Answer(name, Relation.UNKNOWN, "no changed file was given")
    found = [(*_relation(file, runner, table), file) for file in changed]
    relation, reason, file = min(found, key=lambda item: list(Relation).index(item[0]))
    closest = f", the closest of {len(changed)} changed files" if len(changed) > 1 else ""
    return Answer(name, relation, f"{pathlib.PurePosixPath(file).name}{closest}: {reason}; {runner.why}")


def _relation(file: str, runner: Runner, table: Table) -> tuple[Relation, str]:
    path = next((path for path in table.paths if fnmatch.fnmatchcase(file, path.pattern)), None)
    if path is None:
        return Relation.UNKNOWN, "the table does not know this file"
    contradiction = _contradiction(path.loaded_where, runner.runs)
    if contradiction:
        return Relation.CANNOT, f"it is loaded {contradiction}"
    contradiction = _contradiction(path.effective_where, runner.runs)
    if contradiction:
        return Relation.GATED, f"it is loaded, and the change takes effect {contradiction} ({path.why})"
    open_ends = sorted({*path.loaded_where, *path.effective_where} - runner.runs.keys())
    if open_ends:
        return Relation.MAY_TOUCH, f"nothing excludes it; not known: {', '.join(open_ends)} ({path.why})"
    return Relation.TOUCHES, path.why


def _contradiction(needed: Conditions, runs: Conditions) -> str:
    """The first attribute whose values exclude each other, in words; empty where none does."""
    for key, values in needed.items():
        if key in runs and not values & runs[key]:
            return f"for {key} {' or '.join(sorted(values))} alone, and this runs {' and '.join(sorted(runs[key]))}"
    return ""


def read_table(path: pathlib.Path = TABLE) -> Table:
    """The table in ``path``.

    Raises:
        TableError: it cannot be read, or as ``parse_table``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read ({error}); expected a triage table") from error
    return parse_table(text, path.name)


def parse_table(text: str, name: str = "table") -> Table:
    """The table that ``text`` holds as JSON.

    Raises:
        TableError: it is no table of this schema; the message names the file and the entry.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{name} cannot be read as JSON ({error}); expected a triage table") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise TableError(f"{name} is no triage table of schema {SCHEMA}")
    try:
        return Table(
            subject=_text(data["subject"]),
            paths=tuple(
                Path(
                    _text(p["pattern"]),
                    _conditions(p["loaded_where"]),
                    _conditions(p["effective_where"]),
                    _text(p["why"]),
                )
                for p in data["paths"]
            ),
            jobs=tuple(Runner(_text(j["pattern"]), _conditions(j["runs"]), _text(j["why"])) for j in data["jobs"]),
            evidence=tuple(Runner(_text(e["name"]), _conditions(e["runs"]), _text(e["why"])) for e in data["evidence"]),
        )
    except KeyError as error:
        raise TableError(f"{name} has an entry without {error}; see triage_sglang.json for what one needs") from error
    except (TypeError, ValueError) as error:
        raise TableError(f"{name} has an entry that does not fit: {error}") from error


def _conditions(data: Any) -> Conditions:
    if not isinstance(data, dict) or not all(isinstance(values, list) and values for values in data.values()):
        raise ValueError(f"conditions {data!s:.80}, expected an object of non-empty lists")
    return {key: frozenset(_text(value) for value in values) for key, values in data.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80}, expected a text")
    return value


def as_text(answer: Triage) -> str:
    """The answer for a terminal or a comment, closest relation first."""
    lines = [f"Triage by the table of {terminal(answer.subject)}"]
    order = list(Relation)
    for title, rows in (("Failing jobs and tests", answer.failed), ("Evidence of this suite", answer.evidence)):
        if rows:
            lines += ["", f"{title}:"]
            for row in sorted(rows, key=lambda row: order.index(row.relation)):
                lines.append(f"- {terminal(row.name)}: {row.relation.value}. {terminal(row.reason, 600)}")
    loose = [row for row in answer.failed if row.relation in order[:3]]
    if answer.failed:
        excluded = len(answer.failed) - len(loose)
        lines += ["", f"{excluded} of {len(answer.failed)} failures are excluded; {len(loose)} need a look."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m validation triage``; 0, or 4 (a usage error, as pytest's) where the table cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m validation triage", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--changed", nargs="+", required=True, metavar="FILE", help="files that the change touches")
    parser.add_argument("--failed", nargs="*", default=[], metavar="NAME", help="failing jobs or tests")
    parser.add_argument("--table", type=pathlib.Path, default=TABLE, metavar="JSON", help="what is known of the code")
    options = parser.parse_args(arguments)
    try:
        table = read_table(options.table)
    except TableError as error:
        print(f"triage: {terminal(str(error))}")
        return 4
    print(as_text(triage(options.changed, options.failed, table)), end="")
    return 0
