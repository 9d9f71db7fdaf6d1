"""How many blocks a latency verdict needs, how long they take, and what a time budget can detect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from scipy import stats

from validation.judging import sequential
from validation.judging.latency_design import LatencyPlan, LaunchSd, log_gain, percent
from validation.judging.variance import Components
from validation.verdicts import Effect

ENOUGH_LAUNCHES = 12
"""From 12 recorded launches (11 degrees) the upper 80 % limit of the launch sd lies 25 % above the estimate; below, the
limit grows so fast that Stein's two stages, which need no estimate, cost fewer blocks."""
SIZING_MARGIN = 0.02
"""A recorded launch sd is sized for this much more power than asked for: with one outlier launch in ten, the chi-square
limit is too low and the power of such plans fell to 89.6 % instead of 90 % (docs/why-blocks.md)."""
UPPER_CONFIDENCE = 0.8
"""Of the launch sd; the convention for sizing from a pilot (Browne, Stat. Med. 14, 1995)."""
RUN_SD_PERCENT = 0.104
"""Between runs of one launch, where none was measured: the within-launch residual of our simulations of 64 concurrent
requests (docs/why-blocks.md)."""
UNKNOWN_LAUNCH_SDS_PERCENT = (0.1, 0.2, 0.3, 0.4, 0.6)
"""Where no launch was recorded: the range planned for, its largest for the maximum. Two launches on an H200 differed by
0.55 % of TPOT, 0.4 % a launch."""
MOST_BLOCKS = 100
"""No plan is larger, whatever its power: at 12 minutes a block, 20 hours."""


@dataclasses.dataclass(frozen=True)
class LatencyDesign:
    """An answer of the planner; ``str`` gives the sentences for people."""

    plan: LatencyPlan | None
    """Ready for ``judge_latency``; None where the budget buys fewer blocks than a first look needs."""
    launch_sd_percent: float
    """Planned with; already the upper limit where it was recorded."""
    source: str
    block_sd_percent: float
    fixed_blocks: int
    """A fixed t test's number, for comparison."""
    needed_blocks: int
    """The maximum that gives the wanted power."""
    max_blocks: int
    """The same, cut to the budget."""
    expected_blocks: float
    """Mean number, if the planned gain is true."""
    power: float
    """To show the planned gain within ``max_blocks``."""
    detectable: Effect | None
    block_s: float | None
    expected_s: float | None
    longest_s: float | None
    budget_s: float | None

    def __str__(self) -> str:
        lines = [
            f"Launch sd {self.launch_sd_percent:.2f} % ({self.source}); block sd {self.block_sd_percent:.2f} %.",
            f"{self.needed_blocks} blocks at most are needed (a fixed test: {self.fixed_blocks}).",
        ]
        if self.budget_s is not None and self.max_blocks < self.needed_blocks:
            lines.append(f"The budget of {self.budget_s / 60:.0f} min buys {self.max_blocks} blocks.")
        if self.plan is None:
            lines.append("That is too few for a first look: no latency verdict can come of it.")
        elif self.detectable is not None:
            lines.append(
                f"Power {100 * self.power:.0f} % for a gain of {self.plan.planned_gain_percent:g} %, in"
                f" {self.expected_blocks:.1f} blocks on average; smallest detectable gain {self.detectable}."
            )
        if self.expected_s is not None and self.longest_s is not None and self.plan is not None:
            lines.append(f"Expected {self.expected_s / 60:.0f} min, at most {self.longest_s / 60:.0f} min.")
        return "\n".join(lines)


def prefers_quadruples(found: Components) -> bool:
    """Whether the later launch of a block is another than the earlier one: quadruples cancel that.

    By more than half the launch sd, where pairs lose more to it than quadruples cost (``plan_latency``), and by more
    than two standard errors: of a few launches every second shows that much by chance.
    """
    if None in (found.position_effect_percent, found.position_se_percent, found.launch_sd_percent):
        return False
    effect, error, sd = found.position_effect_percent, found.position_se_percent, found.launch_sd_percent
    return abs(effect or 0.0) > max((sd or 0.0) / 2, 2 * (error or 0.0))


def block_seconds(launch_s: float, scenario_s: Mapping[str, float], runs: int = 1, launches: int = 2) -> float:
    """Duration of a block: each launch starts and passes every scenario ``runs`` times."""
    return launches * (launch_s + runs * sum(scenario_s.values()))


