"""Runs kernel cells on the installed providers and journals what they show."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch

from validation.kernel_case import KernelCase
from validation.kernel_cell import DTYPES, Cell, inapplicable, run_cell, run_producers
from validation.operations import Provider, providers
from validation.records import Journal, KernelCell, Note


class ProviderMissing(RuntimeError):  # noqa: N818 (a state of the machine)
    """A library that a cell needs is not installed; the message says what to install."""


def run_and_record(case: KernelCase, cell: Cell, journal: Journal) -> KernelCell:
    """Run one cell and journal its comparisons and path counts.

    Raises:
        ProviderMissing: a library is not installed; no cell is journalled, so it stays NOT_RUN.
    """
    known = _providers()
    for name in (cell.producer, cell.consumer):
        if known[name].missing:
            journal.append(Note("missing", known[name].missing, {"cases": [case.name]}))
            raise ProviderMissing(known[name].missing)
    reason = inapplicable(cell, case.not_applicable(cell), known)
    if reason:
        record = KernelCell(case.name, str(cell), False, reason, {}, (), 0.0)
    elif case.compares == "producers":
        record = run_producers(cell, case.variant_of(cell), known, device())
    else:
        record, counts = run_cell(cell, case.variant_of(cell), known, device())
        for count in counts:
            journal.append(count)
    journal.append(record)
    journal.sync()
    return record


def prepare(pairs: Sequence[tuple[KernelCase, Cell]]) -> None:
    """Compile ahead what the applicable ``pairs`` will consume."""
    known = _providers()
    shapes: dict[str, set[tuple[int, torch.dtype, torch.dtype]]] = {}
    for case, cell in pairs:
        usable = not known[cell.producer].missing and not known[cell.consumer].missing
        if usable and case.compares == "paths" and not inapplicable(cell, case.not_applicable(cell), known):
            shape = (cell.heads, DTYPES[cell.query], DTYPES[cell.cache])
            shapes.setdefault(cell.consumer, set()).add(shape)
    for name, wanted in shapes.items():
        consumer = known[name].consumer
        if consumer is not None:
            consumer.prepare(wanted)


def device() -> torch.device:
    """The first GPU of this process where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def _providers() -> Mapping[str, Provider]:
    return providers()
