"""Small latency scenarios for the embedded engine: seconds on two cores. Its vocabulary has 768 entries."""

from __future__ import annotations

from validation.scenario import LatencyScenario

SCENARIOS = (
    LatencyScenario("rehearsal-c1", concurrency=1, requests=3, input_tokens=96, output_tokens=48, token_ids=(300, 760)),
    LatencyScenario(
        "rehearsal-c8", concurrency=8, requests=16, input_tokens=96, output_tokens=48, token_ids=(300, 760)
    ),
)
