"""The trace reader against ``orjson.loads`` and against HTA (HolisticTraceAnalysis 0.5.0), on the same files.

``python bench/trace_bench.py TRACE [TRACE] [--hta-python PYTHON] [--repeat 5] [--results OUT] [--answers OUT]``

Each measurement is a fresh process, which times itself after its imports (processor time, for a shared machine) and
reports its peak resident memory above that of the imports; the tools take turns. Two traces are baseline and
candidate; with one, it is compared with itself. ``PYTHON`` is the interpreter of an environment with HTA and pandas
below 3 (with pandas 3, HTA 0.5.0 stops at a trace whose correlation ids are below 128); without it HTA is left out.

HTA rounds times to whole microseconds unless ``HTA_DISABLE_NS_ROUNDING=1``, which its timed runs get, so that numbers
can be compared. What its documented calls say with the rounding and without is asked once, and not timed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

Answer = dict[str, Any]


def loads(paths: list[pathlib.Path]) -> Answer:
    """``orjson.loads`` on the first file, decompression included."""
    import orjson

    data = paths[0].read_bytes()
    trace = orjson.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return {"events": len(trace["traceEvents"])}


def read(paths: list[pathlib.Path]) -> Answer:
    """Our reader on the first file."""
    from validation.traces.reader import read_trace

    return {"events": read_trace(paths[0]).event_count}


def ours(paths: list[pathlib.Path]) -> Answer:
    """Idle time by lane and cause, kernel counts, and the difference of two traces."""
    from validation.judging.trace import difference
    from validation.traces.counts import count_kernels
    from validation.traces.gaps import idle_by_cause, totals, union_gaps
    from validation.traces.reader import read_trace
    from validation.traces.steps import find_steps

    traces = [read_trace(path) for path in paths]
    counts = [count_kernels(trace, find_steps(trace)) for trace in traces]
    positive = sum(total.total_us for total in totals(union_gaps(traces[0])).values() if total.extreme_us > 0)
    return {
        "idle": {
            idle.lane.split(":")[1]: [idle.host_wait_us, idle.kernel_wait_us, idle.other_us]
            for idle in idle_by_cause(traces[0])
        },
        "union_idle_us": positive,
        "counts": {kernel.name: kernel.total for kernel in counts[0].kernels},
        "difference": {change.name: change.b - change.a for change in difference(*counts) if change.a != change.b},
    }


def hta(paths: list[pathlib.Path]) -> Answer:
    """HTA as its documentation uses it: a ``TraceAnalysis`` of each trace, then its difference, which parses again."""
    labelled = import_module("hta.trace_diff").LabeledTrace
    analysis = import_module("hta.trace_analysis").TraceAnalysis
    traces = [analysis(trace_files={0: str(path)}).t for path in paths]
    tables = [trace.get_trace(0) for trace in traces]
    answer = _hta_idle(traces[0], tables[0])
    return {**answer, **_hta_counts([labelled(t=trace) for trace in traces], tables)}


def hta_lean(paths: list[pathlib.Path]) -> Answer:
    """HTA at its cheapest: each trace parsed once, in this process, without its memory profiling."""
    labelled = import_module("hta.trace_diff").LabeledTrace
    traces, summaries = [], []
    for path in paths:
        trace = import_module("hta.common.trace").Trace(trace_files={0: str(path)})
        trace.load_traces(use_multiprocessing=False, use_memory_profiling=False)
        summary = labelled.__new__(labelled)  # its constructor would parse the file again
        summary.s_tab = import_module("pandas").Series(trace.symbol_table.get_sym_table())
        traces.append(trace)
        summaries.append(summary)
    tables = [trace.get_trace(0) for trace in traces]
    return {**_hta_idle(traces[0], tables[0]), **_hta_counts(summaries, tables)}


def _hta_idle(trace: Any, table: Any) -> Answer:
    """The idle-time breakdown, and the idle time of the device: the first half of ``get_temporal_breakdown``."""
    breakdown = import_module("hta.analyzers.breakdown_analysis").BreakdownAnalysis
    on_gpu = table[table["stream"].ne(-1)]
    streams = sorted(on_gpu.stream.unique().tolist())
    idle = breakdown.get_idle_time_breakdown(trace, 30, 0, streams, visualize=False)[0]
    by_stream: dict[str, list[float]] = {}
    for row in idle.itertuples():
        column = ("host_wait", "kernel_wait", "other").index(row.idle_category)
        by_stream.setdefault(str(row.stream), [0.0, 0.0, 0.0])[column] = float(row.idle_time)
    union_idle, _ = breakdown._get_idle_time_for_kernels(on_gpu.copy())
    return {"idle": by_stream, "union_idle_us": float(union_idle)}


def _hta_counts(summaries: list[Any], tables: list[Any]) -> Answer:
    """Counts and their difference.

    What ``compare_traces`` does, without its choice of an iteration: it wants ``ProfilerStep`` annotations, which
    SGLang does not write.
    """
    counts = [
        summary.get_ops_summary(table[table["stream"].ne(-1)]).groupby("name")["counts"].sum()
        for summary, table in zip(summaries, tables, strict=True)
    ]
    changed = counts[1].sub(counts[0], fill_value=0)
    return {
        "counts": {str(name): int(count) for name, count in counts[0].items()},
        "difference": {str(name): int(change) for name, change in changed.items() if change},
    }


def hta_documented(paths: list[pathlib.Path]) -> Answer:
    """What HTA's public calls answer, or the error they end with."""
    analysis = import_module("hta.trace_analysis").TraceAnalysis
    difference = import_module("hta.trace_diff")
    a, b = (analysis(trace_files={0: str(path)}) for path in paths)
    calls: dict[str, Callable[[], Any]] = {
        "temporal_breakdown": lambda: a.get_temporal_breakdown(visualize=False).iloc[0].to_dict(),
        "idle_by_category": lambda: (
            a.get_idle_time_breakdown(visualize=False)[0].groupby("idle_category")["idle_time"].sum().to_dict()
        ),
        "compare_traces": lambda: len(
            difference.TraceDiff.compare_traces(a.t, b.t, device_type=difference.DeviceType.GPU)
        ),
    }
    answer: Answer = {}
    for name, call in calls.items():
        try:
            answer[name] = call()
        except (AssertionError, ValueError) as error:
            answer[name] = f"{type(error).__name__}: {error}".removesuffix(": ")
    return answer


