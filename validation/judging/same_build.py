"""The A/A experiment: both arms are one build, so any difference is the harness's own.

Once per harness version and hardware, and reusable. It is judged on the primary only: a gate that refuses at any p
below 5 % over ten scenarios would stop 40 % of honest users (1 - 0.95^10). It blocks a latency verdict only where the
difference is significant, large enough to matter, and seen again in a repeat declared beforehand.

The finding is handed to ``judge_latency``; it does not belong into the findings of a run, where a PASS of it would look
like latency evidence for the candidate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from validation.judging.latency_design import LatencyPlan, log_gain, percent, primary_gains
from validation.judging.tpot import BlockRatio, RunTpot
from validation.judging.variance import components
from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run

NAME = "latency.same_build"


def judge_same_build(
    blocks: Sequence[BlockRatio],
    plan: LatencyPlan,
    repeat: Sequence[BlockRatio] | None = None,
    runs: Sequence[RunTpot] = (),
) -> Finding:
    """Whether two arms of one build are told apart by this harness on this hardware.

    PASS: no alarm, or an alarm that the declared repeat did not confirm. INCONCLUSIVE: too few blocks, an alarm still
    without its repeat (``repeat_needed``), or a confirmed one (``failed_same_build``, which blocks latency verdicts).
    """
    gains = primary_gains(blocks, plan)
    if len(gains) < plan.min_blocks:
        if not gains:
            return not_run(NAME, Evidence.LATENCY, "no_blocks", "No block holds every declared scenario of both arms.")
        sentence = f"{len(gains)} same-build blocks; at least {plan.min_blocks} are needed."
        return Finding(NAME, Evidence.LATENCY, Verdict.INCONCLUSIVE, "too_few_blocks", sentence, len(blocks))
    first = _test(gains, plan)
    second = _test(primary_gains(repeat, plan), plan) if repeat else None
    numbers = {
        "gain_percent": percent(first.gain),
        "p_two_sided": first.p,
        "alpha": plan.same_build_alpha,
        "blocks": len(gains),
        "block_sd_percent": 100 * first.sd,
        "repeat_gain_percent": percent(second.gain) if second else None,
        "repeat_p_two_sided": second.p if second else None,
        "components": components(runs).to_json() if runs else None,
    }
    effect = Effect(
        percent(first.detectable),
        "percent of TPOT",
        f"{100 * plan.power:g} % power, two-sided alpha {plan.same_build_alpha:g}, {len(gains)} blocks",
    )
    records = len(blocks) + len(repeat or ())

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        return Finding(NAME, Evidence.LATENCY, verdict, reason, sentence, records, numbers, effect)

    said = f"Two arms of one build differ by {percent(first.gain):.2f} % (p = {first.p:.2g})"
    if not first.alarm:
        return finding(Verdict.PASS, "same_build_agrees", f"{said}: no alarm at alpha {plan.same_build_alpha:g}.")
    if second is None:
        return finding(Verdict.INCONCLUSIVE, "repeat_needed", f"{said}: an alarm; the declared repeat decides.")
    if second.alarm and second.gain * first.gain > 0:
        return finding(Verdict.INCONCLUSIVE, "failed_same_build", f"{said}, and again in the repeat.")
    return finding(Verdict.PASS, "repeat_disagrees", f"{said}, but not in the declared repeat.")


@dataclasses.dataclass(frozen=True)
class _Test:
    """Student's two-sided test of one series, and whether it raises an alarm. Gains are logs."""

    gain: float
    sd: float
    p: float
    alarm: bool
    detectable: float


def _test(gains: Sequence[float], plan: LatencyPlan) -> _Test:
    count = len(gains)
    if count < 2:
        return _Test(float(np.mean(gains)) if count else 0.0, 0.0, 1.0, False, 0.0)
    gain, sd, degrees = float(np.mean(gains)), float(np.std(gains, ddof=1)), count - 1
    error = sd / math.sqrt(count)
    p = float(2 * stats.t.sf(abs(gain) / error, degrees)) if error else float(gain == 0)
    alarm = p < plan.same_build_alpha and abs(gain) > log_gain(plan.smallest_useful_gain_percent) / 2
    # The sum of two Student quantiles, as in Stein's rule: the spread is an estimate.
    quantiles = float(stats.t.isf(plan.same_build_alpha / 2, degrees) + stats.t.ppf(plan.power, degrees))
    return _Test(gain, sd, p, alarm, quantiles * error)
