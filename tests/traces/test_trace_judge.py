"""The verdict on two real traces, and on each planted defect the verdict it must get."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from validation.judging.trace import (
    OTHERS,
    RANKS,
    REMOVED,
    KernelCount,
    RankCounts,
    TraceClaim,
    difference,
    judge_trace,
    unreadable,
)
from validation.traces.counts import count_kernels, count_ranks
from validation.traces.reader import TraceError, read_trace
from validation.traces.steps import find_steps
from validation.verdicts import Evidence, Finding, Verdict

CLAIM = TraceClaim("concat_mla_absorb_q_kernel", layers=8, steps=6)
Json = dict[str, Any]
Change = Callable[[list[Json]], None]


def _verdicts(findings: list[Finding]) -> dict[str, tuple[Verdict, str]]:
    return {finding.name: (finding.verdict, finding.reason) for finding in findings}


def test_two_real_traces_show_the_kernel_removed_and_nothing_else_changed(
    arms: tuple[pathlib.Path, pathlib.Path],
) -> None:
    a, b = (count_ranks(path, CLAIM) for path in arms)
    findings = judge_trace(CLAIM, a, b)
    assert _verdicts(findings) == {
        REMOVED: (Verdict.PASS, "removed"),
        OTHERS: (Verdict.PASS, "unchanged"),
        RANKS: (Verdict.NOT_APPLICABLE, "one_rank"),
    }
    changes = difference(a[0], b[0])
    changed = {change.name.split("(")[0]: (change.a, change.b) for change in changes if change.a != change.b}
    assert changed == {"concat_mla_absorb_q_kernel": (48, 0)}
    same = [(c.a, c.b) for c in changes if "CatArrayBatchedCopy_vectorized" in c.name]
    assert same == [(15, 15)]
    assert all(finding.evidence is Evidence.TRACE for finding in findings)


def test_durations_are_compared_too(arms: tuple[pathlib.Path, pathlib.Path]) -> None:
    a, b = (count_ranks(path, CLAIM)[0] for path in arms)
    attention = next(change for change in difference(a, b) if change.name == "main_kernel")
    assert attention.a_mean_us == pytest.approx(98.87, abs=0.01)
    assert attention.b_mean_us == pytest.approx(99.18, abs=0.01)


def _kernels(events: list[Json], name: str) -> list[Json]:
    return [e for e in events if e.get("cat") == "kernel" and name in e["name"]]


def _copy_of(event: Json, name: str) -> Json:
    twin = copy.deepcopy(event)
    twin["name"] = name
    twin["ts"] += 0.001
    return twin


def _leave_one_cat(events: list[Json]) -> None:
    events.append(_copy_of(_kernels(events, "main_kernel")[20], "concat_mla_absorb_q_kernel(bf16*)"))


def _leave_one_cat_outside(events: list[Json]) -> None:
    events.append(_copy_of(_kernels(events, "alloc_decode_kernel")[2], "concat_mla_absorb_q_kernel(bf16*)"))


def _extra_kernel_in_a_layer(events: list[Json]) -> None:
    events.append(_copy_of(_kernels(events, "main_kernel")[20], "an_extra_copy"))


def _one_more_of_a_known_kernel(events: list[Json]) -> None:
    gemm = _kernels(events, "nvjet_sm90_tst_192x16_64x8_2x1_v_bz_splitK_TNT")[9]
    events.append(_copy_of(gemm, gemm["name"]))


def _renamed_kernel(events: list[Json]) -> None:
    for event in _kernels(events, "_act_quant_kernel"):
        event["name"] = "_act_quant_kernel_v2"


def _renamed_cat(events: list[Json]) -> None:
    for event in _kernels(events, "main_kernel"):
        events.append(_copy_of(event, "CatArrayBatchedCopy<OpaqueType<2u>>"))


def _new_kernel_every_step_outside(events: list[Json]) -> None:
    for event in _kernels(events, "alloc_decode_kernel"):
        events.append(_copy_of(event, "an_extra_copy"))


def _new_kernel_once_outside(events: list[Json]) -> None:
    events.append(_copy_of(_kernels(events, "alloc_decode_kernel")[2], "an_extra_copy"))


def _one_fewer_outside(events: list[Json]) -> None:
    events.remove(_kernels(events, "CatArrayBatchedCopy_vectorized")[0])


def _step_without_annotation(events: list[Json]) -> None:
    events.remove(next(e for e in events if e.get("cat") == "user_annotation"))


def _whole_step_missing(events: list[Json]) -> None:
    last = max(e["args"]["correlation"] for e in _kernels(events, "main_kernel"))
    events[:] = [e for e in events if e.get("args", {}).get("correlation") != last]


def _no_steps(events: list[Json]) -> None:
    events[:] = [e for e in events if "annotation" not in e.get("cat", "") and "GraphLaunch" not in e["name"]][:500]


def _other_profiler(events: list[Json]) -> None:
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            event["name"] = event["name"].replace("cuda", "hip").replace("cuLaunch", "hipLaunch")


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (_leave_one_cat, {REMOVED: (Verdict.FAIL, "still_present")}),
        (_leave_one_cat_outside, {REMOVED: (Verdict.FAIL, "moved_outside")}),
        (_extra_kernel_in_a_layer, {OTHERS: (Verdict.FAIL, "other_kernels_changed")}),
        (_one_more_of_a_known_kernel, {OTHERS: (Verdict.FAIL, "other_kernels_changed")}),
        (_renamed_kernel, {OTHERS: (Verdict.FAIL, "other_kernels_changed")}),
        (_renamed_cat, {OTHERS: (Verdict.FAIL, "other_kernels_changed")}),
        (_new_kernel_every_step_outside, {OTHERS: (Verdict.FAIL, "other_kernels_changed")}),
        (_new_kernel_once_outside, {OTHERS: (Verdict.INCONCLUSIVE, "outside_changed")}),
        (_one_fewer_outside, {REMOVED: (Verdict.PASS, "removed"), OTHERS: (Verdict.PASS, "unchanged")}),
        (_step_without_annotation, {REMOVED: (Verdict.INCONCLUSIVE, "steps_unexpected")}),
        (_whole_step_missing, {REMOVED: (Verdict.INCONCLUSIVE, "layers_not_found")}),
        (_no_steps, {REMOVED: (Verdict.INCONCLUSIVE, "steps_not_found")}),
        (_other_profiler, {REMOVED: (Verdict.INCONCLUSIVE, "profilers_differ")}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_defect_planted_in_the_candidate_gets_its_verdict(
    plant: Change,
    expected: dict[str, tuple[Verdict, str]],
    cat_path: pathlib.Path,
    skip_path: pathlib.Path,
    load: Callable[[pathlib.Path], Json],
    save: Callable[..., pathlib.Path],
) -> None:
    data = load(skip_path)
    if plant is _other_profiler:
        del data["cupti_version"]
    plant(data["traceEvents"])
    found = _verdicts(judge_trace(CLAIM, count_ranks(cat_path, CLAIM), count_ranks(save(data), CLAIM)))
    assert {name: found.get(name) for name in expected} == expected


def _drop_one_cat(events: list[Json]) -> None:
    events.remove(_kernels(events, "concat_mla")[13])


def _cat_twice_in_one_layer(events: list[Json]) -> None:
    first, second, *_ = _kernels(events, "concat_mla")
    second["ts"] = first["ts"] + 0.001


@pytest.mark.parametrize("plant", [_drop_one_cat, _cat_twice_in_one_layer], ids=["one-missing", "one-in-another-layer"])
def test_a_baseline_that_concatenates_irregularly_fails(
    plant: Change,
    cat_path: pathlib.Path,
    skip_path: pathlib.Path,
    load: Callable[[pathlib.Path], Json],
    save: Callable[..., pathlib.Path],
) -> None:
    data = load(cat_path)
    plant(data["traceEvents"])
    removed, *_ = judge_trace(CLAIM, count_ranks(save(data), CLAIM), count_ranks(skip_path, CLAIM))
    assert (removed.verdict, removed.reason) == (Verdict.FAIL, "not_once_per_layer")
    assert "in layer" in removed.sentence


def test_swapped_arms_fail(cat_path: pathlib.Path, skip_path: pathlib.Path) -> None:
    removed, *_ = judge_trace(CLAIM, count_ranks(skip_path, CLAIM), count_ranks(cat_path, CLAIM))
    assert (removed.verdict, removed.reason) == (Verdict.FAIL, "arms_swapped")


@pytest.mark.parametrize("pattern", ["CatArrayBatchedCopy", "no_such_kernel"], ids=["unrelated-origin", "absent"])
def test_a_kernel_that_never_ran_in_a_layer_proves_nothing(
    pattern: str, cat_path: pathlib.Path, skip_path: pathlib.Path
) -> None:
    claim = TraceClaim(pattern)
    removed, *_ = judge_trace(claim, count_ranks(cat_path, claim), count_ranks(skip_path, claim))
    assert (removed.verdict, removed.reason) == (Verdict.NOT_RUN, "vacuous")


def test_a_matching_kernel_of_another_origin_is_judged_with_the_others(
    cat_path: pathlib.Path, skip_path: pathlib.Path
) -> None:
    claim = TraceClaim("concat_mla_absorb|CatArrayBatchedCopy")
    findings = judge_trace(claim, count_ranks(cat_path, claim), count_ranks(skip_path, claim))
    assert _verdicts(findings)[REMOVED] == (Verdict.PASS, "removed")
    assert findings[1].numbers["unchanged"] == 62


def test_an_arm_without_a_trace_is_not_run(cat_path: pathlib.Path) -> None:
    assert _verdicts(judge_trace(CLAIM, count_ranks(cat_path, CLAIM), [])) == {REMOVED: (Verdict.NOT_RUN, "no_trace")}


def test_a_truncated_trace_is_not_run(cat_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cut.json.gz"
    path.write_bytes(cat_path.read_bytes()[:-100])
    with pytest.raises(TraceError) as caught:
        count_ranks(path, CLAIM)
    finding = unreadable("candidate", str(caught.value))
    assert (finding.verdict, finding.reason) == (Verdict.NOT_RUN, "trace_unreadable")
    assert "byte" in finding.sentence


def test_two_ranks_that_agree_pass(cat_path: pathlib.Path, skip_path: pathlib.Path) -> None:
    a, b = (_ranks(count_ranks(path, CLAIM)[0]) for path in (cat_path, skip_path))
    findings = judge_trace(CLAIM, a, b)
    assert _verdicts(findings)[RANKS] == (Verdict.PASS, "ranks_agree")
    assert findings[0].sentence.endswith("on all 2 ranks")


def _ranks(counts: RankCounts) -> list[RankCounts]:
    return [dataclasses.replace(counts, rank=rank, world_size=2, source=f"rank{rank}") for rank in (0, 1)]


def _one_more(counts: RankCounts, name: str) -> RankCounts:
    """One more launch in the first layer of the first step."""

    def changed(kernel: KernelCount) -> KernelCount:
        first, *rest = kernel.cells
        return dataclasses.replace(kernel, cells=((first[0] + 1, *first[1:]), *rest)) if kernel.name == name else kernel

    return dataclasses.replace(counts, kernels=tuple(changed(k) if k.cells else k for k in counts.kernels))


def test_a_rank_that_disagrees_fails_and_is_named(cat_path: pathlib.Path, skip_path: pathlib.Path) -> None:
    a, b = (_ranks(count_ranks(path, CLAIM)[0]) for path in (cat_path, skip_path))
    a[1], b[1] = _one_more(a[1], "main_kernel"), _one_more(b[1], "main_kernel")
    findings = judge_trace(CLAIM, a, b)
    assert _verdicts(findings)[OTHERS] == (Verdict.PASS, "unchanged")
    assert _verdicts(findings)[RANKS] == (Verdict.FAIL, "ranks_disagree")
    assert "ranks 0 and 1 disagree: main_kernel ran 48 and 49 times" in findings[2].sentence


def test_one_rank_that_still_concatenates_fails(cat_path: pathlib.Path, skip_path: pathlib.Path) -> None:
    a, b = (_ranks(count_ranks(path, CLAIM)[0]) for path in (cat_path, skip_path))
    b[1] = dataclasses.replace(a[1], source="rank1")
    removed, *_ = judge_trace(CLAIM, a, b)
    assert (removed.verdict, removed.reason) == (Verdict.FAIL, "still_present")
    assert removed.sentence.endswith("on rank 1")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda ranks: ranks[:1], (REMOVED, Verdict.INCONCLUSIVE, "ranks_missing")),
        (lambda ranks: [ranks[0], ranks[0]], (REMOVED, Verdict.INCONCLUSIVE, "duplicate_rank")),
        (
            lambda ranks: [dataclasses.replace(r, world_size=8) for r in ranks],
            (RANKS, Verdict.INCONCLUSIVE, "ranks_missing"),
        ),
        (lambda ranks: [dataclasses.replace(r, layers=4) for r in ranks], (REMOVED, Verdict.FAIL, "layers_differ")),
        (
            lambda ranks: [dataclasses.replace(r, steps=5) for r in ranks],
            (REMOVED, Verdict.INCONCLUSIVE, "steps_differ"),
        ),
    ],
    ids=["missing", "twice", "world-of-eight", "layers-differ", "steps-differ"],
)
def test_ranks_that_cannot_be_compared_get_their_verdict(
    change: Callable[[list[RankCounts]], list[RankCounts]],
    expected: tuple[str, Verdict, str],
    cat_path: pathlib.Path,
    skip_path: pathlib.Path,
) -> None:
    claim = TraceClaim(CLAIM.removed)
    a, b = (_ranks(count_ranks(path, claim)[0]) for path in (cat_path, skip_path))
    found = _verdicts(judge_trace(claim, a, change(b)))
    assert found[expected[0]] == expected[1:]


def test_a_count_of_390_is_one_a_layer_and_step(kernels_as_trace: Callable[..., pathlib.Path]) -> None:
    def decoder(concat: bool) -> list[tuple[str, float, float]]:
        layer = ["norm", "gemm_qkv", "rope_cat", *(["concat"] if concat else []), "attention", "gemm_out", "experts"]
        names = ["embedding", *(layer * 78), "lm_head", "argmax"] * 5
        return [(name, 10.0 * i, 9.0) for i, name in enumerate(names)]

    claim = TraceClaim("^concat$", layers=78, steps=5)
    a = count_ranks(kernels_as_trace(*decoder(True), name="a.json"), claim)
    b = count_ranks(kernels_as_trace(*decoder(False), name="b.json"), claim)
    removed, others, _ = judge_trace(claim, a, b)
    assert next(k.total for k in a[0].kernels if k.name == "concat") == 390
    assert (removed.verdict, removed.sentence) == (
        Verdict.PASS, "'^concat$' went from 1 launch in each of 390 layer passes to none",
    )  # fmt: skip
    assert others.verdict is Verdict.PASS
    twice = dataclasses.replace(claim, per_layer=2)
    assert judge_trace(twice, a, b)[0].reason == "not_once_per_layer"


def test_a_declared_change_is_reported_and_not_judged(
    cat_path: pathlib.Path,
    skip_path: pathlib.Path,
    load: Callable[[pathlib.Path], Json],
    save: Callable[..., pathlib.Path],
) -> None:
    data = load(skip_path)
    _renamed_kernel(data["traceEvents"])
    claim = dataclasses.replace(CLAIM, may_change="^_act_quant")
    others = judge_trace(claim, count_ranks(cat_path, claim), count_ranks(save(data), claim))[1]
    assert others.verdict is Verdict.PASS
    assert len(others.numbers["declared_to_change"]) == 2


def test_a_step_known_only_by_time_is_judged_on_whole_counts(cat_path: pathlib.Path, skip_path: pathlib.Path) -> None:
    def by_time(path: pathlib.Path) -> RankCounts:
        trace = read_trace(path)
        trace = dataclasses.replace(trace, launches=trace.launches.take(trace.launches.correlation < -1))
        return count_kernels(trace, find_steps(trace, ignore=CLAIM.removed))

    a, b = by_time(cat_path), by_time(skip_path)
    assert not a.exact
    assert _verdicts(judge_trace(CLAIM, [a], [b]))[OTHERS] == (Verdict.PASS, "unchanged")


def test_a_cpu_trace_against_itself_still_concatenates(cpu_path: pathlib.Path) -> None:
    claim = TraceClaim("^aten::cat$", layers=4, steps=3)
    counts = count_ranks(cpu_path, claim)
    removed, *_ = judge_trace(claim, counts, counts)
    assert (removed.verdict, removed.reason) == (Verdict.FAIL, "still_present")


@pytest.mark.parametrize(("removed", "per_layer"), [("(", 1), ("", 1), ("x", 0)], ids=["regex", "empty", "zero"])
def test_a_claim_that_says_nothing_is_refused(removed: str, per_layer: int) -> None:
    with pytest.raises(ValueError, match=r"regular expression|at least once"):
        TraceClaim(removed, per_layer)
