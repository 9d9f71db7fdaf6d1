"""How a defect is planted, run through the suite and held to the verdict that it must get."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import torch

from validation.discovery import ROOT, load_leaf
from validation.judging.kernel import judge_kernels
from validation.kernel_cell import Cell, run_cell, run_producers
from validation.kernel_variants import variant_of
from validation.operations import QUERY_PATHS, Consumer, FusedInputs, FusedOutputs, Producer, Provider
from validation.records import KernelCell, PathCount
from validation.verdicts import Finding, Verdict

CPU = torch.device("cpu")
TORCH: Provider = load_leaf(ROOT / "kernels/providers/torch_ops.py").PROVIDER
AITER: Provider = load_leaf(ROOT / "kernels/providers/aiter_triton.py").PROVIDER


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the suite said: its findings, and the comparisons that differ with their detail."""

    findings: Sequence[Finding]
    unequal: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Defect:
    """One planted defect and what the suite must say of it."""

    name: str
    where: str
    """What is patched: ``query path``, ``producer``, ``consumer``, ``gate`` or ``scale``."""
    run: Callable[[], Outcome]
    finding: str
    verdict: Verdict
    reason: str
    check: str = ""
    """A comparison that must differ; empty where the finding rests on counts."""
    likely: str = ""
    """The class that this comparison must name; empty where it names none."""

    def shortfall(self, outcome: Outcome) -> str:
        """What the suite failed to say; empty where the defect is caught."""
        said = {f.name: (f.verdict, f.reason) for f in outcome.findings}.get(self.finding)
        if said != (self.verdict, self.reason):
            return f"{self.finding} is {said}, expected {(self.verdict, self.reason)}"
        if self.check and self.check not in outcome.unequal:
            return f"{self.check} is equal, and only {sorted(outcome.unequal)} differ"
        if self.likely and not outcome.unequal[self.check].endswith(f"likely {self.likely}"):
            return f"{self.check} says {outcome.unequal[self.check]!r}, expected likely {self.likely}"
        return ""


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A change that alters nothing that is claimed."""

    name: str
    where: str
    run: Callable[[], Outcome]

    def alarm(self, outcome: Outcome) -> str:
        """What the suite flagged; empty where it flagged nothing, as it must."""
        flagged = [f"{f.name} is {f.verdict.value} ({f.reason})" for f in outcome.findings if f.verdict != "PASS"]
        return "; ".join(flagged + [f"{name}: {detail}" for name, detail in outcome.unequal.items()])


@dataclasses.dataclass(frozen=True)
class PatchedProducer:
    """A producer behind a change of what it is given or of what it gives."""

    inputs: Callable[[FusedInputs], FusedInputs] = lambda inputs: inputs
    outputs: Callable[[FusedInputs, FusedOutputs], FusedOutputs] = lambda inputs, outputs: outputs
    inner: Provider = TORCH

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """As the producer behind it."""
        return ""

    def fused_qk_rope_cat_and_cache_mla(self, inputs: FusedInputs) -> FusedOutputs:
        """Both changes around the producer behind it."""
        given = self.inputs(inputs)
        assert self.inner.producer is not None
        return self.outputs(given, self.inner.producer.fused_qk_rope_cat_and_cache_mla(given))


@dataclasses.dataclass(frozen=True)
class PatchedConsumer:
    """The torch consumer behind a change of its query, its cache or its output."""

    query: Callable[[torch.Tensor], torch.Tensor] = lambda q_all: q_all
    cache: Callable[[torch.Tensor], torch.Tensor] = lambda kv_cache: kv_cache
    output: Callable[[torch.Tensor], torch.Tensor] = lambda attention: attention

    def unsupported(self, query: torch.dtype, cache: torch.dtype) -> str:
        """As torch's consumer."""
        return ""

    def prepare(self, shapes: object) -> None:
        """Nothing to compile."""

    def sparse_mla(
        self, q_all: torch.Tensor, kv_cache: torch.Tensor, indices: torch.Tensor, softmax_scale: float
    ) -> torch.Tensor:
        """The changes around torch's consumer."""
        assert TORCH.consumer is not None
        attention = TORCH.consumer.sparse_mla(self.query(q_all), self.cache(kv_cache), indices, softmax_scale)
        return self.output(attention)


Query = Callable[[torch.Tensor], torch.Tensor]


def paths(
    *,
    cat: Query | None = None,
    skip: Query | None = None,
    producer: Producer | None = None,
    consumer: Consumer | None = None,
    variant: str = "plain",
    tokens: int = 3,
    dtype: str = "bf16",
) -> Outcome:
    """A cell of the cat and skip paths with some parts patched, run and judged; torch stands for every other part."""
    cell = Cell("cat_skip", "producer", "consumer", tokens, 8, dtype, dtype, variant, topk=64)
    providers = {
        "producer": Provider("producer", "planted", producer=producer or TORCH.producer),
        "consumer": Provider("consumer", "planted", consumer=consumer or TORCH.consumer),
    }
    patched = {name: query for name, query in (("cat", cat), ("skip", skip)) if query is not None}
    with mock.patch.dict(QUERY_PATHS, patched):
        record, counts = run_cell(cell, variant_of(cell), providers, CPU)
    return judged(record, counts)


def tie(
    producer: Producer, *, variant: str = "plain", tokens: int = 3, dtype: str = "bf16", cache: str = ""
) -> Outcome:
    """A producer against torch's operations, as the case ``torch_tie`` compares AITER with them."""
    cell = Cell("torch_tie", "producer", "reference", tokens, 8, dtype, cache or dtype, variant)
    providers = {"producer": Provider("producer", "planted", producer=producer), "reference": TORCH}
    return judged(run_producers(cell, variant_of(cell), providers, CPU), None)


def judged(record: KernelCell, counts: Sequence[PathCount] | None) -> Outcome:
    """The findings of one record; ``None`` for counts where the case removes nothing."""
    declared = {record.case: {"cells": [record.cell], "path_proof": counts is not None}}
    findings = judge_kernels([record], counts or [], declared)
    return Outcome(findings, {check.name: check.detail for check in record.checks if not check.equal})


def bits(change: Callable[[torch.Tensor], torch.Tensor]) -> Query:
    """``change`` applied to a copy of a 16-bit tensor's patterns."""
    return lambda tensor: change(tensor.clone().view(torch.int16)).view(tensor.dtype)


def noise_of(tensor: torch.Tensor, call: int) -> torch.Tensor:
    """A seeded 0 or 1 for each element, another one with each ``call``; int16."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"noise {call}".encode()))
    return torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int16)
