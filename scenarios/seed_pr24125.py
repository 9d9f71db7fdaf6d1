"""The ten latency scenarios of SGLang pull request 24125.

Its author ran ``sglang.bench_serving --dataset-name random``, which draws from ShareGPT; ours are random token ids of
the same lengths (what SGLang calls ``random-ids``). Compare the figures with that in mind.
"""

from __future__ import annotations

from validation.scenario import LatencyScenario

_SOURCE = "SGLang pull request 24125: range ratio 0.8, 10 x concurrency prompts"

SCENARIOS = tuple(
    LatencyScenario(
        name=f"{workload}-c{concurrency}",
        concurrency=concurrency,
        requests=10 * concurrency,
        input_tokens=input_tokens,
        output_tokens=1024,
        range_ratio=0.8,
        source=_SOURCE,
        # decode alone: ten waves of 0.9 x 1024 tokens at the TPOT that the seed's table gives
        expected_s=round(10 * 0.9 * 1024 * tpot_ms / 1000, 1),
    )
    for workload, input_tokens, tpots in (
        ("8k1k", 8192, (21.21, 25.28, 30.79, 42.92, 61.79)),
        ("1k1k", 1024, (18.79, 21.14, 23.63, 29.19, 35.02)),
    )
    for concurrency, tpot_ms in zip((4, 8, 16, 32, 64), tpots, strict=True)
)
