"""One cell of the scale-layout case: the copy before the GEMM against the scale that needs none, bit for bit."""

from __future__ import annotations

import dataclasses
import time
import zlib

import torch

from validation.bits import bits_of, compare, same_storage
from validation.judging.scale_layout import CASE, GEMM_CASE, REPEATS
from validation.observe import POISONS, CountOps, Poison
from validation.records import KernelCell, KernelCheck, PathCount
from validation.scale_layout import (
    TAG_KEPT,
    default_layout,
    for_bpreshuffle,
    for_default,
    is_tagged,
    materialised,
    materialised_bytes,
    restrided,
    storage_order,
    survival,
    tagged,
)
from validation.scale_provider import GROUP, LAYOUT_READER, Gemm, GemmInputs, QuantInputs, QuantOutputs, QuantProducer

WEIGHT_ROWS = 128
"""Output columns of the GEMM cells: one block, because the layout concerns the rows."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One of SGLang's seven call sites of the fused quantisation (0.5.12), with GLM-5's widths."""

    name: str
    where: str
    columns: int
    row_stride: int
    """Elements between rows of the input: wider than ``columns`` where it is a slice of a fused projection."""
    second_columns: int = 0
    residual: bool = False
    with_unquantized: bool = False


@dataclasses.dataclass(frozen=True)
class ScaleCell:
    """One call site at one token count. ``str`` is its test id."""

    site: Site
    tokens: int
    payload: str = "random"
    consumer: str = ""
    """Empty for the bits of the producer, else the GEMM that reads them."""

    def __str__(self) -> str:
        case = f"{GEMM_CASE}-aiter-{self.consumer}" if self.consumer else f"{CASE}-aiter"
        payload = "" if self.payload == "random" else f"-{self.payload}"
        return f"{case}-{self.site.name}-m{self.tokens}{payload}"


