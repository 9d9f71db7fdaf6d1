"""The client against ``sglang.bench_serving``, AIPerf and guidellm, side by side on the fake server.

``python bench/client_bench.py --peers FOLDER`` makes a virtual environment for each peer in FOLDER (once), then runs
every client through every case in turn and prints ratios: this machine's figures say nothing, their ratios do.

* *paced*: the server sends on a schedule. Gives CPU time a token, and TPOT bias: each tool's own mean TPOT over the
  mean that the server kept.
* *flood*: the server sends as fast as the client reads. Gives the highest sustained rate: the (k + c)-th request of a
  closed loop of c arrives when the k-th answer has been read, so the server sees how fast the client is.

A peer's CPU time is that of all its processes between the first request and the last token, which leaves out start-up
and report. Ours is that of all its processes, parsing included, from the first request until the last record is made.
The client *floor* (``client_floor.c``) reads every event as it comes and parses nothing: the least that a client takes
which does so, on this kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import venv
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLOOR = ROOT / "bench" / "client_floor.c"
OWN = ("ours", "ours_openai", "floor")
"""What needs no environment of its own."""
SAMPLE_S = 0.02
"""Between two readings of a peer's CPU time."""
RUN_LIMIT_S = 240.0

PEERS: dict[str, tuple[str, ...]] = {
    # bench_serving's streaming path needs no more; the rest of its dependencies (torch, kernels) are the server's
    "sglang": ("--no-deps", "sglang==0.5.12", "aiohttp", "numpy", "requests", "tqdm", "transformers", "pillow",
               "pybase64", "datasets"),
    "aiperf": ("aiperf==0.13.0",),
    "guidellm": ("guidellm==0.8.1",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One load on one kind of server. ``step_ms`` 0: flood."""

    concurrency: int
    requests: int
    tokens: int
    tokens_per_event: int
    step_ms: float

    @property
    def name(self) -> str:
        kind = f"paced {self.step_ms:g} ms" if self.step_ms else "flood"
        return f"{kind}, {self.concurrency} streams, {self.tokens_per_event} token(s) an event"


@dataclasses.dataclass(frozen=True)
class Result:
    """What one client made of one case."""

    client: str
    case: Case
    cpu_us_per_token: float
    tokens_per_s: float
    tpot_bias_percent: float | None
    server_error_percent: float | None
    errors: int


def paced(concurrency: int, tokens_per_event: int, events: int, step_ms: float | None) -> Case:
    """20 ms steps, longer where one server process could not keep the schedule."""
    step_ms = step_ms or max(20.0, concurrency / 10)
    return Case(concurrency, 2 * concurrency, events * tokens_per_event, tokens_per_event, step_ms)


def flood(concurrency: int, tokens_per_event: int, events: int, _: float | None) -> Case:
    """Enough requests for a steady state."""
    return Case(concurrency, max(4 * concurrency, 400), events * tokens_per_event, tokens_per_event, 0.0)


# -- the clients, each started as a program ----------------------------------------------------------------------------


def command(client: str, python: str, url: str, case: Case, folder: pathlib.Path) -> list[str]:
    """How ``client`` is started; it leaves its TPOTs where ``tpots_ms`` finds them."""
    bin_folder = pathlib.Path(python).parent
    count, width = str(case.requests), str(case.concurrency)
    if client == "floor":
        subprocess.run(["cc", "-O2", "-o", str(folder / "floor"), str(FLOOR)], check=True)
        return [str(folder / "floor"), url.rpartition(":")[2], width, count, str(folder / "result.json")]
    if client in ("ours", "ours_openai", "sglang"):
        return [python, __file__, "--drive", client, url, str(folder), json.dumps(dataclasses.asdict(case))]
    if client == "aiperf":
        _write_lines(folder / "prompts.jsonl", {"text": "a b c"}, 64)
        per_chunk = case.tokens_per_event > 1  # AIPerf has its exact formula on the chat endpoint only
        endpoint = ["--endpoint-type", "chat", "--per-chunk-usage"] if per_chunk else ["--endpoint-type", "completions"]
        return [str(bin_folder / "aiperf"), "profile", "-m", "fake", *endpoint, "--streaming", "-u", url,
                "--ui", "none", "--tokenizer", str(_tokenizer(folder)), "--input-file", str(folder / "prompts.jsonl"),
                "--custom-dataset-type", "single_turn", "--concurrency", width, "--request-count", count,
                "--use-server-token-count", "--artifact-dir", str(folder / "aiperf")]  # fmt: skip
    _write_lines(folder / "prompts.jsonl", {"prompt": "a b c"}, case.requests)
    return [str(bin_folder / "guidellm"), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={url},model=fake,request_format=/v1/completions",
            "--profile", f"kind=concurrent,streams={width}", "--constraint", f"kind=max_requests,count={count}",
            "--tokenizer", f"kind=hf_auto,model={_tokenizer(folder)}",
            "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}",
            "--output", f"kind=json,path={folder / 'guidellm.json'}"]  # fmt: skip


def tpots_ms(client: str, folder: pathlib.Path) -> list[float]:
    """TPOT of each request as the tool itself reports it."""
    if client == "aiperf":
        lines = (folder / "aiperf" / "profile_export.jsonl").read_text().splitlines()
        records = [json.loads(line)["metrics"] for line in lines]
        return [record["inter_token_latency"]["value"] for record in records if "inter_token_latency" in record]
    if client == "guidellm":
        report = json.loads((folder / "guidellm.json").read_text())
        done = report["benchmarks"][0]["requests"]["successful"]
        return [request["inter_token_latency_ms"] for request in done]
    found: list[float] = json.loads((folder / "result.json").read_text())["tpots_ms"]
    return found


def drive(client: str, url: str, folder: pathlib.Path, case: Case) -> None:
    """Runs in the client's own environment."""
    result = _drive_sglang(url, case) if client == "sglang" else _drive_ours(client, url, case)
    (folder / "result.json").write_text(json.dumps(result))


def _drive_ours(client: str, url: str, case: Case) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from validation.client import Job, Prompt, Sampling, run_load
    from validation.client.metrics import metrics
    from validation.discovery import load_all
    from validation.records import Request

    backend = load_all("scenarios/backends", "BACKEND")["sglang_native" if client == "ours" else "openai_completions"]
    prompt, sampling = Prompt(text="a b c"), Sampling(case.tokens, ignore_eos=True)
    jobs = [Job(prompt, sampling, "bench", "bench", 0, 0, "bench", i) for i in range(case.requests)]
    found: list[Request] = []
    report = run_load(url, backend, jobs, case.concurrency, found.append, max_retries=0)
    return {
        "cpu_s": report.client_cpu_s,
        "wall_s": report.wall_s,
        "errors": report.errors,
        "tpots_ms": [metrics(request).tpot_ms for request in found if request.error is None],
    }


def _drive_sglang(url: str, case: Case) -> dict[str, Any]:
    """``bench_serving``'s request function under its own semaphore, as its ``benchmark`` does it."""
    import asyncio
    import importlib

    # the package's __init__ and two names of its server part want torch; the client uses neither
    package = types.ModuleType("sglang")
    package.__path__ = [f"{folder}/sglang" for folder in sys.path if folder.endswith("site-packages")]
    sys.modules["sglang"] = package
    for name, attribute in (("disaggregation.utils", "FAKE_BOOTSTRAP_HOST"), ("utils.network", "NetworkAddress")):
        stub = types.ModuleType(f"sglang.srt.{name}")
        setattr(stub, attribute, None)
        sys.modules[stub.__name__] = stub
    bench: Any = importlib.import_module("sglang.bench_serving")
    bench.args = argparse.Namespace(
        disable_stream=False, disable_ignore_eos=False, return_logprob=False, return_routed_experts=False,
        logprob_start_len=-1, top_logprobs_num=0, token_ids_logprob=None, header=None,
    )  # fmt: skip
    bench.set_ulimit()

    async def load() -> list[Any]:
        semaphore = asyncio.Semaphore(case.concurrency)

        async def one() -> Any:
            request = bench.RequestFuncInput("a b c", url + "/generate", 3, case.tokens, "fake", "", None, {})
            async with semaphore:
                return await bench.async_request_sglang_generate(request)

        return list(await asyncio.gather(*(one() for _ in range(case.requests))))

    outputs = asyncio.run(load())
    good = [output for output in outputs if output.success and output.output_len > 1]
    tpots = [1e3 * (output.latency - output.ttft) / (output.output_len - 1) for output in good]
    return {"tpots_ms": tpots, "errors": len(outputs) - len(good)}


# -- measuring ---------------------------------------------------------------------------------------------------------


class CpuMeter:
    """CPU seconds of a process and all its descendants, read again and again."""

    def __init__(self, pid: int) -> None:
        self._pid, self._stop = pid, threading.Event()
        self.readings: list[tuple[int, float]] = []
        self._last: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            for pid in _tree(self._pid):
                for task in _tasks(pid):
                    try:
                        ran_ns = int((task / "schedstat").read_text().split()[0])
                    except OSError:
                        continue
                    self._last[int(task.name)] = ran_ns / 1e9
            self.readings.append((time.perf_counter_ns(), sum(self._last.values())))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start_ns: int, end_ns: int) -> float:
        before = max((cpu for at, cpu in self.readings if at <= start_ns), default=0.0)
        after = min((cpu for at, cpu in self.readings if at >= end_ns), default=self.readings[-1][1])
        return after - before


def _tasks(pid: int) -> list[pathlib.Path]:
    try:
        return list(pathlib.Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in _tasks(pid):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def measure(client: str, python: str, case: Case) -> Result:
    """Run ``client`` through ``case`` on a fake server of its own.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    from validation.client.fake_server import FakeServerProcess, Schedule
    from validation.client.identity import get_json
    from validation.client.selftest import prefill_steps

    prefill = prefill_steps(case.concurrency, case.step_ms) if case.step_ms else 0
    schedule = Schedule(case.tokens, case.step_ms, case.tokens_per_event, case.tokens_per_event, prefill)
    with tempfile.TemporaryDirectory() as name, FakeServerProcess.start(schedule) as server:
        folder = pathlib.Path(name)
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(client, python, server.url, case, folder), stdout=output, stderr=output, cwd=folder
            )
            meter = CpuMeter(process.pid)
            try:
                status = process.wait(RUN_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            meter.stop()
        if status:
            raise RuntimeError(f"status {status}: {(log.read_text().strip().splitlines() or ['no output'])[-1][:200]}")
        streams = get_json(server.url, "/report")["streams"]
        return _result(client, case, streams, meter, tpots_ms(client, folder), folder)


def _result(
    client: str,
    case: Case,
    streams: Sequence[dict[str, Any]],
    meter: CpuMeter,
    tpots: Sequence[float],
    folder: pathlib.Path,
) -> Result:
    streams = sorted(streams, key=lambda stream: stream["asked_ns"])
    tokens = len(streams) * case.tokens
    asked = [stream["asked_ns"] for stream in streams]
    tokens_per_s = (len(streams) - case.concurrency) * case.tokens / ((asked[-1] - asked[case.concurrency - 1]) / 1e9)
    cpu_s = meter.between(asked[0], max(stream["last_ns"] for stream in streams))
    if client in OWN:
        own = json.loads((folder / "result.json").read_text())
        cpu_s = own["cpu_s"]
        tokens_per_s = tokens / own["wall_s"]  # to the last parsed record, which is later than the last byte
    bias = server_error = None
    if client == "floor":  # it knows reads, one an event, and no tokens
        tpots = [event_ms / case.tokens_per_event for event_ms in tpots]
    if case.step_ms:
        after_first = case.tokens - case.tokens_per_event
        true_ms = statistics.fmean((s["last_ns"] - s["first_ns"]) / after_first / 1e6 for s in streams)
        due_ms = statistics.fmean((s["last_due_ns"] - s["first_due_ns"]) / after_first / 1e6 for s in streams)
        bias = 100 * (statistics.fmean(tpots) / true_ms - 1) if tpots else None
        server_error = 100 * (true_ms / due_ms - 1)
    errors = case.requests - len(tpots)
    return Result(client, case, cpu_s / tokens * 1e6, tokens_per_s, bias, server_error, errors)


# -- the peers' environments -------------------------------------------------------------------------------------------


def prepare(client: str, folder: pathlib.Path) -> str:
    """The Python of a peer's virtual environment in ``folder``, made if it is missing.

    Raises:
        RuntimeError: pip failed; the message is its last line.
    """
    python = folder / client / "bin" / "python"
    if not python.exists():
        venv.create(folder / client, with_pip=True)
        first, *rest = PEERS[client]
        steps = [[first, rest[0]], rest[1:]] if first == "--no-deps" else [[first]]
        for packages in steps:
            pip = subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
            if pip.returncode:
                raise RuntimeError((pip.stderr.strip().splitlines() or ["pip failed"])[-1])
    return str(python)


def _write_lines(path: pathlib.Path, line: dict[str, str], count: int) -> None:
    path.write_text((json.dumps(line) + "\n") * count)


def _tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """A tokenizer of four words in the form that transformers reads: the peers want one, and nothing is downloaded."""
    path = folder / "tokenizer"
    path.mkdir(exist_ok=True)
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "c": 3}, "unk_token": "[UNK]"}
    parts: dict[str, None] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole: dict[str, Any] = {
        "version": "1.0",
        **parts,
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": model,
    }
    (path / "tokenizer.json").write_text(json.dumps(whole))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "eos_token": "[UNK]"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


# -- the table ---------------------------------------------------------------------------------------------------------


def best(results: Sequence[Result], case: Case, value: Callable[[Result], float], larger: bool) -> Result | None:
    """The peer that did best in ``case`` without an error."""
    peers = [r for r in results if r.case == case and r.client not in OWN and not r.errors]
    return (max if larger else min)(peers, key=value, default=None)


def show(results: Sequence[Result], missing: Sequence[str]) -> str:
    """The results as text, with our ratio to the best peer in each case."""
    lines = []
    for case in dict.fromkeys(result.case for result in results):
        lines.append(case.name)
        cheapest = best(results, case, lambda r: r.cpu_us_per_token, larger=False)
        fastest = best(results, case, lambda r: r.tokens_per_s, larger=True)
        for result in (r for r in results if r.case == case):
            line = f"  {result.client:12} {result.cpu_us_per_token:8.1f} us/token {result.tokens_per_s:10,.0f} tokens/s"
            if result.tpot_bias_percent is not None:
                line += f"  TPOT bias {result.tpot_bias_percent:+8.3f} %"
                line += f" (server off its plan {result.server_error_percent:+.3f} %)"
            if result.errors:
                line += f"  {result.errors} errors"
            if result.client in OWN and cheapest and fastest:
                line += f"  CPU 1/{cheapest.cpu_us_per_token / result.cpu_us_per_token:.1f} of {cheapest.client}"
                if not case.step_ms:
                    line += f", rate {result.tokens_per_s / fastest.tokens_per_s:.1f} x {fastest.client}"
            lines.append(line)
    return "\n".join([*lines, *missing])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=pathlib.Path, help="folder of the peers' virtual environments")
    parser.add_argument("--clients", nargs="+", default=[*OWN, *PEERS])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[16, 64, 256, 1200])
    parser.add_argument("--tokens-per-event", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=["paced", "flood"], choices=["paced", "flood"])
    parser.add_argument("--step-ms", type=float, help="of the paced cases, else 20 or what many streams need")
    parser.add_argument("--events", type=int, default=64, help="events of one answer")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="where the results go as JSON lines")
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        client, url, folder, case = options.drive
        drive(client, url, pathlib.Path(folder), Case(**json.loads(case)))
        return
    sys.path.insert(0, str(ROOT))
    pythons, missing = {}, []
    for client in options.clients:
        try:
            pythons[client] = sys.executable if client in OWN else prepare(client, options.peers.resolve())
        except (RuntimeError, AttributeError) as error:
            missing.append(f"{client} is missing: {error if options.peers else 'give --peers FOLDER'}")
    kinds = {"paced": paced, "flood": flood}
    cases = [kinds[k](c, t, options.events, options.step_ms) for k in options.kinds for t in options.tokens_per_event
             for c in options.concurrency]  # fmt: skip
    results: list[Result] = []
    for case in [case for case in cases for _ in range(options.repeat)]:
        for client, python in pythons.items():
            try:
                results.append(measure(client, python, case))
            except (RuntimeError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
                missing.append(f"{client} failed in {case.name}: {error}")
                print(missing[-1], file=sys.stderr, flush=True)
                continue
            print(show(results[-1:], ()), file=sys.stderr, flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(results[-1])) + "\n")
    print(show(results, missing))


if __name__ == "__main__":
    main()
