"""How every HTML page of the suite is made from its template: values escaped, nothing undefined, nothing invisible."""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2

from validation.reporting.escape import visible


def templates(folder: pathlib.Path) -> jinja2.Environment:
    """The templates of ``folder``. A string is escaped and what is not printable written out; markup stays as it is."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalized(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
