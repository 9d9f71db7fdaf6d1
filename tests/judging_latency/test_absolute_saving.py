"""The absolute saving: a constant is recovered, a growing one is rejected."""

from __future__ import annotations

import random

import pytest

from validation.judging.absolute_saving import absolute_savings
from validation.judging.tpot import RunTpot

LEVELS = {"c4": 4, "c16": 16, "c64": 64}


def runs(growing: bool) -> list[RunTpot]:
    draw = random.Random(3)
    made = []
    for block in range(6):
        for name, level in LEVELS.items():
            saving = 0.46 * (level / 16 if growing else 1)
            for arm, tpot in (("baseline", 20.0 + level), ("candidate", 20.0 + level - saving)):
                noisy = tpot + draw.gauss(0, 0.01)
                made.append(RunTpot(name, arm, block, f"{arm}{block}", 0, True, 0, 9, noisy, noisy, None, 0.1, 0, {}))
    return made


def test_a_constant_saving_is_recovered() -> None:
    found = absolute_savings(runs(growing=False), LEVELS, "candidate", "baseline")
    assert found["constant_saving_ms"] == pytest.approx(0.46, abs=0.01)
    assert found["constant_saving_p"] > 0.01
    for name, row in found["scenarios"].items():
        assert row["saving_lower_ms"] < 0.46 < row["saving_upper_ms"], name
        assert row["concurrency"] == LEVELS[name]


def test_a_saving_that_grows_with_the_batch_is_no_constant() -> None:
    assert absolute_savings(runs(growing=True), LEVELS, "candidate", "baseline")["constant_saving_p"] < 1e-6


def test_one_block_has_no_interval_and_one_arm_no_row() -> None:
    one = [run for run in runs(growing=False) if run.block == 0]
    found = absolute_savings(one, LEVELS, "candidate", "baseline")
    assert found["scenarios"]["c4"]["saving_lower_ms"] is None
    assert found["constant_saving_ms"] is None
    assert absolute_savings([r for r in one if r.arm == "candidate"], {}, "candidate", "baseline")["scenarios"] == {}