def scenarios_for_budget(
    budget_s: float, blocks: int, launch_s: float, scenario_s: Mapping[str, float], runs: int = 1
) -> tuple[str, ...]:
    """As many scenarios, in the order given, as ``blocks`` blocks can hold within the budget; at least the first."""
    chosen: dict[str, float] = {}
    for name, seconds in scenario_s.items():
        if chosen and blocks * block_seconds(launch_s, {**chosen, name: seconds}, runs) > budget_s:
            break
        chosen[name] = seconds
    return tuple(chosen)


def block_sd(
    launch_sd_percent: float,
    run_sd_percent: float = RUN_SD_PERCENT,
    runs: int = 1,
    launches: int = 2,
    position_percent: float = 0.0,
) -> float:
    """Standard deviation of a block's log-ratio in percent.

    ``launches`` counts both arms (2, or 4 in a quadruple). What the later launch of a block loses to drift and position
    adds to the spread of pairs; in a quadruple (``BCCB``) it cancels.
    """
    noise = 4 / launches * (launch_sd_percent**2 + run_sd_percent**2 / runs)
    return math.sqrt(noise + (position_percent**2 if launches == 2 else 0.0))


def fixed_blocks(gain_in_sd: float, alpha: float, power: float) -> int:
    """Blocks a one-sided t test of fixed size needs; at most ``MOST_BLOCKS``."""
    return next(
        (n for n in range(2, MOST_BLOCKS) if sequential.fixed_power(n, gain_in_sd, alpha) >= power), MOST_BLOCKS
    )


