"""Whether two traces show a kernel removed from every layer of every decode step, and nothing else changed. Pure.

The baseline (A) must run the kernel once per layer and step and the candidate (B) never. A name alone proves nothing:
an unrelated kernel may match it (SGLang launches a ``CatArrayBatchedCopy_vectorized`` between its decode steps on every
query path). So a match counts as the removed kernel only where it recurs in every layer of every step.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

from validation.verdicts import Effect, Evidence, Finding, Verdict, not_run

REMOVED = "trace.removed_kernel"
OTHERS = "trace.other_kernels"
RANKS = "trace.ranks"

_LISTED = 20
"""Changes listed in a finding's numbers; the count of all stands beside them."""


@dataclasses.dataclass(frozen=True)
class TraceClaim:
    """What a case says about its traces, declared before they are read."""

    removed: str
    """Regular expression searched in kernel names."""
    per_layer: int = 1
    """Launches in each layer of each decode step of A."""
    layers: int | None = None
    """The model's layers, where known: a model read as half as many layers would be noticed."""
    steps: int | None = None
    """Profiled decode steps, where known."""
    may_change: str | None = None
    """Regular expression of kernels that the change replaces by its own account; reported, not judged."""

    def __post_init__(self) -> None:
        for pattern in (self.removed, self.may_change):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"the pattern {pattern!r} is no regular expression ({error}); correct it") from error
        if not self.removed or self.per_layer < 1:
            given = f"removed {self.removed!r}, {self.per_layer} times a layer,"
            raise ValueError(f"{given} was given; expected a pattern and at least once")


@dataclasses.dataclass(frozen=True)
class KernelCount:
    """How often one kernel ran, and where."""

    name: str
    cells: tuple[tuple[int, ...], ...]
    """Launches in each layer of each step, ``cells[step][layer]``; empty where it never ran in a layer."""
    edges: int
    """Launches in a step, before its first layer or after its last."""
    outside: int
    """Launches outside the decode steps."""
    total_us: float
    """Time of all launches."""

    @property
    def in_layers(self) -> int:
        return sum(map(sum, self.cells))

    @property
    def total(self) -> int:
        return self.in_layers + self.edges + self.outside

    @property
    def mean_us(self) -> float:
        return self.total_us / self.total if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class RankCounts:
    """One rank's trace, counted."""

    source: str
    rank: int
    world_size: int | None
    profiler: str
    steps: int
    layers: int
    exact: bool
    """Whether a kernel's step is known from its launch; else from when it ran, and early work of the next step counts
    to this one."""
    how: str
    """How steps and layers were found, or why not."""
    kernels: tuple[KernelCount, ...]


Pair = tuple[RankCounts, RankCounts]
"""One rank in A and in B."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One kernel in A and in B."""

    name: str
    a: int
    """All launches."""
    b: int
    in_steps: tuple[int, int]
    """Launches in decode steps, in A and in B."""
    in_layers: tuple[int, int]
    a_mean_us: float
    b_mean_us: float

    @property
    def outside_steps(self) -> tuple[int, int]:
        return self.a - self.in_steps[0], self.b - self.in_steps[1]


def difference(a: RankCounts, b: RankCounts) -> list[Change]:
    """Every kernel of both traces; those with changed counts first, then by total time."""
    mine, other = _by_name(a), _by_name(b)
    nothing = KernelCount("", (), 0, 0, 0.0)
    rows = []
    for name in {**mine, **other}:
        x, y = mine.get(name, nothing), other.get(name, nothing)
        change = Change(
            name=name,
            a=x.total,
            b=y.total,
            in_steps=(x.total - x.outside, y.total - y.outside),
            in_layers=(x.in_layers, y.in_layers),
            a_mean_us=x.mean_us,
            b_mean_us=y.mean_us,
        )
        rows.append((-abs(change.b - change.a), -(x.total_us + y.total_us), name, change))
    return [row[-1] for row in sorted(rows, key=lambda row: row[:3])]


def unreadable(arm: str, message: str) -> Finding:
    """The finding for a trace that cannot be read; ``message`` is the reader's sentence."""
    return not_run(REMOVED, Evidence.TRACE, "trace_unreadable", f"the {arm}'s trace cannot be read: {message}")


