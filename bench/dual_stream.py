"""What a second stream costs and gains: one decode program on one stream and on two, profiled and decomposed.

``python bench/dual_stream.py OUT [--layers 8] [--steps 6] [--eager] [--analyse-only]``

Recording needs a CUDA or ROCm GPU and torch alone; the decomposition needs this project and runs anywhere.

A layer has the shape of latent attention with an indexer, as in GLM-5: after a common projection the indexer chooses
256 of 2048 cached tokens, while the query is projected, absorbed and rotated; the attention needs both, so the two
branches fork and join in every layer. Sizes are those of a small batch on one rank, so that a kernel takes a few
microseconds: the regime in which a fork can cost more than it hides. Both arms launch the same kernels on the same
numbers; whether their outputs are equal bit for bit is recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable

import torch

BATCH = 16
HIDDEN = 2048
LATENT = 512
ROPE = 64
HEADS = 16
INDEX_HEADS = 32
INDEX_DIM = 128
CACHED = 2048
CHOSEN = 256
"""Ours: the ratios of GLM-5's attention at an eighth of its top-k, so that one kernel stays near 5 us on an H200."""
ARMS = ("single", "dual")
STEP = f"step[DECODE bs={BATCH}]"
"""SGLang's name for a decode step, which the trace reader knows."""
TIMED_REPLAYS = 200


@dataclasses.dataclass(frozen=True)
class Weights:
    """One layer's weights and caches, all bf16."""

    down: torch.Tensor  # (HIDDEN, LATENT)
    query_up: torch.Tensor  # (LATENT, HEADS * (128 + ROPE))
    absorb: torch.Tensor  # (HEADS, 128, LATENT)
    index_query: torch.Tensor  # (LATENT, INDEX_HEADS * INDEX_DIM)
    index_cache: torch.Tensor  # (BATCH, INDEX_DIM, CACHED)
    cache: torch.Tensor  # (BATCH, CACHED, LATENT + ROPE)
    out: torch.Tensor  # (HEADS * LATENT, HIDDEN)


def make_weights(device: torch.device, generator: torch.Generator) -> Weights:
    """Random weights, scaled so that activations keep their size over any number of layers."""

    def normal(*shape: int, scale: float | None = None) -> torch.Tensor:
        fan_in = shape[-2] ** -0.5
        return (torch.randn(*shape, generator=generator) * (scale or fan_in)).to(torch.bfloat16).to(device)

    return Weights(
        down=normal(HIDDEN, LATENT),
        query_up=normal(LATENT, HEADS * (128 + ROPE)),
        absorb=normal(HEADS, 128, LATENT),
        index_query=normal(LATENT, INDEX_HEADS * INDEX_DIM),
        index_cache=normal(BATCH, INDEX_DIM, CACHED),
        cache=normal(BATCH, CACHED, LATENT + ROPE, scale=8.0),  # the mean of 256 is not lost in bf16
        out=normal(HEADS * LATENT, HIDDEN),
    )