def plan_latency(
    launch_sd: LaunchSd | float | None = None,
    base: LatencyPlan | None = None,
    *,
    run_sd_percent: float = RUN_SD_PERCENT,
    runs: int = 1,
    launches_per_block: int = 2,
    position_percent: float = 0.0,
    block_s: float | None = None,
    budget_s: float | None = None,
) -> LatencyDesign:
    """The plan that shows ``base.planned_gain_percent`` with ``base.power``, or what the budget allows.

    Args:
        launch_sd: a recorded one (at least 12 launches: its upper 80 % limit is planned with, sequentially; fewer:
            Stein's two stages); a stated one in percent (taken as true); or None (up to 0.6 % assumed,
            two stages).
        base: alpha, gains, margins and scenarios; its design and number of blocks are replaced.
        run_sd_percent: between runs of one launch.
        runs: passes of a scenario a launch.
        launches_per_block: 2, or 4 in a quadruple.
        position_percent: recorded drift and position effect together; beyond half the launch sd, prefer quadruples.
        block_s: duration of a block, see ``block_seconds``.
        budget_s: time there is; needs ``block_s``.

    Raises:
        ValueError: a budget without the duration of a block, or a negative one.
    """
    base = base or LatencyPlan()
    if budget_s is not None and (block_s is None or block_s <= 0):
        raise ValueError("a budget was given without the duration of a block; give block_s above 0 seconds")
    sequentially, sd, source = _planned_sd(launch_sd)
    spread = block_sd(sd, run_sd_percent, runs, launches_per_block, position_percent)
    gain_in_sd = 100 * log_gain(base.planned_gain_percent) / spread if spread else math.inf
    fixed = fixed_blocks(min(gain_in_sd, 50.0), base.alpha, base.power)
    if sequentially:
        margin = SIZING_MARGIN if isinstance(launch_sd, LaunchSd) else 0.0
        first, needed = LatencyPlan.min_blocks, sequential_blocks(base, gain_in_sd, margin)
    else:
        possible = UNKNOWN_LAUNCH_SDS_PERCENT if launch_sd is None else (sd,)
        spreads = [block_sd(s, run_sd_percent, runs, launches_per_block, position_percent) for s in possible]
        first, needed = _stein_size(base, spreads)
    affordable = needed if budget_s is None or block_s is None else min(needed, int(budget_s // block_s))
    plan = effect = None
    reached, expected = 0.0, float(affordable)
    if affordable >= LatencyPlan.min_blocks:
        plan = dataclasses.replace(
            base,
            design="sequential" if sequentially else "stein",
            min_blocks=min(first, affordable),
            max_blocks=affordable,
        )
        reached, expected, smallest = _prospects(plan, gain_in_sd)
        how = f"{100 * plan.power:g} % power, one-sided alpha {plan.alpha:g}, up to {affordable} blocks"
        effect = Effect(percent(smallest * spread / 100), "percent of TPOT", how)
    return LatencyDesign(
        plan=plan,
        launch_sd_percent=sd,
        source=source,
        block_sd_percent=spread,
        fixed_blocks=fixed,
        needed_blocks=needed,
        max_blocks=affordable,
        expected_blocks=expected,
        power=reached,
        detectable=effect,
        block_s=block_s,
        expected_s=None if block_s is None else expected * block_s,
        longest_s=None if block_s is None else affordable * block_s,
        budget_s=budget_s,
    )


def _planned_sd(launch_sd: LaunchSd | float | None) -> tuple[bool, float, str]:
    """Whether the sequential design may be sized, the launch sd to size with, and where it is from."""
    if launch_sd is None:
        return False, max(UNKNOWN_LAUNCH_SDS_PERCENT), "assumed, none was recorded; two stages"
    if isinstance(launch_sd, LaunchSd):
        if launch_sd.launches >= ENOUGH_LAUNCHES:
            upper = launch_sd.upper(UPPER_CONFIDENCE)
            return (
                True,
                upper,
                f"upper {100 * UPPER_CONFIDENCE:g} % limit over {launch_sd.launches} launches, {launch_sd.source}",
            )
        return False, launch_sd.percent, f"from {launch_sd.launches} launches only; two stages, {launch_sd.source}"
    if not (math.isfinite(launch_sd) and launch_sd >= 0):
        raise ValueError(f"a launch sd of {launch_sd!r} % was given; expected a finite number of at least 0")
    return True, float(launch_sd), "stated"


def sequential_blocks(base: LatencyPlan, gain_in_sd: float, margin: float = 0.0) -> int:
    """The smallest maximum with ``base.power + margin`` (0.995 at most) for a gain in block standard deviations.

    Bisected, as power rises with the maximum; never above ``MOST_BLOCKS``.
    """
    bounded, wanted = min(gain_in_sd, 50.0), min(base.power + margin, max(base.power, 0.995))

    def enough(last: int) -> bool:
        bounds = sequential.boundaries(base.alpha, LatencyPlan.min_blocks, last, base.spending_exponent)
        return sequential.power(bounds, bounded) >= wanted

    # No sequential test has more power than the fixed one of the same size.
    low = max(LatencyPlan.min_blocks, fixed_blocks(bounded, base.alpha, wanted)) - 1
    high = low + 1
    while high < MOST_BLOCKS and not enough(high):
        low, high = high, min(MOST_BLOCKS, math.ceil(1.25 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(high, MOST_BLOCKS)


def _stein_size(base: LatencyPlan, spreads: Sequence[float]) -> tuple[int, int]:
    """First stage and maximum: the smallest mean total over the block ``spreads``, and a total that the second stage
    exceeds in 2 % of cases at the largest."""
    gain = 100 * log_gain(base.planned_gain_percent)

    def total(first: int, spread: float) -> float:
        quantiles = float(stats.t.isf(base.alpha, first - 1) + stats.t.ppf(base.power, first - 1))
        return max(first, (quantiles * spread / gain) ** 2)

    # Below 5 the quantiles explode (4.30 and 3.18 at 3 and 4 blocks); beyond 12 little is won.
    first = min(range(5, 13), key=lambda n: sum(total(n, spread) for spread in spreads))
    most = math.ceil(total(first, max(spreads)) * float(stats.chi2.ppf(0.98, first - 1)) / (first - 1))
    return first, min(max(first, most), MOST_BLOCKS)


def _prospects(plan: LatencyPlan, gain_in_sd: float) -> tuple[float, float, float]:
    """Power for the planned gain, expected blocks under it, and the smallest detectable gain in block sd."""
    if plan.design == "sequential":
        bounds = plan.boundaries()
        bounded = min(gain_in_sd, 50.0)
        return (
            sequential.power(bounds, bounded),
            sequential.expected_blocks(bounds, bounded),
            sequential.detectable_in_sd(bounds, plan.power),
        )
    degrees = plan.min_blocks - 1
    critical = float(stats.t.isf(plan.alpha, degrees))
    quantiles = critical + float(stats.t.ppf(plan.power, degrees))
    # Average over the first stage's spread, s^2 = sigma^2 * chi2 / degrees, at 199 equally likely values.
    ratios = stats.chi2.ppf([(i + 0.5) / 199 for i in range(199)], degrees) / degrees
    totals = [min(plan.max_blocks, max(plan.min_blocks, math.ceil((quantiles / gain_in_sd) ** 2 * r))) for r in ratios]
    powers = [
        float(stats.norm.sf(critical * math.sqrt(r) - gain_in_sd * math.sqrt(n)))
        for r, n in zip(ratios, totals, strict=True)
    ]
    return sum(powers) / len(powers), sum(totals) / len(totals), quantiles / math.sqrt(plan.max_blocks)