MEASURED: dict[str, Callable[[list[pathlib.Path]], Answer]] = {
    "loads": loads,
    "read": read,
    "ours": ours,
    "hta": hta,
    "hta_lean": hta_lean,
    "hta_documented": hta_documented,
}


def _warm(what: str) -> None:
    """Imports are not what is compared."""
    if what.startswith("hta"):
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        import_module("hta.trace_analysis")
        import_module("hta.trace_diff")
    else:
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        import numpy as np
        import orjson  # noqa: F401

        import validation.traces.counts
        import validation.traces.gaps  # noqa: F401

        np.unique(np.zeros(1))  # imports numpy.ma the first time


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(what: str, paths: list[pathlib.Path], out: pathlib.Path) -> None:
    _warm(what)
    before = _peak_bytes()
    wall, processor = time.perf_counter(), time.process_time()
    answer = MEASURED[what](paths)
    run = {"processor_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}
    out.write_text(json.dumps({**run, "bytes": _peak_bytes() - before, "peak": _peak_bytes(), "answer": answer}))


def _run(what: str, python: str, paths: list[pathlib.Path], rounded: bool = False) -> dict[str, Any]:
    """One measurement in a fresh process."""
    # OpenBLAS's idle threads spin for some milliseconds after their start, which is processor time
    settings = {"HTA_DISABLE_NS_ROUNDING": "0" if rounded else "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "run.json")
        command = [python, __file__, *map(str, paths), "--child", what, "--answers", str(out)]
        subprocess.run(command, check=True, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
        return dict(json.loads(out.read_text()))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {key: statistics.median(run[key] for run in runs) for key in ("processor_s", "wall_s", "bytes", "peak")}
    return {**medians, "runs": [{key: run[key] for key in medians} for run in runs], "answer": runs[0]["answer"]}


def _versions(python: str) -> dict[str, str]:
    """Of the libraries that matter, in the environment of ``python``."""
    code = (
        "import importlib.metadata as m, json\n"
        "wanted = {'HolisticTraceAnalysis', 'pandas', 'numpy', 'orjson'}\n"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in wanted}))"
    )
    return dict(json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True).stdout))


