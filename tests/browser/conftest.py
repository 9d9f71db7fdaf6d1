"""Browser tests are an environment of their own (``tox run -e browser``): without playwright they are not collected."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if importlib.util.find_spec("playwright") is None:
    collect_ignore = ["test_browser_report.py", "test_browser_timeline.py"]

for folder in ("reporting", "timeline"):  # the examples
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / folder))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, the system's own: one for all tests, because two at once refuse each other."""
    from playwright.sync_api import sync_playwright

    installed = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = os.environ.get("CHROMIUM") or next(filter(None, installed), None)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()
