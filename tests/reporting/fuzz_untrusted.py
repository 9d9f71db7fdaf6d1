"""Feeds every reader of untrusted text mutated and random input, and says what it did that it may not.

``python tests/reporting/fuzz_untrusted.py --inputs 1000000 --record baselines/fuzz.json``

A reader may refuse an input with its own one-sentence error; any other exception is a fault, and so is an escaper whose
result, read by the real renderer, holds anything but the text. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import platform
import random
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).resolve().parent)]

import cmarkgfm  # noqa: E402
from report_examples import EXAMPLES, HOSTILE, LATENCY_INCONCLUSIVE, run  # noqa: E402
from test_report_escape import ACTIVE, MENTION, github, squeezed  # noqa: E402

from validation import gsm8k, integrity, records  # noqa: E402
from validation.client import openai_stream, sse  # noqa: E402
from validation.gsm8k import EXTRACTORS  # noqa: E402
from validation.judgement import Judgement  # noqa: E402
from validation.judging.claims_figures import ClaimError  # noqa: E402
from validation.judging.claims_reading import claims_from_json  # noqa: E402
from validation.judging.claims_table import claims_from_table  # noqa: E402
from validation.reporting import escape, to_html, to_junit, to_markdown  # noqa: E402
from validation.traces.reader import TraceError, read_trace  # noqa: E402
from validation.triage import TABLE, TableError, parse_table  # noqa: E402
from validation.verdicts import Finding  # noqa: E402

Target = Callable[[str], object]


@dataclasses.dataclass
class Tally:
    """What one target did."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)


class FaultError(AssertionError):
    """An escaper let something through."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise FaultError(what)


def lines_are_printable(text: str) -> None:
    check(escape.one_line(text).isprintable(), "one_line is not printable")
    check(all(c.isprintable() or c in "\n\t" for c in escape.visible(text)), "visible is not printable")


def prose_is_the_text(text: str) -> None:
    page = github(f"{escape.markdown(text)}\n")
    check(page.tags <= {"p"} and not page.attributes and not page.comments, f"tags {page.tags}")
    check(squeezed(page.text) == squeezed(escape.one_line(text)), "another text")
    check(not MENTION.search(page.text), "a mention")


def cell_is_one_cell(text: str) -> None:
    cells = f"| {escape.markdown(text)} | {escape.markdown_code(text)} |"
    html = cmarkgfm.github_flavored_markdown_to_html(f"| a | b |\n| --- | --- |\n{cells}\n")
    check(html.count("<td>") == 2 and html.count("<tr>") == 2, "another number of cells")
    check(not any(tag in html for tag in ("<a ", "<img", "<em", "<strong", "<del", "<input")), "markup")


def report_is_well_formed(text: str) -> None:
    finding = dataclasses.replace(
        LATENCY_INCONCLUSIVE, sentence=f"x {text}", numbers={text: [{text: text}], "scenarios": text}
    )
    judged = Judgement(run(run_id=text, provenance={text: {text: text}}, command=(text,)), (finding,))
    ET.fromstring(to_junit(judged))
    html = to_html(judged)
    check("<script" not in html and "<img" not in html, "markup in the page")
    check(len(to_markdown(judged).encode()) < 60_000, "too long a comment")


def record_line(text: str) -> None:
    data = json.loads(text)
    if isinstance(data, dict):
        records.from_json(data)


def finding_line(text: str) -> None:
    data = json.loads(text)
    if isinstance(data, dict):
        Finding.from_json(data)


def manifest(text: str) -> None:
    data = json.loads(text)
    entries = data.get("files") if isinstance(data, dict) else None
    if isinstance(entries, dict):
        for name, entry in entries.items():
            list(integrity._against_entry(name, {"sha256": "0", "bytes": 1, "records": ["1"]}, entry))


def answers(text: str) -> None:
    for extractor in EXTRACTORS.values():
        extractor.correct(text, "#### 18")


def stream(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    events = sse.read_events([raw[:40], raw[40:]], [0, 1])
    openai_stream.parse_openai(events.data, lambda choice: (choice.get("text", ""), True))


def in_a_file(read: Callable[[pathlib.Path], object], path: pathlib.Path) -> Target:
    """``read`` on the file ``path`` that holds the text."""

    def call(text: str) -> object:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return read(path)

    return call


Refusals = tuple[type[Exception], ...]


def targets(folder: pathlib.Path) -> dict[str, tuple[float, Target, Refusals, Sequence[str]]]:
    """Name to its share of the inputs, what is called, how it may refuse, and valid inputs to mutate."""
    written = {name: records.to_json(judged.run) for name, judged in EXAMPLES.items() if name != "hostile"}
    lines = [json.dumps(line) for line in written.values()]
    failed = EXAMPLES["fail"]
    raw: list[records.Record] = [*failed.launches, *failed.cells, *failed.paths, *failed.notes]
    lines += [json.dumps(records.to_json(record)) for record in raw]
    findings = [json.dumps(f.to_json()) for f in EXAMPLES["fail"].findings]
    table = "| scenario | before | after |\n|---|---|---|\n| 8k1k c4 | 21.21 ms | 20.76 ms |\n"
    claims = [p.read_text(encoding="utf-8") for p in sorted((ROOT / "baselines").rglob("*claims*.json"))]
    manifests = [json.dumps({"schema": 1, "files": {"raw/run.jsonl": {"sha256": "0", "bytes": 1, "records": ["0"]}}})]
    solved = ["So 3 + 4 = 7 apples.\n#### 7", r"The answer is $\boxed{18}$.", "$18.00", "-5", "1,234.50"]
    heads = [
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    ]
    event = 'data: {"choices": [{"text": "7"}], "usage": {"completion_tokens": 1, "prompt_tokens": 3}}\n\n'
    bodies = [f"{event}data: [DONE]\n\n", f"{len(event):x}\r\n{event}\r\n0\r\n\r\n"]
    problems = ['{"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\\n#### 7"}\n'] * 2
    kernel = (
        '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 1.0, "dur": 2.5, "args": {"stream": 7}}'
    )
    traces = [f'{{"schemaVersion": 1, "traceEvents": [{kernel}, {kernel}], "traceName": "t"}}', f"[{kernel}]"]
    bad_json: Refusals = (json.JSONDecodeError, RecursionError)
    return {
        "escape.visible": (30, lines_are_printable, (), [HOSTILE]),
        "escape.markdown": (20, prose_is_the_text, (), [HOSTILE]),
        "escape.table_cell": (14, cell_is_one_cell, (), [HOSTILE]),
        "records": (12, record_line, (records.RecordError, *bad_json), lines),
        "findings": (6, finding_line, (ValueError, KeyError, TypeError, RecursionError), findings),
        "manifest": (4, manifest, bad_json, manifests),
        "triage_table": (2, parse_table, (TableError,), [TABLE.read_text(encoding="utf-8")]),
        "claims_json": (3, claims_from_json, (ClaimError,), claims or ["{}"]),
        "claims_table": (3, claims_from_table, (ClaimError,), [table]),
        "gsm8k_file": (1, in_a_file(gsm8k.load, folder / "input.jsonl"), (gsm8k.QuestionSetError,), problems),
        "trace_file": (1, in_a_file(read_trace, folder / "input.json"), (TraceError,), traces),
        "gsm8k_answers": (6, answers, (), solved),
        "client_stream": (4, stream, (sse.BadStream,), [head + body for head in heads for body in bodies]),
        "reports": (0.3, report_is_well_formed, (), [HOSTILE]),
    }


def text_of(draw: random.Random, seeds: Sequence[str]) -> str:
    """Active pieces and random characters, or a valid input with a few changes."""
    if draw.random() < 0.5:
        pieces = [draw.choice(ACTIVE) if draw.random() < 0.5 else _characters(draw) for _ in range(draw.randint(0, 12))]
        return "".join(pieces)
    text = draw.choice(seeds)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(text))
        kind = draw.randrange(5)
        if kind == 0:
            text = text[:at] + _characters(draw) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + draw.randint(1, 8) :]
        elif kind == 2:
            text = text[:at] + draw.choice(ACTIVE) + text[at + 1 :]
        elif kind == 3:
            text = (
                text[:at]
                + draw.choice(("null", "-1", "1e999", "[]", "{}", '""', "true", "[" * 50))
                + text[at + draw.randint(0, 6) :]
            )
        else:
            text = text[: draw.randint(0, len(text))]
    return text


def _characters(draw: random.Random) -> str:
    top = draw.choice((0x80, 0x100, 0x3000, 0x110000))
    return "".join(chr(draw.randrange(top)) for _ in range(draw.randint(0, 6)))


def fuzz(inputs: int, seed: int, only: str = "") -> dict[str, Tally]:
    """Run about ``inputs`` inputs over all targets, by their shares."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        chosen = {name: target for name, target in targets(pathlib.Path(folder)).items() if only in name}
        whole = sum(share for share, *_ in chosen.values())
        return {
            name: _fuzz_one(name, math.ceil(inputs * share / whole), seed, call, refusals, seeds)
            for name, (share, call, refusals, seeds) in chosen.items()
        }


