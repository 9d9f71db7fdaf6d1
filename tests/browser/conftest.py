"""Browser tests are an environment of their own (``tox run -e browser``): without playwright they are not collected."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

if importlib.util.find_spec("playwright") is None:
    collect_ignore = ["test_browser_report.py"]

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "reporting"))  # the example judgements
