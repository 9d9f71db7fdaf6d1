"""What a latency experiment declares before its first block, and when it may stop.

All gains are logs inside (``gain = -log_ratio``, above zero: the candidate is faster) and percent of the baseline's
TPOT outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from validation.judging import sequential
from validation.judging.tpot import BlockRatio

FINAL_SHARE = 0.9
"""The interval at the stop uses this share of the alpha that earlier looks left. Chosen by simulation: over plans of 3
to 20 blocks and gains of 0 to 3 % its coverage lies between 93 and 97 %, heavy tails included (docs/why-blocks.md). A
plain t interval, blind to the stopping rule, falls to 90 %; the repeated interval covers up to 99.7 %."""


@dataclasses.dataclass(frozen=True)
class LaunchSd:
    """How much launches of one build differ on one kind of hardware, from a recorded same-build experiment."""

    percent: float
    """Standard deviation between launches, percent of TPOT."""
    launches: int
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.percent) and self.percent >= 0) or self.launches < 2:
            raise ValueError(
                f"a launch sd of {self.percent} % from {self.launches} launches was given; expected at least 0 % from 2"
            )

    def upper(self, confidence: float) -> float:
        """The upper ``confidence`` limit of the sd in percent (chi-square, ``launches - 1`` degrees)."""
        degrees = self.launches - 1
        return self.percent * math.sqrt(degrees / float(stats.chi2.ppf(1 - confidence, degrees)))


@dataclasses.dataclass(frozen=True)
class LatencyPlan:
    """Everything that decides a latency verdict; frozen and printed before the first block.

    Raises:
        ValueError: a field is outside its range.
    """

    scenarios: tuple[str, ...] = ()
    """Declared scenarios; the primary is their geometric mean. Empty: those the blocks hold."""
    smallest_useful_gain_percent: float = 0.5
    """Below this a gain would not be worth the change. Two thirds of the smallest gain claimed for the first case
    (0.74 %, 8k1k at concurrency 64)."""
    planned_gain_percent: float = 0.74
    """The gain the number of blocks is sized for: the smallest one claimed for the first case."""
    alpha: float = 0.025
    """One-sided: ICH E9 (1998), section 5.5."""
    power: float = 0.9
    design: Literal["sequential", "stein"] = "sequential"
    """``stein``: two stages, the second sized from the first one's spread (Ann. Math. Stat. 16, 1945)."""
    min_blocks: int = 3
    """First look, or Stein's first stage."""
    max_blocks: int = 8
    spending_exponent: float = sequential.SPENDING_EXPONENT
    futility_power: float = 0.1
    """Stop where, even if the planned gain were true, the chance to show it by ``max_blocks`` is below this. 0 turns it
    off. Not binding: ignoring it costs no alpha."""
    no_slower_margin_percent: float | None = 1.0
    """No scenario may be slower than this; None: not judged. One launch effect of the largest size recorded (0.6 %)
    times the root of two, rounded up."""
    max_unusable_share: float = 0.05
    """A scenario with a larger share of request pairs lost to errors or unequal lengths is not decidable."""
    recorded_launch_sd: LaunchSd | None = None
    """For two given URLs: what a launch effect is on this hardware."""
    same_build_alpha: float = 0.01
    """Two-sided, for the A/A experiment."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5 or not 0.5 <= self.power < 1 or not 0 < self.same_build_alpha < 0.5:
            raise ValueError(
                f"alpha {self.alpha} and power {self.power} were given; expected 0 < alpha < 0.5 <= power < 1"
            )
        if not 0 < self.smallest_useful_gain_percent < 100 or not 0 < self.planned_gain_percent < 100:
            raise ValueError("a useful or planned gain outside 0 to 100 % was given; expected percent of TPOT")
        if not 3 <= self.min_blocks <= self.max_blocks:
            raise ValueError(
                f"{self.min_blocks} to {self.max_blocks} blocks were given; expected 3 <= min_blocks <= max_blocks"
            )
        if self.no_slower_margin_percent is not None and not 0 < self.no_slower_margin_percent < 100:
            raise ValueError(f"a margin of {self.no_slower_margin_percent} % was given; expected 0 to 100, or None")
        if not 0 <= self.max_unusable_share < 1 or not 0 <= self.futility_power < 0.5:
            raise ValueError("max_unusable_share or futility_power is out of range; expected [0, 1) and [0, 0.5)")
        if self.design not in ("sequential", "stein"):
            raise ValueError(f"design {self.design!r} was given; expected 'sequential' or 'stein'")

    def boundaries(self, share: float = 1.0) -> sequential.Boundaries:
        """The exact boundaries at ``alpha * share``."""
        return sequential.boundaries(self.alpha * share, self.min_blocks, self.max_blocks, self.spending_exponent)

    def __str__(self) -> str:
        useful, margin = self.smallest_useful_gain_percent, self.no_slower_margin_percent
        lines = [
            f"Primary: geometric mean TPOT over {', '.join(self.scenarios) or 'the scenarios measured'};"
            f" gain shown at one-sided alpha {self.alpha:g}; smallest useful gain {useful:g} %.",
        ]
        if self.design == "sequential":
            critical = ", ".join(f"{c:.2f}" for c in self.boundaries().critical_t)
            lines.append(
                f"Sequential t test: a look after each block from {self.min_blocks} to at most {self.max_blocks};"
                f" alpha spent as information^{self.spending_exponent:g}; critical t {critical};"
                f" futility below {100 * self.futility_power:g} % conditional power for a gain of"
                f" {self.planned_gain_percent:g} %."
            )
        else:
            lines.append(
                f"Stein's two stages: {self.min_blocks} blocks, then as many as {100 * self.power:g} % power for a"
                f" gain of {self.planned_gain_percent:g} % needs, at most {self.max_blocks}."
            )
        if margin is not None:
            lines.append(f"No scenario may be slower than {margin:g} %: each at alpha {self.alpha:g}, all must pass.")
        lines.append(
            f"A scenario that loses more than {100 * self.max_unusable_share:g} % of its request pairs is not"
            " decidable."
        )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Look:
    """The primary, or one scenario, after ``blocks`` blocks. Gains are logs."""

    blocks: int
    gain: float
    sd: float
    """Between block gains; Stein's test uses the first stage's."""
    critical: float
    """Critical t of this look; also the half width of the repeated interval in standard errors."""
    final_critical: float
    """The same for the interval reported when the experiment stops here."""

    @property
    def standard_error(self) -> float:
        """Of ``gain``."""
        return self.sd / math.sqrt(self.blocks)

    @property
    def lower(self) -> float:
        """Repeated lower limit: valid at every look at once."""
        return self.gain - self.critical * self.standard_error

    @property
    def upper(self) -> float:
        """Repeated upper limit."""
        return self.gain + self.critical * self.standard_error


@dataclasses.dataclass(frozen=True)
class Next:
    """Whether the experiment goes on, and why; ``sentence`` is for the person who waits."""

    stop: bool
    reason: str
    sentence: str


def percent(gain: float) -> float:
    """A log gain as percent of the baseline's TPOT."""
    return -100.0 * math.expm1(-gain)