def quant_inputs(cell: ScaleCell, device: torch.device) -> QuantInputs:
    """Seeded inputs in the strides of the call site; the payload replaces some of the first input."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{cell.site.name}-m{cell.tokens}".encode()))

    def normal(columns: int, row_stride: int) -> torch.Tensor:
        wide = torch.randn(cell.tokens, row_stride, generator=generator).to(torch.bfloat16).to(device)
        return wide[:, :columns]

    def weight(columns: int) -> torch.Tensor:
        return torch.rand(columns, generator=generator).add(0.5).to(torch.bfloat16).to(device)

    site = cell.site
    inp1 = normal(site.columns, site.row_stride)
    if cell.payload == "zero_rows":
        inp1[::2] = 0.0
        inp1[:, : site.columns // 2] = 0.0
    elif cell.payload == "outliers":
        inp1[:, ::97] *= 1000.0
    elif cell.payload == "nans":
        inp1[0, ::131] = float("nan")
    elif cell.payload == "negative_zeros":
        inp1[:, ::3] = -0.0
    return QuantInputs(
        inp1,
        weight(site.columns),
        normal(site.second_columns, site.row_stride) if site.second_columns else None,
        weight(site.second_columns) if site.second_columns else None,
        normal(site.columns, site.columns) if site.residual else None,
        site.with_unquantized,
    )


def run_bits(
    cell: ScaleCell, producer: QuantProducer, version: str, device: torch.device
) -> tuple[KernelCell, list[PathCount]]:
    """The scale of both byte orders from the real kernel, compared by index and by storage, and the copies counted."""
    started = time.perf_counter()
    inputs = quant_inputs(cell, device)
    before = dataclasses.replace(inputs, inp1=inputs.inp1.clone())
    with Poison(POISONS[0]):
        plain = producer(inputs, False)
    with Poison(POISONS[1]):
        direct = producer(inputs, True)
    with Poison(POISONS[0]):
        again = producer(inputs, True)
    tagged(direct.scale)
    with CountOps(torch.ops.aten.clone.default) as copying:
        copied = for_bpreshuffle(plain.scale)
    with CountOps(torch.ops.aten.clone.default) as passing:
        passed = for_bpreshuffle(direct.scale)
    checks = [
        compare("input_unmodified", before.inp1, inputs.inp1.clone()),
        *_outputs("", plain, direct),
        *_outputs("repeat_", direct, again),
        compare("scale_bytes", copied, passed),
        compare("scale_by_index", plain.scale, _row_major(restrided(direct.scale))),
        compare("successor_copy_bytes", storage_order(copied), storage_order(materialised(plain.scale))),
        _flag(
            "successor_copy_idempotent", _idempotent(plain.scale), "a second application moved bytes or copied again"
        ),
        compare("symmetric_path", plain.scale, _row_major(for_default(direct.scale))),
        _flag("restrided_copies_nothing", same_storage(restrided(direct.scale), direct.scale), "it has other storage"),
        _flag("only_the_direct_scale_is_tagged", not is_tagged(plain.scale) and is_tagged(passed), "the tag is wrong"),
    ]
    checks += (
        _one_token(plain.scale, direct.scale) if cell.tokens == 1 else [_layout_visible(plain.scale, direct.scale)]
    )
    record = _record(CASE, cell, {"producer": version}, checks, started)
    if cell.tokens == 1:
        return record, []  # the copy copies nothing either: there is no path to tell apart
    return record, [
        _count(cell, "cat", copying, same_storage(copied, plain.scale)),
        _count(cell, "skip", passing, same_storage(passed, direct.scale)),
    ]


def _outputs(prefix: str, want: QuantOutputs, got: QuantOutputs) -> list[KernelCheck]:
    pairs = [
        ("q", want.q, got.q),
        ("unquantized", want.unquantized, got.unquantized),
        ("out2", want.out2, got.out2),
        ("residual", want.residual, got.residual),
    ]
    if prefix:
        pairs.append(("scale", want.scale, got.scale))
    return [compare(prefix + name, a, b) for name, a, b in pairs if a is not None and b is not None]


def _row_major(scale: torch.Tensor) -> torch.Tensor:
    """The values by index, in a fresh tensor: with one token the stride between rows is free, views leave it at 1."""
    return torch.empty(scale.shape, dtype=scale.dtype, device=scale.device).copy_(scale)


def _idempotent(scale: torch.Tensor) -> bool:
    once = materialised(scale)
    twice = materialised(once)
    return same_storage(once, twice) and once.stride() == twice.stride()


def _one_token(plain: torch.Tensor, direct: torch.Tensor) -> list[KernelCheck]:
    """With one token both byte orders are one: nothing may be moved, tag or no tag."""
    return [
        compare("one_token_same_bytes", plain, direct),
        compare("one_token_copy_changes_nothing", plain, materialised_bytes(plain)),
        compare("one_token_copy_back_changes_nothing", plain, _row_major(default_layout(direct))),
        compare("one_token_lost_tag_is_harmless", plain, for_bpreshuffle(direct.view(direct.shape))),
    ]


def _layout_visible(plain: torch.Tensor, direct: torch.Tensor) -> KernelCheck:
    seen = not torch.equal(bits_of(plain), bits_of(direct))
    return _flag(
        "control_misread_layout_differs", seen, "both byte orders look alike on this data, so equality is blind"
    )


def run_survival(cell: ScaleCell, producer: QuantProducer, version: str, device: torch.device) -> KernelCell:
    """What each way through Python does to the tag, against what is documented, and what the consumers then read."""
    started = time.perf_counter()
    inputs = quant_inputs(cell, device)
    checks = []
    for row in survival(producer(inputs, False).scale, producer(inputs, True).scale):
        documented = row.operation in TAG_KEPT
        state = f"tag {'kept' if row.tag_kept else 'lost'}, bpreshuffle bytes {'right' if row.bytes_right else 'wrong'}"
        as_documented = row.tag_kept == row.bytes_right == documented
        checks.append(_flag(f"tag_after_{row.operation}", as_documented, f"{state}; documented otherwise"))
        checks.append(
            _flag(f"strides_after_{row.operation}", row.strides_right, "the restrided view reads wrong values")
        )
    return dataclasses.replace(_record(CASE, cell, {"producer": version}, checks, started), cell=SURVIVAL)


SURVIVAL = f"{CASE}-aiter-tag_survival"


def run_gemm(
    cell: ScaleCell,
    producer: QuantProducer,
    gemm: Gemm,
    wants_transposed: bool,
    versions: dict[str, str],
    device: torch.device,
) -> KernelCell:
    """A GEMM fed by either path. Its bits are demanded only if it repeats itself on equal input.

    Args:
        gemm: the consumer.
        wants_transposed: whether it reads the transposed bytes (bpreshuffle) or a default layout by its strides.
        versions: role to provider name and version, for the record.
    """
    started = time.perf_counter()
    inputs = quant_inputs(cell, device)
    plain, direct = producer(inputs, False), producer(inputs, True)
    tagged(direct.scale)
    product = gemm_inputs(cell, plain.q)
    dispatch = for_bpreshuffle if wants_transposed else for_default
    expected = gemm(product, dispatch(plain.scale))
    repeats = torch.equal(bits_of(expected), bits_of(gemm(product, dispatch(plain.scale))))
    checks = [_flag(REPEATS, repeats, "two runs on equal input differ, so no bits can be demanded of the output")]
    if repeats:
        checks.append(compare("output_tagged", expected, gemm(product, dispatch(direct.scale))))
        view = materialised(restrided(direct.scale)) if wants_transposed else restrided(direct.scale)
        checks.append(compare("output_restrided", expected, gemm(product, view)))
        if cell.tokens > 1:
            misread = gemm(product, materialised_bytes(direct.scale) if wants_transposed else direct.scale)
            seen = not torch.equal(bits_of(expected), bits_of(misread))
            checks.append(_flag("control_misread_scale_is_seen", seen, "a misread scale leaves the output as it is"))
    return _record(GEMM_CASE, cell, versions, checks, started)


def rehearse(cell: ScaleCell, producer: QuantProducer, reader: Gemm, device: torch.device) -> dict[str, object]:
    """The layout reader's view of a cell, as data for a note: never a ``KernelCell``, because no consumer ran."""
    inputs = quant_inputs(cell, device)
    plain, direct = producer(inputs, False), producer(inputs, True)
    product = gemm_inputs(cell, plain.q)
    expected = reader(product, for_bpreshuffle(plain.scale))
    lost = reader(product, for_bpreshuffle(direct.scale.view(direct.scale.shape)))
    return {
        "reader": LAYOUT_READER,
        "cell": str(cell),
        "tagged_equals_copied": torch.equal(expected, reader(product, for_bpreshuffle(tagged(direct.scale)))),
        "restrided_equals_copied": torch.equal(expected, reader(product, materialised(restrided(direct.scale)))),
        "lost_tag_is_wrong": not torch.equal(expected, lost),
    }


