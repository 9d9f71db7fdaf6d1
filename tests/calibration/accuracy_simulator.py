"""Simulated accuracy experiments with a known true difference, and how often the judge's interval is right about them.

Each experiment draws fresh questions. Of these a share flips persistently (right in one arm, wrong in the other, in
every run), a share is unstable (its answer is drawn anew in every run), the rest answers alike everywhere. A run shock
shifts the accuracy of one launch as a whole: it turns right answers wrong, or wrong ones right, at a rate drawn for the
launch.

``python tests/calibration/accuracy_simulator.py --experiments 5000 --out FILE`` writes the long record.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import pathlib
import platform
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from validation.judging.score_interval import EXCESS_LEVEL, ONE_SIDED_ALPHA, paired_difference, run_excess

ACCURACY = 0.95  # what the reports behind the first case give for GSM8K: 0.941 to 0.953
MARGIN = 0.01
RECORDED_RUNS = 12  # launches of one build from which the shock is taken where each arm has one run


@dataclasses.dataclass(frozen=True)
class Condition:
    """One kind of experiment. ``loss`` (candidate worse, as a proportion) and ``shock_sd`` are the truth."""

    runs: int
    persistent: float
    """Share of questions that flip in every run, both ways together."""
    unstable: float
    """Share of questions answered anew in each run, right half the time: half of it is discordance of two runs."""
    shock_sd: float = 0.0
    loss: float = 0.0
    questions: int = 1319
    borrowed: bool = False
    """Whether the shock is estimated from ``RECORDED_RUNS`` recorded launches of the reference's build too."""

    @property
    def name(self) -> str:
        """Readable, and unique among conditions."""
        shock = f", shock {100 * self.shock_sd:g}{' (recorded runs)' if self.borrowed else ''}" if self.shock_sd else ""
        return (
            f"n {self.questions}, runs {self.runs}, persistent {100 * self.persistent:g} %, "
            f"unstable {100 * self.unstable:g} %{shock}, loss {100 * self.loss:g}"
        )

    @property
    def held(self) -> bool:
        """Whether the judge promises its level here: a shock that nothing was repeated to see is no promise."""
        return self.shock_sd == 0 or self.runs > 1 or self.borrowed


@dataclasses.dataclass(frozen=True)
class Result:
    """What the interval did in ``experiments`` draws of one condition."""

    experiments: int
    covered: int
    passed: int
    failed: int
    mean_half_width: float


def simulate(condition: Condition, experiments: int, seed: int) -> Result:
    """Draw, judge and count."""
    draw = np.random.default_rng([seed, *condition.name.encode()])
    covered = passed = failed = 0
    widths = 0.0
    for _ in range(experiments):
        reference, candidate, recorded = _answers(condition, draw)
        excess = run_excess([reference, candidate, recorded]) if condition.borrowed else None
        found = paired_difference(reference, candidate, excess)
        covered += found.lower <= -condition.loss <= found.upper
        passed += found.lower > -MARGIN
        failed += found.upper < -MARGIN
        widths += (found.upper - found.lower) / 2
    return Result(experiments, covered, passed, failed, widths / experiments)


def _answers(condition: Condition, draw: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
    """Reference, candidate and recorded launches of the reference's build, each of shape (launches, questions)."""
    n, kind = condition.questions, draw.random(condition.questions)
    flips = kind < condition.persistent
    unstable = ~flips & (kind < condition.persistent + condition.unstable)
    right = draw.random(n) < ACCURACY
    # The loss is put into the persistent flips as far as they reach, the rest into the unstable questions.
    by_flips = min(condition.loss, condition.persistent)
    lost = draw.random(n) < (0.5 + 0.5 * by_flips / condition.persistent if condition.persistent else 0.5)
    tilt = (condition.loss - by_flips) / condition.unstable if condition.unstable else 0.0
    chance_reference = np.where(unstable, 0.5 + tilt / 2, np.where(flips, lost, right))
    chance_candidate = np.where(unstable, 0.5 - tilt / 2, np.where(flips, ~lost, right))

    def launches(chance: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
        answered = draw.random((count, n)) < chance
        shock = draw.normal(0, condition.shock_sd, (count, 1))
        hit = draw.random((count, n)) < np.where(answered, -shock / ACCURACY, shock / (1 - ACCURACY))
        return (answered ^ hit).astype(np.float64)

    recorded = launches(chance_reference, RECORDED_RUNS if condition.borrowed else 0)
    return launches(chance_reference, condition.runs), launches(chance_candidate, condition.runs), recorded


CONDITIONS = [
    Condition(runs, persistent, unstable, shock, loss, questions, borrowed)
    for loss in (0.0, MARGIN)
    for questions, runs, persistent, unstable in [
        (1319, 1, 0.01, 0.0),
        (1319, 1, 0.01, 0.04),
        (1319, 1, 0.04, 0.0),
        (1319, 2, 0.01, 0.04),
        (1319, 3, 0.01, 0.02),
        (1319, 3, 0.0, 0.04),
        (1319, 3, 0.0, 0.06),
        (1319, 3, 0.0, 0.08),
        (1319, 5, 0.01, 0.04),
        (400, 1, 0.02, 0.02),
        (400, 3, 0.02, 0.02),
    ]
    for shock in (0.0, 0.002, 0.004)
    for borrowed in ((False, True) if shock and runs == 1 else (False,))
]


def main() -> None:
    """Write the long record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=20250101)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "what": "coverage and false passes of the paired accuracy interval (tests/calibration/accuracy_simulator.py)",
        "date_utc": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "seed": options.seed,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "constants": {"one_sided_alpha": ONE_SIDED_ALPHA, "excess_level": EXCESS_LEVEL},
        "command": f"python tests/calibration/accuracy_simulator.py --experiments {options.experiments} "
        f"--seed {options.seed} --out baselines/calibration/accuracy.json",
        "held_to": "95 % interval covers in at least 93 %; at a true loss of the margin, 1 point, at most 3.5 % pass",
        "conditions": [],
    }
    for condition in CONDITIONS:
        result = simulate(condition, options.experiments, options.seed)
        row = {
            "name": condition.name,
            "held": condition.held,
            **dataclasses.asdict(condition),
            **dataclasses.asdict(result),
        }
        row["coverage"] = result.covered / result.experiments
        row["pass_share"] = result.passed / result.experiments
        record["conditions"].append(row)
        print(f"{row['name']}: covered {row['coverage']:.4f}, passed {row['pass_share']:.4f}", flush=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