def log_gain(gain_percent: float) -> float:
    """Percent of the baseline's TPOT as a log gain."""
    return -math.log1p(-gain_percent / 100.0)


def declared_scenarios(blocks: Sequence[BlockRatio], plan: LatencyPlan) -> tuple[str, ...]:
    """The plan's scenarios, or those of ``blocks`` in name order where it declares none."""
    return plan.scenarios or tuple(sorted({b.scenario for b in blocks}))


def gains_by_block(blocks: Sequence[BlockRatio], plan: LatencyPlan) -> tuple[list[int], list[list[float]]]:
    """The complete blocks in order, and for each the log gain of every declared scenario.

    Raises:
        ValueError: two data for one block and scenario.
    """
    table: dict[int, dict[str, float]] = {}
    for b in blocks:
        row = table.setdefault(b.block, {})
        if b.scenario in row:
            raise ValueError(f"block {b.block} holds scenario {b.scenario!r} twice; expected one datum each")
        row[b.scenario] = -b.log_ratio
    scenarios = declared_scenarios(blocks, plan)
    complete = [number for number in sorted(table) if all(s in table[number] for s in scenarios)]
    return complete, [[table[number][s] for s in scenarios] for number in complete]


def primary_gains(blocks: Sequence[BlockRatio], plan: LatencyPlan) -> list[float]:
    """The primary's datum of each complete block: the mean log gain over the declared scenarios."""
    return [float(np.mean(row)) for row in gains_by_block(blocks, plan)[1]]