def judge_trace(claim: TraceClaim, a: Sequence[RankCounts], b: Sequence[RankCounts]) -> list[Finding]:
    """Judge the claim on the baseline's traces ``a`` and the candidate's ``b``, one entry a rank.

    Findings: ``trace.removed_kernel``, ``trace.other_kernels`` and ``trace.ranks``; only the first, where the traces
    cannot be compared.
    """
    obstacle = _obstacle(claim, a, b)
    if obstacle is not None:
        return [obstacle]
    pairs = list(zip(sorted(a, key=_rank), sorted(b, key=_rank), strict=True))
    removed, names = _judge_removed(claim, pairs)
    return [removed, _judge_others(claim, pairs, names), _judge_ranks(a, b)]


def _obstacle(claim: TraceClaim, a: Sequence[RankCounts], b: Sequence[RankCounts]) -> Finding | None:
    """Why the traces cannot be compared."""
    for arm, ranks in (("baseline", a), ("candidate", b)):
        if not ranks:
            return not_run(REMOVED, Evidence.TRACE, "no_trace", f"the {arm} has no trace; record one with --profile")
    conclude = _concluder(REMOVED, len(a) + len(b))
    for arm, ranks in (("baseline", a), ("candidate", b)):
        found = [counts.rank for counts in ranks]
        if len(set(found)) < len(found):
            return conclude("duplicate_rank", f"two traces of the {arm} have one rank; expected one trace a rank")
        for counts in ranks:
            label = f"the {arm}'s trace {counts.source}"
            if not counts.steps:
                return conclude("steps_not_found", f"no decode steps were found in {label}: {counts.how}")
            if claim.steps is not None and counts.steps != claim.steps:
                sentence = f"{label} has {counts.steps} decode steps and {claim.steps} were profiled: {counts.how}"
                return conclude("steps_unexpected", sentence)
            if not counts.layers:
                return conclude("layers_not_found", f"no layers were found in {label}: {counts.how}")
            if claim.layers is not None and counts.layers != claim.layers:
                sentence = f"{label} has {counts.layers} layers and the model {claim.layers}: {counts.how}"
                return conclude("layers_unexpected", sentence)
    if {c.rank for c in a} != {c.rank for c in b}:
        sentence = f"the baseline has ranks {_ranks(a)} and the candidate {_ranks(b)}; expected the same"
        return conclude("ranks_missing", sentence)
    if len({c.profiler for c in (*a, *b)}) > 1:
        profilers = ", ".join(sorted({c.profiler for c in (*a, *b)}))
        return conclude("profilers_differ", f"the traces were recorded by {profilers}; expected one profiler")
    if len({c.steps for c in (*a, *b)}) > 1:
        counted = ", ".join(f"{c.source} {c.steps}" for c in (*a, *b))
        sentence = f"the traces hold different numbers of decode steps ({counted}); profile as many in both"
        return conclude("steps_differ", sentence)
    if len({c.layers for c in (*a, *b)}) > 1:
        counted = ", ".join(f"{c.source} {c.layers}" for c in (*a, *b))
        return conclude("layers_differ", f"the traces hold different numbers of layers ({counted})", Verdict.FAIL)
    return None


