"""A profiler trace of a gigabyte: what reading it costs, and what finding costs that one is cut short or broken.

``python bench/large_trace.py TRACE FOLDER [--gigabytes 1.0] [--results OUT]``

The events of ``TRACE`` (a small ``.json[.gz]``) are repeated, each time later and with correlation ids of their own,
until the text has the wanted size. FOLDER gets that file, plain and compressed; the defects are planted in them one
after the other. Every case is read in a fresh process, which reports its processor time and its peak resident memory,
imports included.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

AT = 0.9
"""Where in the file a defect is planted: nearly all of it is read before."""


def write(source: pathlib.Path, folder: pathlib.Path, size: int) -> None:
    """``large.json`` and ``large.json.gz`` of at least ``size`` bytes of text."""
    import orjson

    data = source.read_bytes()
    trace = orjson.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    events = trace.pop("traceEvents")
    times = [event["ts"] for event in events if event.get("ph") == "X"]
    later = max(times) - min(times) + 1000.0
    ids = [event["args"]["correlation"] for event in events if "correlation" in event.get("args", {})]
    further = max(ids) + 1
    with (folder / "large.json").open("wb") as plain, gzip.open(folder / "large.json.gz", "wb", 1) as packed:
        text = orjson.dumps(trace)[:-1] + b',"traceEvents":[\n'
        written = len(text)
        while True:
            plain.write(text)
            packed.write(text)
            text = b",\n".join(map(orjson.dumps, events))
            written += len(text) + 2
            for event in events:
                if "ts" in event:
                    event["ts"] = round(event["ts"] + later, 3)
                if "correlation" in event.get("args", {}):
                    event["args"]["correlation"] += further
            if written >= size:
                break
            text += b",\n"
        plain.write(text + b"\n]}\n")
        packed.write(text + b"\n]}\n")


def answer(path: pathlib.Path) -> dict[str, Any]:
    """The questions of a claim about ``path``, or the sentence of its error."""
    from validation.traces.counts import count_kernels
    from validation.traces.gaps import layer_costs, mean_cost, stalls
    from validation.traces.reader import TraceError, read_trace
    from validation.traces.steps import find_steps

    try:
        trace = read_trace(path)
    except TraceError as error:
        return {"error": str(error)}
    steps = find_steps(trace)
    return {
        "text_bytes": trace.text_bytes,
        "events": trace.event_count,
        "gpu_events": len(trace.kernels),
        "steps": steps.steps,
        "layers": steps.layers,
        "kernel_names": len(count_kernels(trace, steps).kernels),
        "stalls": len(stalls(trace, steps)),
        "layer_us": mean_cost(layer_costs(trace, steps))["wall_us"],
    }


@contextlib.contextmanager
def planted(path: pathlib.Path, what: bytes, put: bytes) -> Iterator[int]:
    """The next ``what`` after ``AT`` of ``path`` replaced by as many bytes; its offset."""
    with path.open("r+b") as file:
        start = int(path.stat().st_size * AT)
        file.seek(start)
        offset = start + file.read(1 << 20).index(what)
        file.seek(offset)
        file.write(put)
    try:
        yield offset
    finally:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(what)


def cases(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, int | None]]:
    """Name, file, and the byte where it breaks; the file is as named while the iteration stands there."""
    plain, packed = folder / "large.json", folder / "large.json.gz"
    yield "whole", plain, None
    yield "whole, gzip", packed, None
    for name, what, put in (
        ("a colon lost", b'"dur":', b'"dur"?'),
        ("a quote lost", b'"name":"', b'"name": '),
        ("an event's closing brace lost", b"}},\n", b"} ,\n"),
        ("an event's opening brace lost", b',\n{"ph"', b',\n "ph"'),
        ("a kernel's name lost", b'"cat":"kernel","name"', b'"cat":"kernel","nome"'),
    ):
        with planted(plain, what, put) as offset:
            yield name, plain, offset
    size = int(plain.stat().st_size * AT)
    with plain.open("r+b") as file:
        file.truncate(size)
    yield "cut short", plain, size
    size = int(packed.stat().st_size * AT)
    with packed.open("r+b") as file:
        file.truncate(size)
    yield "cut short, gzip", packed, size


def main() -> None:
    """Write the files, measure every case, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--results", type=pathlib.Path, help="append one line of JSON for each case")
    parser.add_argument("--child", choices=("write", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    if options.child == "write":
        write(options.trace, options.folder, int(options.gigabytes * 1e9))
        return
    if options.child == "read":
        begin = time.process_time()
        found = answer(options.trace)
        cost = {"processor_s": time.process_time() - begin}
        print(json.dumps({**cost, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **found}))
        return
    options.folder.mkdir(parents=True, exist_ok=True)

    def child(what: str, path: pathlib.Path) -> str:
        # a process counts the memory of the one that started it as its own, so this one must stay small
        command = [sys.executable, __file__, str(path), str(options.folder), "--child", what]
        command += ["--gigabytes", str(options.gigabytes)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    child("write", options.trace)
    for name, path, breaks_at in cases(options.folder):
        result = {"case": name, "breaks_at": breaks_at, **json.loads(child("read", path))}
        print(json.dumps(result))
        if options.results:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
