"""Writes the four report files of a run, each whole or not at all."""

from __future__ import annotations

import os
import pathlib
import tempfile

from validation.judgement import Judgement
from validation.reporting.findings_json import dumped
from validation.reporting.html import to_html
from validation.reporting.junit import to_junit
from validation.reporting.markdown import to_markdown

RENDERERS = {
    "findings.json": dumped,
    "report.md": to_markdown,
    "junit.xml": to_junit,
    "report.html": to_html,
}
"""File name to the function that makes its text; the same judgement always gives the same bytes."""


def write_reports(folder: pathlib.Path, judgement: Judgement) -> pathlib.Path:
    """Write ``findings.json``, ``report.md``, ``junit.xml`` and ``report.html`` into ``folder``; the path of the last.

    Raises:
        OSError: a file cannot be written; no file is left half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: render(judgement) for name, render in RENDERERS.items()}
    for name, text in texts.items():
        write_atomically(folder / name, text.encode("utf-8"))
    return folder / "report.html"


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; a reader, or a crash, sees the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