def _judge_removed(claim: TraceClaim, pairs: Sequence[Pair]) -> tuple[Finding, frozenset[str]]:
    """The finding, and the names that are the removed kernel."""
    passes = pairs[0][0].steps * pairs[0][0].layers
    numbers: dict[str, object] = {
        "steps": pairs[0][0].steps,
        "layers": pairs[0][0].layers,
        "expected_per_layer": claim.per_layer,
        "ranks": {},
        "how": pairs[0][0].how,
        "profiler": pairs[0][0].profiler,
    }
    per_rank: dict[str, object] = {}
    numbers["ranks"] = per_rank
    removed: frozenset[str] = frozenset()
    problems: list[tuple[str, str]] = []
    for a, b in pairs:
        names, wrong = _removed_names(claim, a)
        removed |= names
        in_a, out_a = _launches(a, names)
        again = {k.name for k in b.kernels if re.search(claim.removed, k.name)}
        known = {k.name for k in a.kernels} - names  # matches of another origin: judged with the others
        in_b, out_b = _launches(b, again - known)
        per_rank[str(a.rank)] = {"a": in_a, "b": in_b, "a_outside": out_a, "b_outside": out_b, "names": sorted(names)}
        where = f" on rank {a.rank}" if len(pairs) > 1 else ""
        if in_a == 0 and in_b == 0:
            sentence = f"neither arm ran a kernel that matches {claim.removed!r}{where}: nothing was removed"
            problems.append(("vacuous", sentence))
        elif in_a == 0:
            sentence = f"only the candidate ran {claim.removed!r}, {in_b} times{where}: are the arms swapped?"
            problems.append(("arms_swapped", sentence))
        elif in_b:
            sentence = f"the candidate still ran {claim.removed!r} {in_b} times in its decode steps{where}"
            problems.append(("still_present", sentence))
        elif wrong:
            problems.append(("not_once_per_layer", f"the baseline's {wrong}{where}"))
        elif out_b > out_a:
            ran = f"the candidate ran {claim.removed!r} {out_b} times outside its decode steps"
            sentence = f"{ran}, the baseline {out_a}{where}"
            problems.append(("moved_outside", sentence))
    records = 2 * len(pairs)
    if problems:
        reason, sentence = min(problems, key=lambda p: p[0] == "vacuous")
        if reason == "vacuous":
            return not_run(REMOVED, Evidence.TRACE, reason, sentence, numbers), removed
        return Finding(REMOVED, Evidence.TRACE, Verdict.FAIL, reason, sentence, records, numbers), removed
    each = f"{claim.per_layer} launch{'es' * (claim.per_layer > 1)} in each of {passes} layer passes"
    ranks = f", on all {len(pairs)} ranks" if len(pairs) > 1 else ""
    sentence = f"{claim.removed!r} went from {each} to none{ranks}"
    effect = Effect(1, "kernel launch", f"every launch in {passes} layer passes is counted")
    return Finding(REMOVED, Evidence.TRACE, Verdict.PASS, "removed", sentence, records, numbers, effect), removed


def _removed_names(claim: TraceClaim, counts: RankCounts) -> tuple[frozenset[str], str]:
    """The names that are the removed kernel in A, and what is wrong with their occurrence.

    All names that match and run in layers, where together they are once per layer and step; else the one name that is.
    """
    matching = [k for k in counts.kernels if k.cells and re.search(claim.removed, k.name)]
    if not matching:
        return frozenset(), ""
    for group in (matching, *([kernel] for kernel in matching)):
        if all(cell == claim.per_layer for row in _added(group) for cell in row):
            return frozenset(k.name for k in group), ""
    kernel = max(matching, key=lambda k: k.in_layers)
    cells = kernel.cells
    step, layer = next((s, n) for s, row in enumerate(cells) for n, cell in enumerate(row) if cell != claim.per_layer)
    wrong = (
        f"{_short(kernel.name)} ran {kernel.in_layers} times in {counts.steps} steps of {counts.layers} layers, and "
        f"{cells[step][layer]} times in layer {layer} of step {step}; expected {claim.per_layer} in each"
    )
    return frozenset({kernel.name}), wrong


def _added(group: Sequence[KernelCount]) -> list[list[int]]:
    return [[sum(cell) for cell in zip(*rows, strict=True)] for rows in zip(*(k.cells for k in group), strict=True)]


def _judge_others(claim: TraceClaim, pairs: Sequence[Pair], removed: frozenset[str]) -> Finding:
    """Whether every other kernel kept its count.

    A kernel of the layers must keep its count in the steps. Outside the layers the schedule is not fixed (a trace
    starts and stops in the middle of it, and a copy may take another kernel for another alignment): there a change by
    what one step launches is listed, one by a launch a step or more contradicts the claim, and one in between cannot be
    told from either.
    """
    found: dict[str, list[str]] = {"broken": [], "unclear": [], "jitter": [], "declared": []}
    unchanged = 0
    for a, b in pairs:
        for change in difference(a, b):
            if change.name in removed:
                continue
            severity = _severity(change, a, b)
            if severity is None:
                unchanged += 1
                continue
            if claim.may_change is not None and re.search(claim.may_change, change.name):
                severity = "declared"
            found[severity].append(_change(change, a.rank, len(pairs)))
    broken, unclear, jitter, declared = found.values()
    numbers = {
        "unchanged": unchanged,
        "changed": broken[:_LISTED],
        "changed_count": len(broken),
        "unclear": unclear[:_LISTED],
        "unclear_count": len(unclear),
        "outside_layers_within_one_step": jitter[:_LISTED],
        "declared_to_change": declared[:_LISTED],
    }
    records = 2 * len(pairs)
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        sentence = f"another kernel changed: {broken[0]}{more}"
        return Finding(OTHERS, Evidence.TRACE, Verdict.FAIL, "other_kernels_changed", sentence, records, numbers)
    if unclear:
        sentence = f"a kernel outside the layers changed now and then: {unclear[0]}; record both traces again"
        return Finding(OTHERS, Evidence.TRACE, Verdict.INCONCLUSIVE, "outside_changed", sentence, records, numbers)
    if not unchanged:
        sentence = "the traces hold no kernel but the removed one, so nothing shows that the rest is unchanged"
        return not_run(OTHERS, Evidence.TRACE, "vacuous", sentence)
    edge = f"; {len(jitter)} outside the layers differ by what one step launches" if jitter else ""
    sentence = f"all {unchanged} other kernel counts are unchanged{edge}"
    effect = Effect(1, "kernel launch", "in the layers; outside them, one a decode step")
    return Finding(OTHERS, Evidence.TRACE, Verdict.PASS, "unchanged", sentence, records, numbers, effect)