class Program:
    """One decode step of some layers. ``alternate`` is the second stream, or None for one stream."""

    def __init__(self, layers: list[Weights], alternate: torch.cuda.Stream | None) -> None:
        self._layers = layers
        self._alternate = alternate
        self._alive: list[torch.Tensor] = []
        device = layers[0].down.device
        self._rows = torch.arange(BATCH, device=device)[:, None]
        self._cos = torch.linspace(0.0, 1.0, ROPE, device=device, dtype=torch.bfloat16).cos()

    def step(self, hidden: torch.Tensor) -> torch.Tensor:
        """(BATCH, HIDDEN) to (BATCH, HIDDEN), both bf16."""
        # a block freed on one stream could be given to it again while the other still reads it
        self._alive = []
        for weights in self._layers:
            hidden = self._layer(hidden, weights)
        return hidden

    def _layer(self, hidden: torch.Tensor, weights: Weights) -> torch.Tensor:
        normed = self._keep(torch.layer_norm(hidden, (HIDDEN,)))
        latent = self._keep(normed @ weights.down)
        if self._alternate is None:
            chosen = self._indexer(latent, weights)
            query = self._query(latent, weights)
        else:
            main = torch.cuda.current_stream()
            self._alternate.wait_stream(main)
            with torch.cuda.stream(self._alternate):
                chosen = self._indexer(latent, weights)
            query = self._query(latent, weights)
            main.wait_stream(self._alternate)
        return self._keep(hidden + self._attention(query, chosen, weights))

    def _indexer(self, latent: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(BATCH, CHOSEN) int64: the cached tokens with the largest scores."""
        query = self._keep(latent @ weights.index_query).view(BATCH, INDEX_HEADS, INDEX_DIM)
        scores = self._keep(torch.relu(self._keep(torch.bmm(query, weights.index_cache))))
        total = self._keep(scores.sum(dim=1, dtype=torch.float32))
        return self._keep(torch.topk(total, CHOSEN, dim=-1, sorted=False).indices)

    def _query(self, latent: torch.Tensor, weights: Weights) -> torch.Tensor:
        """(BATCH, HEADS, LATENT + ROPE): absorbed and rotated."""
        split = self._keep(latent @ weights.query_up).view(BATCH, HEADS, 128 + ROPE)
        absorbed = self._keep(torch.bmm(split[..., :128].transpose(0, 1), weights.absorb))
        rotated = self._keep(split[..., 128:] * self._cos)
        return self._keep(torch.cat([absorbed.transpose(0, 1), rotated], dim=-1))

    def _attention(self, query: torch.Tensor, chosen: torch.Tensor, weights: Weights) -> torch.Tensor:
        rows = self._keep(weights.cache[self._rows, chosen])
        scores = self._keep(torch.bmm(query, rows.transpose(1, 2)))
        shares = self._keep(torch.softmax(scores, dim=-1))
        mixed = self._keep(torch.bmm(shares, rows[..., :LATENT]))
        return self._keep(torch.tanh(self._keep(mixed.reshape(BATCH, -1) @ weights.out)))

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._alive.append(tensor)
        return tensor


@dataclasses.dataclass(frozen=True)
class Arm:
    """One program that can be run a step at a time, and where its output lies."""

    run: Callable[[], None]
    output: torch.Tensor
    program: Program
    """Kept, because a captured graph writes into its tensors."""


def captured(program: Program, hidden: torch.Tensor) -> Arm:
    """The program as a CUDA graph, as a server decodes."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up: libraries choose and load their kernels outside the capture
        for _ in range(3):
            program.step(hidden)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = program.step(hidden)
    return Arm(graph.replay, output, program)


def eager(program: Program, hidden: torch.Tensor) -> Arm:
    """The program launched kernel by kernel."""
    output = program.step(hidden).clone()

    def run() -> None:
        program.step(hidden)
        torch.cuda.synchronize()  # the tensors of this step are dropped by the next

    for _ in range(3):
        run()
    return Arm(run, output, program)


def step_us(arm: Arm) -> float:
    """The median time of a step without a profiler, in microseconds, by events around each."""
    pairs = [(_event(), _event()) for _ in range(TIMED_REPLAYS)]
    for begin, end in pairs:
        begin.record()
        arm.run()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) * 1000 for begin, end in pairs)
    return float(times[len(times) // 2])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _second_stream(arm: str) -> torch.cuda.Stream | None:
    return torch.cuda.Stream() if arm == "dual" else None  # type: ignore[no-untyped-call]


def profile(arm: Arm, steps: int, path: pathlib.Path) -> None:
    """Write a trace of ``steps`` steps to ``path``."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        arm.run()  # the first step under a profiler is slow, and named so that nobody counts it
        torch.cuda.synchronize()
        for _ in range(steps):
            with torch.profiler.record_function(STEP):
                arm.run()
        torch.cuda.synchronize()
    recorded.export_chrome_trace(str(path))


def record(folder: pathlib.Path, layers: int, steps: int, with_eager: bool) -> None:
    """Write the traces of both arms, and ``dual_stream.json`` with what was measured without a profiler."""
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    weights = [make_weights(device, generator) for _ in range(layers)]
    hidden = torch.randn(BATCH, HIDDEN, generator=generator).to(torch.bfloat16).to(device)
    kinds = {"graph": captured, **({"eager": eager} if with_eager else {})}
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "runtime": f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
        "layers": layers,
        "steps": steps,
    }
    for kind, make in kinds.items():
        arms = {name: make(Program(weights, _second_stream(name)), hidden) for name in ARMS}
        for arm in arms.values():
            arm.run()
        torch.cuda.synchronize()
        facts[f"{kind}_outputs_equal"] = torch.equal(arms["single"].output, arms["dual"].output)
        # alternated, so that a drifting clock does not favour one arm
        rounds = [{name: step_us(arm) for name, arm in arms.items()} for _ in range(3)]
        facts[f"{kind}_step_us"] = {name: [round(times[name], 2) for times in rounds] for name in ARMS}
        for name, arm in arms.items():
            profile(arm, steps, folder / f"dual_stream_{kind}_{name}.json.gz")
    (folder / "dual_stream.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))


def recorded_kinds(folder: pathlib.Path) -> list[str]:
    """``graph`` and ``eager``, as far as ``folder`` holds their traces."""
    return [kind for kind in ("graph", "eager") if (folder / f"dual_stream_{kind}_single.json.gz").exists()]


def unprofiled(folder: pathlib.Path, kind: str) -> str:
    """The step times without a profiler as Markdown: what the profiler's own cost is judged by. Empty where unknown."""
    try:
        facts = json.loads((folder / "dual_stream.json").read_text(encoding="utf-8"))
        times = {name: facts[f"{kind}_step_us"][name] for name in ARMS}
    except (OSError, KeyError):
        return ""
    rows = [f"| {name} | {', '.join(f'{us:.1f}' for us in times[name])} |" for name in ARMS]
    equal = "equal" if facts[f"{kind}_outputs_equal"] else "NOT equal"
    return "\n".join(
        [
            "\n## Without a profiler\n",
            f"{facts['device']}, torch {facts['torch']}, {facts['runtime']}; {facts['layers']} layers a step, median "
            f"of {TIMED_REPLAYS} steps in each of {len(times['single'])} alternated rounds. The outputs are {equal} "
            "bit for bit.\n",
            "| arm | us a step |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def analyse(folder: pathlib.Path) -> None:
    """Decompose the recorded traces: Markdown to standard output and ``dual_stream_KIND.md``, a viewer beside it."""
    from validation.timeline import NamedTrace, to_markdown, to_timeline
    from validation.traces.reader import read_trace

    for kind in recorded_kinds(folder):
        traces = [NamedTrace(name, read_trace(folder / f"dual_stream_{kind}_{name}.json.gz")) for name in ARMS]
        text = to_markdown(traces) + unprofiled(folder, kind)
        print(text)
        (folder / f"dual_stream_{kind}.md").write_text(text, encoding="utf-8")
        (folder / f"dual_stream_{kind}.html").write_text(to_timeline(traces), encoding="utf-8")


def main() -> int:
    """Record, then decompose where this project is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="folder of the traces")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--eager", action="store_true", help="also record the program without a graph")
    parser.add_argument("--analyse-only", action="store_true", help="decompose what OUT holds; needs no GPU")
    options = parser.parse_args()
    if not options.analyse_only:
        if not torch.cuda.is_available():
            print("no GPU was found by torch; record on a machine with one, or give --analyse-only", file=sys.stderr)
            return 2
        with torch.inference_mode():
            record(options.out, options.layers, options.steps, options.eager)
    if not options.analyse_only and importlib.util.find_spec("validation") is None:
        print(f"recorded; to decompose, run this with --analyse-only {options.out} where this project is installed")
        return 0
    if not recorded_kinds(options.out):
        print(f"{options.out} holds no dual_stream_*_single.json.gz; record there first", file=sys.stderr)
        return 2
    analyse(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