def stein_blocks(first_stage: Sequence[float], plan: LatencyPlan) -> int:
    """Blocks that Stein's second stage must reach in all, from the first stage's log gains; not capped."""
    degrees = len(first_stage) - 1
    quantiles = float(stats.t.isf(plan.alpha, degrees) + stats.t.ppf(plan.power, degrees))
    sd = float(np.std(first_stage, ddof=1))
    return max(len(first_stage), math.ceil((quantiles * sd / log_gain(plan.planned_gain_percent)) ** 2))


def looks(gains: Sequence[float], plan: LatencyPlan, share: float = 1.0, blocks: int | None = None) -> list[Look]:
    """Every look at ``gains`` that the plan allows, at level ``alpha * share``.

    Args:
        gains: log gains in block order; those beyond ``max_blocks`` are not looked at.
        plan: the declared plan.
        share: of alpha, where several hypotheses divide it.
        blocks: Stein's total, where another series (the primary) has set it.
    """
    if plan.design == "stein":
        if len(gains) < plan.min_blocks:
            return []
        first = gains[: plan.min_blocks]
        needed = min(blocks or stein_blocks(first, plan), plan.max_blocks)
        critical = float(stats.t.isf(plan.alpha * share, plan.min_blocks - 1))
        sd = float(np.std(first, ddof=1))
        return [Look(needed, float(np.mean(gains[:needed])), sd, critical, critical)] if len(gains) >= needed else []
    bounds = plan.boundaries(share)
    out = []
    for k in range(plan.min_blocks, min(len(gains), plan.max_blocks) + 1):
        left = (bounds.alpha - bounds.spent(k - 1)) * FINAL_SHARE
        final = min(bounds.at(k), float(stats.t.isf(left, k - 1)))
        out.append(Look(k, float(np.mean(gains[:k])), float(np.std(gains[:k], ddof=1)), bounds.at(k), final))
    return out


def outcome(seen: Sequence[Look], plan: LatencyPlan) -> tuple[str, Look] | None:
    """The first look that decided: ``gain_shown`` or ``useful_gain_excluded``; None while none has."""
    useful = log_gain(plan.smallest_useful_gain_percent)
    for look in seen:
        if look.upper < useful:
            return "useful_gain_excluded", look
        if look.lower > 0:
            return "gain_shown", look
    return None


def conditional_power(look: Look, plan: LatencyPlan) -> float:
    """The chance to cross at the last look if the planned gain were true, from the data so far.

    The spread is the one seen, with Student's tail for its own uncertainty.
    """
    ahead = plan.max_blocks - look.blocks
    if ahead <= 0:
        return float(look.lower > 0)
    wanted = plan.boundaries().critical_t[-1] * look.sd * math.sqrt(plan.max_blocks)
    expected = look.blocks * look.gain + ahead * log_gain(plan.planned_gain_percent)
    return float(stats.t.cdf((expected - wanted) / (look.sd * math.sqrt(ahead)), look.blocks - 1)) if look.sd else 1.0