def _severity(change: Change, a: RankCounts, b: RankCounts) -> str | None:
    before, after = change.a, change.b
    if a.exact and b.exact and any(change.in_layers):
        if change.in_steps[0] != change.in_steps[1]:
            return "broken"
        before, after = change.outside_steps
    moved = abs(before - after)
    if moved == 0:
        return None
    if moved >= a.steps:
        return "broken"
    return "jitter" if before and after and moved <= math.ceil(before / a.steps) else "unclear"


def _judge_ranks(a: Sequence[RankCounts], b: Sequence[RankCounts]) -> Finding:
    """Whether the ranks of one arm ran the same kernels in their layers; between the steps each may do its own."""
    worlds = {c.world_size for c in (*a, *b)} - {None}
    world = max((w for w in worlds if w is not None), default=len(a))
    records = len(a) + len(b)
    numbers = {"ranks": [c.rank for c in sorted(a, key=_rank)], "world_size": world}
    if world > len(a):
        sentence = f"{len(a)} of {world} ranks were traced; expected a trace of every rank"
        return Finding(RANKS, Evidence.TRACE, Verdict.INCONCLUSIVE, "ranks_missing", sentence, records, numbers)
    if len(a) == 1:
        return Finding(RANKS, Evidence.TRACE, Verdict.NOT_APPLICABLE, "one_rank", "one rank ran, so none can disagree")
    for arm, ranks in (("baseline", a), ("candidate", b)):
        first, *others = sorted(ranks, key=_rank)
        for other in others:
            for change in difference(first, other):
                in_first, in_other = change.in_layers
                if in_first != in_other:
                    sentence = (
                        f"the {arm}'s ranks {first.rank} and {other.rank} disagree: {_short(change.name)} ran "
                        f"{in_first} and {in_other} times in their layers"
                    )
                    return Finding(RANKS, Evidence.TRACE, Verdict.FAIL, "ranks_disagree", sentence, records, numbers)
    sentence = f"all {len(a)} ranks of either arm ran the same kernels in their layers"
    effect = Effect(1, "kernel launch", "every launch in the layers of every rank is counted")
    return Finding(RANKS, Evidence.TRACE, Verdict.PASS, "ranks_agree", sentence, records, numbers, effect)


def _launches(counts: RankCounts, names: frozenset[str] | set[str]) -> tuple[int, int]:
    """Launches of ``names`` in decode steps, and outside."""
    chosen = [k for k in counts.kernels if k.name in names]
    return sum(k.in_layers + k.edges for k in chosen), sum(k.outside for k in chosen)


def _concluder(name: str, records: int) -> Callable[..., Finding]:
    def conclude(reason: str, sentence: str, verdict: Verdict = Verdict.INCONCLUSIVE) -> Finding:
        return Finding(name, Evidence.TRACE, verdict, reason, sentence, records)

    return conclude


def _change(change: Change, rank: int, ranks: int) -> str:
    of_steps = change.in_steps[0] != change.in_steps[1]
    before, after = change.in_steps if of_steps else change.outside_steps
    where = "in the steps" if of_steps else "outside them"
    return f"{_short(change.name)} {before} -> {after} {where}" + (f" on rank {rank}" if ranks > 1 else "")


def _by_name(counts: RankCounts) -> Mapping[str, KernelCount]:
    return {kernel.name: kernel for kernel in counts.kernels}


def _rank(counts: RankCounts) -> int:
    return counts.rank


def _ranks(arm: Sequence[RankCounts]) -> str:
    return ", ".join(str(c.rank) for c in sorted(arm, key=_rank))


def _short(name: str) -> str:
    return name if len(name) <= 100 else name[:97] + "..."
