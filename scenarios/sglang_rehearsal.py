"""Short latency scenarios for a reduced GLM-5 on one GPU, where minutes are what there is: decode alone, no queue."""

from __future__ import annotations

from validation.scenario import LatencyScenario

SCENARIOS = (
    LatencyScenario(
        "sglang-rehearsal-c1", concurrency=1, requests=3, input_tokens=1024, output_tokens=256, range_ratio=1.0
    ),
    LatencyScenario(
        "sglang-rehearsal-c16", concurrency=16, requests=16, input_tokens=1024, output_tokens=256, range_ratio=1.0
    ),
)
