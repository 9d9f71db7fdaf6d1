"""Traces asked of a server: the embedded engine's own, and servers that write none, late, or half of one."""

from __future__ import annotations

import gzip
import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from validation import profile_tier
from validation.arms import Place, embedded_arm
from validation.e2e_plan import BASELINE, CANDIDATE
from validation.judgement import trace_findings
from validation.judging.trace import TraceClaim
from validation.profile_tier import ProfileError, collect_traces, count_collected, profile_launch
from validation.traces.reader import Profiler, read_trace
from validation.traces.steps import How, find_steps
from validation.verdicts import Verdict

Answer = Callable[[str, dict[str, object]], int]
DATA = pathlib.Path(__file__).parent.parent / "traces" / "data"
TRACE = gzip.compress(b'{"traceEvents": []}\n')


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Start a server whose POST answers come from a function; gives its URL."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, b'{"tp_size": 2}')

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply(answer(self.path, json.loads(body or b"{}")), b"{}")

            def _reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(httpd)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{httpd.server_address[1]}"

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()


def test_the_embedded_engine_writes_a_trace_without_kernels_and_nothing_is_concluded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_tier, "PROMPTS", 1)  # one turn of prefill, so that the others are decode steps
    claim = TraceClaim(removed=r"CatArrayBatchedCopy|concat_mla_absorb_q")
    notes = []
    for arm, query_path in ((BASELINE, "cat"), (CANDIDATE, "skip")):
        with embedded_arm(arm, query_path).session(Place(tmp_path / "logs"), lambda text: None) as running:
            paths = collect_traces(running.url, tmp_path / arm, 4)
        assert len(paths) == 1
        trace = read_trace(paths[0])
        assert trace.profiler is Profiler.CPU
        steps = find_steps(trace)
        assert steps.steps_how is How.ANNOTATIONS, "its turns are annotated as decode steps"
        assert steps.steps in (3, 4), "of 4 turns, one may be the prefill"
        notes.append(count_collected(arm, paths, claim))
    assert [note.topic for note in notes] == ["trace_without_kernels"] * 2
    assert "no GPU kernel" in notes[0].sentence
    assert all(f.verdict is Verdict.NOT_RUN for f in trace_findings(notes))


def test_real_gpu_traces_are_counted_and_judged() -> None:
    claim = TraceClaim(removed=r"CatArrayBatchedCopy|concat_mla_absorb_q")
    arms = {BASELINE: "cat", CANDIDATE: "skip"}
    files = {arm: DATA / f"sglang0512_h200_{path}_decode.json.gz" for arm, path in arms.items()}
    notes = [count_collected(arm, [file], claim) for arm, file in files.items()]
    assert [f.verdict for f in trace_findings(notes)][:2] == [Verdict.PASS, Verdict.PASS]


def test_a_broken_trace_is_a_reason_and_no_crash(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1-TP-0.trace.json.gz"
    path.write_bytes(TRACE[:-9])
    assert count_collected(BASELINE, [path], TraceClaim(removed="cat")).topic == "trace_unreadable"


def test_one_file_a_rank_of_the_decode_stage_is_waited_for(
    server: Callable[[Answer], str], tmp_path: pathlib.Path
) -> None:
    asked: dict[str, dict[str, object]] = {}

    def answer(route: str, body: dict[str, object]) -> int:
        asked[route] = body
        if route == "/generate":
            for rank in (0, 1):
                for stage in ("EXTEND", "DECODE"):
                    (tmp_path / f"1-TP-{rank}-{stage}.trace.json.gz").write_bytes(TRACE)
        return 200 if route != "/stop_profile" else 500  # SGLang's answer where it has stopped by itself

    paths = collect_traces(server(answer), tmp_path, 3)
    assert [path.name for path in paths] == ["1-TP-0-DECODE.trace.json.gz", "1-TP-1-DECODE.trace.json.gz"]
    start = asked["/start_profile"]
    assert (start["output_dir"], start["num_steps"], start["profile_by_stage"]) == (str(tmp_path), 3, True)
    params = asked["/generate"]["sampling_params"]
    assert isinstance(params, dict)
    assert params["max_new_tokens"] > 3, "it must decode longer than the profile"


@pytest.mark.parametrize(
    "written",
    [{}, {"1-TP-0.trace.json.gz": TRACE}, {"1-TP-0.trace.json.gz": TRACE, "1-TP-1.trace.json.gz": TRACE[:-9]}],
    ids=["none", "one_rank_of_two", "cut_short"],
)
def test_missing_or_unfinished_files_are_an_error(
    server: Callable[[Answer], str], tmp_path: pathlib.Path, written: dict[str, bytes]
) -> None:
    def answer(route: str, body: dict[str, object]) -> int:
        for name, content in written.items():
            (tmp_path / name).write_bytes(content)
        return 200

    with pytest.raises(ProfileError, match="of 2 traces appeared"):
        collect_traces(server(answer), tmp_path, 3, timeout_s=0.0)


def test_files_of_an_earlier_profile_are_not_taken_for_new_ones(
    server: Callable[[Answer], str], tmp_path: pathlib.Path
) -> None:
    for rank in (0, 1):
        (tmp_path / f"0-TP-{rank}.trace.json.gz").write_bytes(TRACE)
    with pytest.raises(ProfileError, match="0 of 2 traces"):
        collect_traces(server(lambda route, body: 200), tmp_path, 3, timeout_s=0.0)


def test_a_launch_that_gives_no_trace_is_a_note_with_the_reason(
    server: Callable[[Answer], str], tmp_path: pathlib.Path
) -> None:
    note = profile_launch(server(lambda route, body: 404), CANDIDATE, tmp_path, TraceClaim(removed="cat"))
    assert (note.topic, note.data["arm"]) == ("trace_not_collected", CANDIDATE)
    assert "/start_profile answered 404" in note.sentence


def test_a_server_without_the_route_is_named(server: Callable[[Answer], str], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ProfileError, match=r"/start_profile answered 404"):
        collect_traces(server(lambda route, body: 404), tmp_path, 3)
