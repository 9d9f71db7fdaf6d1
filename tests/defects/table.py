"""The published table of planted defects: what the suite caught, what it missed, and what it flagged wrongly.

``python -m tests.defects.table`` runs the catalogue and rewrites docs/defects.md; a test holds the page to it.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

from tests.defects import gate_defects, kernel_defects, kernel_rewrites, scale_defects
from tests.defects.planting import Defect, Outcome, Rewrite

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "defects.md"
DEFECTS: tuple[Defect, ...] = (*kernel_defects.DEFECTS, *gate_defects.DEFECTS, *scale_defects.DEFECTS)
REWRITES: tuple[Rewrite, ...] = (*kernel_rewrites.REWRITES, *gate_defects.REWRITES, *scale_defects.REWRITES)

HEAD = """# Defects that the kernel tier must catch

Each row is a small change of one part: of the query path, of the fused producer, of the attention, of SGLang's gates
(in the source of a miniature release), or of the activation scale and its tag. It runs through the cells and judges of
`pytest -m kernel`, on a CPU, with torch's operations for every other part. *Caught* means that the finding has the
verdict and the reason given here and that the comparison named here differs and names this class. The second table
holds rewrites that change nothing of what is claimed; flagging one is a false alarm. `python -m tests.defects.table`
runs everything and writes this page.

**{summary}**

## Defects

| in | defect | finding | verdict | reason | comparison | likely | result |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
MIDDLE = """
## Equivalent rewrites

| in | rewrite | result |
| --- | --- | --- |
"""
TAIL = """
## What this does not show

The cat and skip paths are compared with each other, so a fault that both share is seen only where something else holds
the part: q_nope is compared with the input on any hardware, and everything the producer writes is compared with torch's
operations in the case `torch_tie`, which needs AITER's interpreted kernel. A compiled kernel contracts multiplications
and additions, so on a GPU no bits of its rotation are demanded. An attention that is wrong in the same way for both
paths is not a fault of this change, and nothing here looks for it.
"""


@functools.cache
def outcome(planted: Defect | Rewrite) -> Outcome:
    """What the suite says of one row, run once a process."""
    return planted.run()


def page(defects: Sequence[Defect], rewrites: Sequence[Rewrite]) -> str:
    """The page, from running every row."""
    missed = [defect for defect in defects if defect.shortfall(outcome(defect))]
    alarms = [rewrite for rewrite in rewrites if rewrite.alarm(outcome(rewrite))]
    summary = (
        f"{len(defects) - len(missed)} of {len(defects)} defects caught, {len(missed)} missed; "
        f"{len(alarms)} false alarms on {len(rewrites)} equivalent rewrites."
    )
    rows = [
        _row(d.where, _words(d.name), f"`{d.finding}`", d.verdict.value, f"`{d.reason}`",
             f"`{d.check}`" if d.check else "counts or gates", d.likely or "-", "missed" if d in missed else "caught")
        for d in defects
    ]  # fmt: skip
    quiet = [_row(r.where, _words(r.name), "false alarm" if r in alarms else "not flagged") for r in rewrites]
    return "".join([HEAD.format(summary=summary), *rows, MIDDLE, *quiet, TAIL])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    PAGE.write_text(page(DEFECTS, REWRITES), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8").split("**")[1])
