"""What a run's records and findings say of one case. Decides nothing, and holds no figure of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from validation.e2e_plan import BASELINE, CANDIDATE
from validation.judgement import Judgement
from validation.records import KernelCell, PathCount
from validation.verdicts import Evidence, Finding, Verdict

REMOVED, SHORT = "cat", "skip"
"""The paths of a ``PathCount``: with the operation, and without it."""

INVARIANTS: Sequence[tuple[str, str]] = (
    (r"control_", "A planted break is seen, so equality means something"),
    (r"repeat_", "A second step on other inputs is as equal: nothing is kept from the step before"),
    (r"replay_", "Captured in a graph and replayed on other inputs, the path gives what it gives eagerly"),
    (r"q_all$", "The consumer is given the same query, bit for bit"),
    (r"attention$", "The attention output is the same, bit for bit"),
    (r"kv_cache", "The KV cache is the same, and nothing is written outside the step's slots"),
    (r"(k_pe|decode_q_pe|q_nope_zeros|q_cat)$", "Everything else that the producer writes is the same"),
    (r"input_.*_unmodified$", "No input is changed"),
    (r"consumer_leaves_", "The consumer changes neither the query nor the cache that it reads"),
    (r"q_nope_kept$", "The fused kernel moves q_nope and changes nothing of it"),
    (r"skip_same_storage$", "The query is the producer's own storage: no copy"),
    (r"scale_(bytes|by_index)$", "The scale written directly is the one that the copy made"),
    (r"one_token_", "With one token both layouts are the same bytes, and no copy changes them"),
    (r"(tag|strides)_after_", "Tag and strides of a scale survive what is done to it as documented"),
)
"""Names of kernel checks (regular expressions, the first that matches) and what they hold, in words."""

TESTS: Sequence[tuple[str, str]] = (
    (r"scale_layout-.*-tag_survival$", "kernels/test_scale_layout.py::test_tag_survives_as_documented"),
    (r"scale_layout_gemm-", "kernels/test_scale_layout.py::test_gemm_reads_either_scale_alike[{cell}]"),
    (r"scale_layout-", "kernels/test_scale_layout.py::test_scale_needs_no_copy[{cell}]"),
    (r"", "kernels/test_cells.py::test_cell[{cell}]"),
)
"""Names of cells (regular expressions, the first that matches) and the id of the test that ran them."""

TENSORS: Mapping[str, tuple[str, tuple[str, ...], str]] = {"cat_skip": ("q_cat", ("q_nope", "q_rope"), "q_all")}
"""What the diagram calls the producer's output, the slices passed on, and what the consumer reads."""
_TENSORS_ELSE = ("output", (), "input")
_OF_A_CASE = frozenset({Evidence.KERNEL_BITS, Evidence.PATH_PROOF})


@dataclasses.dataclass(frozen=True)
class About:
    """What the case says of itself."""

    claim: str
    source: str
    removed_op: str
    """As the dispatcher names it; empty where the case does not say."""


@dataclasses.dataclass(frozen=True)
class PathPair:
    """The launches and bytes of one cell on both paths."""

    cell: str
    removed: PathCount
    short: PathCount


@dataclasses.dataclass(frozen=True)
class Invariant:
    """What must hold, how often it was checked, and where it did not hold."""

    sentence: str
    checks: tuple[str, ...]
    held: int
    cells: int
    broken: tuple[str, ...]
    """``cell: check: detail`` of each that failed."""
    test: str
    """The id of one test that checks it."""


@dataclasses.dataclass(frozen=True)
class KernelRow:
    """One kernel of the layers in the traces of both arms: launches a layer pass."""

    name: str
    baseline: float
    candidate: float


@dataclasses.dataclass(frozen=True)
class CasePage:
    """Everything that the page shows."""

    case: str
    judgement: Judgement
    about: About | None
    tensors: tuple[str, tuple[str, ...], str]
    providers: Mapping[str, str]
    pairs: tuple[PathPair, ...]
    invariants: tuple[Invariant, ...]
    kernels: tuple[KernelRow, ...]
    findings: tuple[Finding, ...]
    not_applicable: tuple[tuple[str, str], ...]
    """Cells that do not apply here, and why."""

    @property
    def shown(self) -> PathPair | None:
        """The pair of the diagram: the cell whose removed operation wrote the most bytes."""
        return max(self.pairs, key=lambda pair: pair.removed.allocated_bytes, default=None)