def scenarios_slower_or_not(
    blocks: Sequence[BlockRatio], plan: LatencyPlan
) -> dict[str, Literal["not_slower", "slower", "undecided"]]:
    """Each declared scenario against the no-slower margin. ``not_slower`` at alpha each, because all must pass
    (intersection-union, Berger, Technometrics 24, 1982); ``slower`` at alpha divided by their number (Bonferroni),
    because one suffices."""
    _, rows = gains_by_block(blocks, plan)
    scenarios = declared_scenarios(blocks, plan)
    margin = log_gain(-(plan.no_slower_margin_percent or 0.0))
    total = None
    if plan.design == "stein" and len(rows) >= plan.min_blocks:
        total = stein_blocks([float(np.mean(row)) for row in rows[: plan.min_blocks]], plan)
    answer: dict[str, Literal["not_slower", "slower", "undecided"]] = {}
    for column, scenario in enumerate(scenarios):
        gains = [row[column] for row in rows]
        if any(look.upper < margin for look in looks(gains, plan, 1 / len(scenarios), total)):
            answer[scenario] = "slower"
        elif any(look.lower > margin for look in looks(gains, plan, blocks=total)):
            answer[scenario] = "not_slower"
        else:
            answer[scenario] = "undecided"
    return answer


def decide_next(blocks: Sequence[BlockRatio], plan: LatencyPlan) -> Next:
    """Whether the running experiment needs another block. Only the plan's own boundaries stop it.

    A crossed boundary is never taken back by later blocks, so the experiment may go on for a scenario that is not yet
    shown to be no slower without spending alpha again.
    """
    gains = primary_gains(blocks, plan)
    count = len(gains)
    if count < plan.min_blocks:
        return Next(
            False, "before_first_look", f"{count} of at least {plan.min_blocks} blocks; the first look comes then."
        )
    if is_fixed(blocks):
        return _next_fixed(gains, plan)
    seen = looks(gains, plan)
    decided = outcome(seen, plan)
    if decided and decided[0] == "useful_gain_excluded":
        return Next(True, *_because(decided))
    pending = (
        plan.no_slower_margin_percent is not None and "undecided" in scenarios_slower_or_not(blocks, plan).values()
    )
    if decided and not pending:
        return Next(True, *_because(decided))
    if plan.design == "stein":
        needed = min(stein_blocks(gains[: plan.min_blocks], plan), plan.max_blocks)
        if count < needed:
            return Next(False, "second_stage", f"{count} of the {needed} blocks that the first stage asks for.")
        return Next(True, "second_stage_complete", f"All {needed} blocks of the second stage are in.")
    if count >= plan.max_blocks:
        return Next(True, "max_blocks", f"The maximum of {plan.max_blocks} blocks is reached.")
    if decided:
        sentence = f"The gain is shown after {decided[1].blocks} blocks; a scenario is not yet shown to be no slower."
        return Next(False, "no_slower_undecided", sentence)
    chance = conditional_power(seen[-1], plan)
    if chance < plan.futility_power:
        return Next(
            True,
            "futile",
            f"Even a true gain of {plan.planned_gain_percent:g} % would have a {100 * chance:.0f} % chance.",
        )
    return Next(False, "undecided", f"{count} of at most {plan.max_blocks} blocks; t has crossed no boundary.")


def is_fixed(blocks: Sequence[BlockRatio]) -> bool:
    """Whether the launch effect cannot be separated: a given URL, or one launch that serves several blocks."""
    of_launch: dict[str, set[int]] = {}
    for b in blocks:
        for launch in (*b.baseline_launches, *b.candidate_launches):
            of_launch.setdefault(launch, set()).add(b.block)
    return any(not b.fresh for b in blocks) or any(len(numbers) > 1 for numbers in of_launch.values())


def _because(decided: tuple[str, Look]) -> tuple[str, str]:
    reason, look = decided
    low, high = percent(look.lower), percent(look.upper)
    return (
        reason,
        f"Block {look.blocks} decides: gain {percent(look.gain):.2f} %, repeated interval {low:.2f} to {high:.2f} %.",
    )


def _next_fixed(gains: Sequence[float], plan: LatencyPlan) -> Next:
    count = len(gains)
    if count >= plan.max_blocks:
        return Next(True, "max_blocks", f"The maximum of {plan.max_blocks} blocks is reached.")
    return Next(
        False, "fixed_servers", f"{count} of {plan.max_blocks} blocks; the servers' launch effect stays in all of them."
    )
