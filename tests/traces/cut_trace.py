"""Cut a profiler trace down to its GPU work: the tool that made ``data/``.

``python cut_trace.py SOURCE.json.gz TARGET.json.gz`` keeps the text of every kernel, copy, fill, launch, annotation and
metadata event and of the header byte for byte, and drops Python frames, CPU operators and flow arrows. No step is cut.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import sys

DROPPED = ("python_function", "cpu_op", "ac2g")


def cut(text: str) -> str:
    """The trace ``text`` without events of a dropped category."""
    opening = '"traceEvents": ['
    at = text.index(opening) + len(opening)
    decoder = json.JSONDecoder()
    kept = []
    head = text[:at]
    while True:
        while text[at] in ", \n\t\r":
            at += 1
        if text[at] == "]":
            break
        event, end = decoder.raw_decode(text, at)
        if event.get("cat") not in DROPPED:
            kept.append(text[at:end])
        at = end
    return head + "\n  " + ",\n  ".join(kept) + "\n  " + text[at:]


if __name__ == "__main__":
    source, target = map(pathlib.Path, sys.argv[1:3])
    shorter = cut(gzip.decompress(source.read_bytes()).decode())
    target.write_bytes(gzip.compress(shorter.encode(), 9, mtime=0))
