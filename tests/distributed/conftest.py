"""Tests on a Ray cluster are an environment of their own (``tox run -e ray``): without ray they are not collected."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("ray") is None:
    collect_ignore = ["test_distributed_cluster.py"]
