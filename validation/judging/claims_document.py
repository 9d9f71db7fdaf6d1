"""An author's document as data: metric tables and statements, with every decimal as it was printed.

The JSON schema is these dataclasses (a statement is an object with its ``kind``): a ``Figure`` is a string, since
``"21.20"`` keeps its rounding and 21.2 does not; an ``int`` is a count and exact. Texts are labels for the reader;
nothing is decided on their wording, save that equal names of a quantity mean the same quantity.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from validation.judging.claims_figures import Figure

SCHEMA = 1

Better = Literal["lower", "higher"]
Convention = Literal[
    "signed", "reduction", "improvement", "speedup_percent", "speedup_ratio", "difference", "absolute_gain"
]
"""What a change column holds, with b the baseline and c the candidate.

``signed`` 100 (c - b) / b; ``reduction`` 100 (b - c) / b; ``improvement`` whichever of the two is positive when the
candidate is better; ``speedup_percent`` 100 (b / c - 1) and ``speedup_ratio`` b / c for a metric where lower is better,
with c and b exchanged where higher is; ``difference`` c - b and ``absolute_gain`` the improvement, in the table's unit.
"""
RowQuantity = Literal["relative_gain", "absolute_gain", "baseline", "candidate"]
Statistic = Literal[
    "mean_change",
    "median_change",
    "min_change",
    "max_change",
    "geometric_mean_change",
    "change_of_means",
    "average_change",
    "mean_baseline",
    "mean_candidate",
    "geometric_mean_baseline",
    "geometric_mean_candidate",
    "mean_gain",
]
"""``average_change`` is an unnamed average: the mean of the changes or the change of the means. ``mean_gain`` is in the
table's unit, the other changes in its convention."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One scenario. ``at`` is its place along the swept variable (concurrency), within ``group`` (the workload)."""

    name: str
    baseline: Figure | None
    candidate: Figure | None
    change: Figure | None = None
    group: str = ""
    at: Figure | None = None


@dataclasses.dataclass(frozen=True)
class MetricTable:
    """Baseline and candidate of one metric. Equal rows of tables with equal ``metric`` and ``scope`` must agree."""

    name: str
    metric: str
    unit: str
    better: Better
    rows: tuple[Row, ...]
    change: Convention = "signed"
    scope: str = ""
    place: str = ""


@dataclasses.dataclass(frozen=True)
class PerLayerSaving:
    """So much time is saved in each layer of each decode step; ``table`` holds the time of a step."""

    kind: ClassVar[str] = "per_layer_saving"
    name: str
    table: str
    saving: Figure
    unit: str
    layers: int | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class ConstantSaving:
    """The absolute gain is the same in every row. ``noise_percent``: sd of one value, where the author shows it."""

    kind: ClassVar[str] = "constant_saving"
    name: str
    table: str
    noise_percent: Figure | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Trend:
    """``quantity`` falls or rises along ``at`` within each group."""

    kind: ClassVar[str] = "trend"
    name: str
    table: str
    quantity: RowQuantity
    direction: Literal["decreasing", "increasing"]
    place: str = ""


@dataclasses.dataclass(frozen=True)
class LargestGain:
    """No row gains more than ``row``."""

    kind: ClassVar[str] = "largest_gain"
    name: str
    table: str
    row: str
    quantity: RowQuantity = "relative_gain"
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Improvement:
    """Every row gets better; by ``at_least`` and at best ``up_to`` percent, where stated (positive is better)."""

    kind: ClassVar[str] = "improvement"
    name: str
    table: str
    at_least: Figure | None = None
    up_to: Figure | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A statistic over the rows of a table, or of one ``group`` of it."""

    kind: ClassVar[str] = "aggregate"
    name: str
    table: str
    statistic: Statistic
    value: Figure
    group: str | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class SameChange:
    """``metric`` improves by the same percentage as ``table``; ``other_table`` where the document shows it."""

    kind: ClassVar[str] = "same_change"
    name: str
    table: str
    metric: str
    other_table: str | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class KernelCount:
    """Launches of one kernel, before and after, per decode step or per profile of several steps."""

    kind: ClassVar[str] = "kernel_count"
    name: str
    kernel: str
    before: int
    after: int
    per: Literal["step", "profile"]
    per_layer: int = 1
    profiled_steps: int | None = None
    layers: int | None = None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Range:
    """A stated run-to-run range, in the unit of its statement."""

    low: Figure
    high: Figure


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The candidate loses no accuracy. ``runs``: the values behind ``range``, empty where they are not shown."""

    kind: ClassVar[str] = "accuracy"
    name: str
    benchmark: str
    unit: Literal["fraction", "percent"]
    baseline: Figure | None
    candidate: Figure
    questions: int | None = None
    range: Range | None = None
    runs: tuple[Figure, ...] = ()
    runs_per_arm: int = 1
    place: str = ""


@dataclasses.dataclass(frozen=True)
class BitExact:
    """Bit-exact "within" a tolerance, or within noise of unstated size."""

    kind: ClassVar[str] = "bit_exact"
    name: str
    tolerance: Figure | None
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One value of a named quantity; the same name elsewhere, a model fact included, must agree."""

    kind: ClassVar[str] = "quantity"
    name: str
    quantity: str
    value: Figure | int
    unit: str = ""
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A sum or product the author works out. Integers are counts and exact; decimals carry their rounding."""

    kind: ClassVar[str] = "arithmetic"
    name: str
    operation: Literal["sum", "product"]
    terms: tuple[Figure | int, ...]
    result: Figure | int
    unit: str = ""
    place: str = ""


Statement = (
    PerLayerSaving | ConstantSaving | Trend | LargestGain | Improvement | Aggregate | SameChange
    | KernelCount | Accuracy | BitExact | Quantity | Arithmetic
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Claims:
    """What one document claims, and where it is found."""

    schema: int
    title: str
    source: str
    tables: tuple[MetricTable, ...] = ()
    statements: tuple[Statement, ...] = ()

    def table(self, name: str) -> MetricTable:
        """The table of that name; a parsed document holds every table it refers to."""
        return next(table for table in self.tables if table.name == name)


@dataclasses.dataclass(frozen=True)
class Fact:
    """A count that the document's claims rest on, from a source other than the document."""

    name: str
    value: int
    source: str


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What is known of the model, e.g. ``layers``, each with its source."""

    schema: int
    model: str
    facts: tuple[Fact, ...]

    def get(self, name: str) -> Fact | None:
        """The fact of that name, or None."""
        return next((fact for fact in self.facts if fact.name == name), None)