def gemm_inputs(cell: ScaleCell, q: torch.Tensor) -> GemmInputs:
    """Seeded fp8 weights and block scales for the quantised activations ``q`` (M, K)."""
    generator = torch.Generator().manual_seed(zlib.crc32(cell.site.name.encode()))
    w = torch.randn(WEIGHT_ROWS, q.shape[1], generator=generator).to(torch.float8_e4m3fn)
    w_scale = torch.rand(WEIGHT_ROWS // GROUP, q.shape[1] // GROUP, generator=generator) + 0.5
    return GemmInputs(q, w.to(q.device), w_scale.to(q.device))


def symmetric_path_us(tokens: int, groups: int, repeats: int = 200) -> float:
    """Median microseconds of copying a tagged (tokens, groups) scale back, replayed from a CUDA or HIP graph.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("the symmetric path was to be timed without a GPU; run this on one")
    scale = torch.rand(groups, tokens, device="cuda").view(tokens, groups)
    if default_layout(scale).data_ptr() == scale.data_ptr():
        # with one token both layouts are the same bytes, and nothing is launched
        return 0.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            default_layout(scale)
    times: list[float] = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / repeats)
    return sorted(times)[len(times) // 2]


def _record(
    case: str, cell: ScaleCell, providers: dict[str, str], checks: list[KernelCheck], started: float
) -> KernelCell:
    return KernelCell(case, str(cell), True, "", providers, tuple(checks), round(time.perf_counter() - started, 4))


def _count(cell: ScaleCell, path: str, counted: CountOps, same: bool) -> PathCount:
    return PathCount(
        CASE, str(cell), path, "dispatcher", 1, counted.removed, counted.launches, counted.allocated_bytes, same
    )


def _flag(name: str, good: bool, detail: str) -> KernelCheck:
    return KernelCheck(name, good, "" if good else detail)
