"""GSM8K proper: as the seed ran it (1200 questions, 1200 in parallel, SGLang's own harness), and whole."""

from __future__ import annotations

from validation.gsm8k import load
from validation.scenario import AccuracyScenario

SCENARIOS = (
    AccuracyScenario(
        "gsm8k-1200",
        concurrency=1200,
        prompt_mode="sglang",
        load=load,
        questions=1200,
        source="SGLang pull request 24125: bench_sglang.py --num-questions 1200 --parallel 1200",
    ),
    AccuracyScenario(
        "gsm8k", concurrency=1200, prompt_mode="vllm", load=load, source="all 1319 questions, train shots"
    ),
)