def _fuzz_one(name: str, inputs: int, seed: int, call: Target, refusals: Refusals, seeds: Sequence[str]) -> Tally:
    draw, tally = random.Random(f"{seed} {name}"), Tally(inputs)
    started = time.perf_counter()
    for _ in range(inputs):
        text = text_of(draw, seeds)
        try:
            call(text)
        except refusals:
            tally.refused += 1
        except Exception as error:
            if len(tally.faults) < 20:
                tally.faults.append(f"{type(error).__name__}: {error}: {text[:500]!r}")
    tally.seconds = round(time.perf_counter() - started, 1)
    print(
        f"{name}: {inputs} inputs, {tally.refused} refused, {len(tally.faults)} faults, {tally.seconds} s", flush=True
    )
    for fault in tally.faults[:3]:
        print(f"  {escape.terminal(fault, 700)}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a target's name")
    parser.add_argument("--record", type=pathlib.Path, help="write the tally as JSON")
    options = parser.parse_args()
    tallies = fuzz(options.inputs, options.seed, options.only)
    total = sum(t.inputs for t in tallies.values())
    faults = sum(len(t.faults) for t in tallies.values())
    print(f"{total} inputs, {faults} faults")
    if options.record:
        document = {
            "inputs": total,
            "faults": faults,
            "seed": options.seed,
            "command": f"python tests/reporting/fuzz_untrusted.py --inputs {options.inputs} --seed {options.seed}",
            "python": platform.python_version(),
            "machine": {"architecture": platform.machine(), "cpus": os.cpu_count()},
            "targets": {name: dataclasses.asdict(tally) for name, tally in tallies.items()},
        }
        options.record.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