def _ratio(result: dict[str, Any], one: str, other: str, key: str) -> str:
    """Of the medians, and over all pairs of runs the smallest and largest."""
    pairs = [a[key] / max(b[key], 1e-9) for a in result[one]["runs"] for b in result[other]["runs"]]
    return f"{result[one][key] / max(result[other][key], 1e-9):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"


def _agreement(mine: Answer, other: Answer) -> list[str]:
    """Where the two tools' numbers differ."""
    lines = []
    for lane in sorted({*mine["idle"], *other["idle"]}):
        a, b = mine["idle"].get(lane, [0.0] * 3), other["idle"].get(lane, [0.0] * 3)
        if max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.1:
            lines.append(f"idle of stream {lane}: {a} and HTA {b}")
    if abs(mine["union_idle_us"] - other["union_idle_us"]) > 0.1:
        lines.append(f"idle of the device: {mine['union_idle_us']:.3f} us and HTA {other['union_idle_us']:.3f} us")
    for question in ("counts", "difference"):
        a, b = mine[question], other[question]
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        lines += [f"{question} of {name:.90}: {a.get(name)} and HTA {b.get(name)}" for name in names]
    return lines


def _print(result: dict[str, Any]) -> None:
    for name, run in result.items():
        print(
            f"{name:8} {1e3 * run['processor_s']:9.1f} ms processor {1e3 * run['wall_s']:9.1f} ms wall "
            f"{run['bytes'] / 2**20:8.1f} MiB above imports {run['peak'] / 2**20:8.1f} MiB in all"
        )
    print(f"read / orjson.loads: {_ratio(result, 'read', 'loads', 'processor_s')} times the time (aim: at most 2.5)")
    for tool in [name for name in result if name.startswith("hta")]:
        print(f"{tool} / ours: {_ratio(result, tool, 'ours', 'processor_s')} times the time (aim: 10)")
        print(f"{tool} / ours: {_ratio(result, tool, 'ours', 'bytes')} times its memory above imports (aim: 5)")
        print(f"{tool} / ours: {_ratio(result, tool, 'ours', 'peak')} times the memory of the process")
        differences = _agreement(result["ours"]["answer"], result[tool]["answer"])
        print("the numbers agree" if not differences else "\n".join(differences))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=pathlib.Path)
    parser.add_argument("--hta-python", default="")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--results", type=pathlib.Path, help="append the measurements as one line of JSON")
    parser.add_argument("--answers", type=pathlib.Path, help="write what each tool answered")
    parser.add_argument("--child", choices=sorted(MEASURED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    paths = [path.resolve() for path in options.traces * 2][:2]  # HTA looks for a relative path in a folder of its own
    if options.child:
        _child(options.child, paths, options.answers)
        return
    tools = {"loads": sys.executable, "read": sys.executable, "ours": sys.executable}
    if options.hta_python:
        tools |= {"hta": options.hta_python, "hta_lean": options.hta_python}
    load = os.getloadavg()
    rounds = [{name: _run(name, python, paths) for name, python in tools.items()} for _ in range(options.repeat)]
    result = {name: _summary([one[name] for one in rounds]) for name in tools}
    _print(result)
    documented = {
        name: _run("hta_documented", options.hta_python, paths, rounded)["answer"]
        for name, rounded in (("rounded", True), ("nanoseconds", False))
        if options.hta_python
    }
    print(json.dumps(documented, indent=1))
    answers = {name: run.pop("answer") for name, run in result.items()}
    if options.answers:
        every = {**answers, "hta_documented": documented}
        options.answers.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    if options.results:
        line = {
            "traces": [path.name for path in paths],
            "file_bytes": [path.stat().st_size for path in paths],
            "events": answers["read"]["events"],
            "gpu_events": sum(answers["ours"]["counts"].values()),
            "python": platform.python_version(),
            "versions": {
                "ours": _versions(sys.executable),
                **({"hta": _versions(options.hta_python)} if options.hta_python else {}),
            },
            "load_average": load,
            "tools": result,
            "differences": {
                name: _agreement(answers["ours"], answer) for name, answer in answers.items() if name.startswith("hta")
            },
            "hta_documented": documented,
        }
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