def cases_of(judgement: Judgement) -> list[str]:
    """The cases whose paths the run counted, in order of appearance."""
    return list(dict.fromkeys(path.case for path in judgement.paths))


def page_of(judgement: Judgement, case: str, about: About | None = None) -> CasePage:
    """What ``judgement`` says of ``case``.

    Raises:
        ValueError: the run holds no cell and no path count of the case.
    """
    cells = [cell for cell in judgement.cells if cell.case == case]
    pairs = _pairs([path for path in judgement.paths if path.case == case])
    if not cells and not pairs:
        known = ", ".join(dict.fromkeys(cell.case for cell in judgement.cells)) or "none"
        raise ValueError(f"the run holds no kernel cell of case {case!r}; it holds those of {known}")
    drawn = max(pairs, key=lambda pair: pair.removed.allocated_bytes, default=None)
    applicable = [cell for cell in cells if cell.applicable]
    of_drawn = [cell for cell in applicable if drawn is not None and cell.cell == drawn.cell]
    return CasePage(
        case=case,
        judgement=judgement,
        about=about,
        tensors=TENSORS.get(case, _TENSORS_ELSE),
        providers=(of_drawn or applicable or cells)[0].providers if cells else {},
        pairs=pairs,
        invariants=_invariants(applicable),
        kernels=_kernels(judgement),
        findings=tuple(f for f in judgement.findings if f.evidence not in _OF_A_CASE or f.name.endswith(f".{case}")),
        not_applicable=tuple((cell.cell, cell.reason) for cell in cells if not cell.applicable),
    )


def _pairs(paths: Sequence[PathCount]) -> tuple[PathPair, ...]:
    by_cell: dict[str, dict[str, PathCount]] = {}
    for path in paths:
        by_cell.setdefault(path.cell, {})[path.path] = path
    both = {cell: found for cell, found in by_cell.items() if {REMOVED, SHORT} <= set(found)}
    return tuple(PathPair(cell, found[REMOVED], found[SHORT]) for cell, found in both.items())


def _invariants(cells: Sequence[KernelCell]) -> tuple[Invariant, ...]:
    """The checks of all cells by what they hold; a check that nobody described stands under its own name."""
    found: dict[str, list[tuple[KernelCell, str, bool, str]]] = {sentence: [] for _, sentence in INVARIANTS}
    for cell in cells:
        for check in cell.checks:
            sentence = next((text for pattern, text in INVARIANTS if re.match(pattern, check.name)), check.name)
            found.setdefault(sentence, []).append((cell, check.name, check.equal, check.detail))
    return tuple(
        Invariant(
            sentence=sentence,
            checks=tuple(dict.fromkeys(name for _, name, _, _ in rows)),
            held=sum(equal for _, _, equal, _ in rows),
            cells=len({cell.cell for cell, _, _, _ in rows}),
            broken=tuple(f"{cell.cell}: {name}: {detail}" for cell, name, equal, detail in rows if not equal),
            test=_test_of(rows[0][0].cell),
        )
        for sentence, rows in found.items()
        if rows
    )


def _test_of(cell: str) -> str:
    return next(test for pattern, test in TESTS if re.match(pattern, cell)).format(cell=cell)


def _kernels(judgement: Judgement) -> tuple[KernelRow, ...]:
    """Launches a layer pass of every kernel in the layers, on the first rank of the traces; changed ones first."""
    notes = {note.data["arm"]: note.data for note in judgement.notes if note.topic == "trace_counts"}
    if set(notes) != {BASELINE, CANDIDATE} or not all(data["ranks"] for data in notes.values()):
        return ()
    counts = [_per_pass(notes[arm]["ranks"][0]) for arm in (BASELINE, CANDIDATE)]
    names = dict.fromkeys(name for count in counts for name in count)
    rows = [KernelRow(name, counts[0].get(name, 0.0), counts[1].get(name, 0.0)) for name in names]
    return tuple(sorted(rows, key=lambda row: row.baseline == row.candidate))


def _per_pass(rank: Mapping[str, Any]) -> dict[str, float]:
    passes = rank["steps"] * rank["layers"]
    sums = {kernel["name"]: sum(map(sum, kernel["cells"])) for kernel in rank["kernels"]}
    return {name: total / passes for name, total in sums.items() if total and passes}


def invariant_verdict(invariant: Invariant) -> Verdict:
    """How one invariant is marked."""
    return Verdict.FAIL if invariant.broken else Verdict.PASS
