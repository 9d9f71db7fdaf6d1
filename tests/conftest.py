"""Property tests draw the same examples every time, and a loaded machine is no failure."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")
