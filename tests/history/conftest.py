"""Change points need ruptures (the extra ``history``): without it the tests that look for them are not collected."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ruptures") is None:
    collect_ignore = ["test_history_changes.py"]
