"""Judges kernel evidence: are the bits equal, and did the optimised path really leave the operation out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.records import KernelCell, PathCount
from validation.verdicts import ONE_BIT, Effect, Evidence, Finding, Verdict, not_run

CONTROL_PREFIX = "control_"
"""Checks of this prefix are planted breaks that must be seen; an unseen one makes equality vacuous, not wrong."""
SHOWN = 5
"""Failing checks named in a sentence; all of them are in the records."""


def judge_kernels(
    cells: Sequence[KernelCell],
    paths: Sequence[PathCount],
    declared: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str] | None = None,
) -> list[Finding]:
    """``kernel_bits.<case>`` for each case, and ``path_proof.<case>`` where the case removes an operation.

    ``declared`` holds each case's ``cells`` (ids, so that a deselected one is missed and not forgotten) and whether it
    needs a ``path_proof``; ``missing`` says by case which package was not there. Equality without a path proof is
    NOT_RUN: both arms may have taken the same path.
    """
    findings = []
    for case, declaration in declared.items():
        names: Sequence[str] = declaration["cells"]
        lacking = (missing or {}).get(case, "")
        own_cells = {cell.cell: cell for cell in cells if cell.case == case}
        own_paths = [path for path in paths if path.case == case]
        absent = [name for name in names if name not in own_cells]
        applies = bool(absent) or any(cell.applicable for cell in own_cells.values())
        needed = declaration["path_proof"] and applies
        proof = _path_finding(case, own_cells, own_paths, absent, lacking) if needed else None
        findings.append(_bits_finding(case, own_cells, absent, proof, lacking))
        if proof is not None:
            findings.append(proof)
    return findings


def _bits_finding(
    case: str, cells: Mapping[str, KernelCell], absent: Sequence[str], proof: Finding | None, missing: str
) -> Finding:
    name, evidence = f"kernel_bits.{case}", Evidence.KERNEL_BITS
    applicable = [cell for cell in cells.values() if cell.applicable]
    checks = [(cell.cell, check) for cell in applicable for check in cell.checks]
    controls = [(cell, check) for cell, check in checks if check.name.startswith(CONTROL_PREFIX)]
    unequal = [(cell, c) for cell, c in checks if not c.equal and not c.name.startswith(CONTROL_PREFIX)]
    blind = [(cell, check) for cell, check in controls if not check.equal]
    numbers = {
        "cells": len(cells) + len(absent),
        "cells_compared": len(applicable),
        "cells_not_applicable": len(cells) - len(applicable),
        "cells_missing": len(absent),
        "checks": len(checks) - len(controls),
        "checks_unequal": len(unequal),
        "controls_seen": len(controls) - len(blind),
    }

    def finding(verdict: Verdict, reason: str, sentence: str) -> Finding:
        return Finding(name, evidence, verdict, reason, sentence, len(applicable), numbers, ONE_BIT)

    if unequal:
        shown = "; ".join(f"{cell}: {check.name}: {check.detail}" for cell, check in unequal[:SHOWN])
        return finding(
            Verdict.FAIL, "bits_differ", f"{len(unequal)} of {numbers['checks']} comparisons differ: {shown}"
        )
    if absent:
        return not_run(name, evidence, *_absence(absent, len(cells), missing), numbers)
    if not applicable:
        reasons = sorted({cell.reason for cell in cells.values()})
        sentence = f"no cell applies on this machine: {'; '.join(reasons)}"
        return Finding(name, evidence, Verdict.NOT_APPLICABLE, "platform", sentence, 0, numbers)
    if blind:
        return not_run(name, evidence, "vacuous", f"{blind[0][0]}: {blind[0][1].detail}", numbers)
    if proof is not None and proof.verdict is not Verdict.PASS:
        sentence = f"the bits are equal, but the path is not proved ({proof.reason}), so both arms may be the same path"
        return not_run(name, evidence, "no_path_proof", sentence, numbers)
    sentence = f"all {numbers['checks']} comparisons in {len(applicable)} cells are equal bit for bit"
    if numbers["cells_not_applicable"]:
        sentence += f" ({numbers['cells_not_applicable']} cells do not apply here, listed by name)"
    return finding(Verdict.PASS, "equal", sentence)


def _path_finding(
    case: str, cells: Mapping[str, KernelCell], paths: Sequence[PathCount], absent: Sequence[str], missing: str
) -> Finding:
    name, evidence = f"path_proof.{case}", Evidence.PATH_PROOF
    cat = [path for path in paths if path.path == "cat"]
    skip = [path for path in paths if path.path == "skip"]
    numbers = {
        "cells": len({path.cell for path in paths}),
        "methods": sorted({path.method for path in paths}),
        "cat_calls": sum(path.calls for path in cat),
        "cat_removed_launches": sum(path.removed for path in cat),
        "skip_calls": sum(path.calls for path in skip),
        "skip_removed_launches": sum(path.removed for path in skip),
        "skip_launches": sum(path.launches for path in skip),
        "skip_allocated_bytes": sum(path.allocated_bytes for path in skip),
    }
    idle = [path.cell for path in cat if path.removed == 0]
    faults = [
        f"{path.cell}: the cat path ran it {path.removed} times in {path.calls} calls"
        for path in cat
        if path.removed not in (0, path.calls)
    ]
    for path in skip:
        for bad, what in (
            (path.removed, f"still ran the removed operation {path.removed} times"),
            (path.launches - path.removed, f"launched {path.launches - path.removed} other operations"),
            (path.allocated_bytes, f"allocated {path.allocated_bytes} bytes"),
            (not path.same_storage, "did not take the fused kernel's own storage"),
        ):
            if bad:
                faults.append(f"{path.cell}: the skip path {what}")
    effect = Effect(1, "launch", "every launch on the path is counted")
    if faults:
        sentence = f"{len(faults)} path counts are wrong: {'; '.join(faults[:SHOWN])}"
        return Finding(name, evidence, Verdict.FAIL, "path_not_removed", sentence, len(paths), numbers, effect)
    if absent:
        return not_run(name, evidence, *_absence(absent, len(cells), missing), numbers)
    if not cat or not skip:
        return not_run(name, evidence, "no_path_proof", "no launches were counted on both paths", numbers)
    if idle:
        sentence = f"the cat path never ran the operation that the skip path removes, first in {idle[0]}"
        return not_run(name, evidence, "no_path_proof", sentence, numbers)
    sentence = (
        f"the cat path ran the removed operation once per call ({numbers['cat_removed_launches']} in "
        f"{numbers['cat_calls']}), the skip path never "
        f"({numbers['skip_calls']} calls, nothing launched, nothing allocated)"
    )
    return Finding(name, evidence, Verdict.PASS, "proved", sentence, len(paths), numbers, effect)


def _absence(absent: Sequence[str], present: int, missing: str) -> tuple[str, str]:
    if missing:
        return "package_missing", missing
    sentence = f"{len(absent)} of {len(absent) + present} declared cells were not run, the first {absent[0]}"
    return "deselected" if present else "not_gathered", sentence
