"""Arms over real processes: started, waited for, identified, stopped to the last child, and their memory seen free."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

from validation import server_process
from validation.arms import Arm, ArmError, CommandArm, Place, Server, ServerChangedError, UrlArm, check_url, redacted
from validation.client.fake_server import FakeServer, Schedule
from validation.client.redaction import MASK, Secret
from validation.discovery import ROOT
from validation.server_process import node_lock

BUILD = f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(pathlib.Path(__file__).parent / 'fake_build.py'))}"
SERVE = BUILD + " --port {port} --logdir {logdir}"
KEY = "sk-5a0c7f19e2"


@pytest.fixture(autouse=True)
def _own_node(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's lock lies in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@contextlib.contextmanager
def running(arm: Arm, folder: pathlib.Path, *, gpus: str = "", told: list[str] | None = None) -> Iterator[Server]:
    with arm.session(Place(folder / "logs", gpus), ([] if told is None else told).append) as server:
        yield server


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def group_of(folder: pathlib.Path) -> int:
    """The process group that holds the node."""
    return int((folder / f"validation-node-{os.getuid()}.lock").read_text().split()[0])


def test_a_command_is_filled_in_started_identified_and_ended(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a folder with blanks"
    arm = CommandArm("candidate", SERVE + " --gpus {gpus}", label={"commit": "abc"})
    with running(arm, folder, gpus="0,1") as server:
        group = group_of(tmp_path)
        assert alive(group)
    argv = server.identity["server"]["get_server_info"]["argv"]
    port = server.url.rpartition(":")[2]
    assert argv == ["--port", port, "--logdir", str(folder / "logs"), "--gpus", "0,1"]
    assert server.identity["server"]["get_model_info"] == {"model_path": "fake-model"}
    assert (server.identity["command"], server.identity["commit"]) == (arm.command, "abc")
    assert not alive(group)
    assert f"--port {port}" in (folder / "logs" / "candidate.log").read_text()


def test_every_session_is_a_launch_of_its_own_and_its_log_is_kept(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", SERVE)
    with running(arm, tmp_path) as first:
        pass
    with running(arm, tmp_path) as second:
        pass
    assert first.url != second.url
    assert (tmp_path / "logs" / "candidate.log").read_text().count("starting with") == 2


def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", SERVE + " --never-ready --child", ready_timeout_s=0.5)
    log = str(tmp_path / "logs" / "candidate.log")
    with (
        pytest.raises(ArmError, match=r"no server answered at http://127\.0\.0\.1:\d+ within 0 s") as caught,
        running(arm, tmp_path),
    ):
        raise AssertionError("it was called ready")
    assert log in str(caught.value)
    assert not alive(int((tmp_path / "logs" / "children.txt").read_text()))


def test_who_waits_is_told_how_long_and_what_the_server_does(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.arms.TELL_EVERY_S", 0.2)
    command = f"sh -c 'echo loading shard 7 of 96 with {KEY}; exec {BUILD} --port $0 --never-ready' {{port}}"
    command = command.replace("exec", "sleep 600; exec")
    told: list[str] = []
    arm = CommandArm("candidate", command, ready_timeout_s=1.0, api_key=Secret(KEY))
    with pytest.raises(ArmError, match="within 1 s") as caught, running(arm, tmp_path, told=told):
        raise AssertionError("it was called ready")
    assert len(told) >= 2
    assert re.fullmatch(
        r"waiting for http://127\.0\.0\.1:\d+: [01] of at most 1 s; its last line: loading .*", told[-1]
    )
    assert str(caught.value).endswith(f"its last line: loading shard 7 of 96 with {MASK}")
    assert KEY not in "".join(told)


def test_a_server_that_dies_is_quoted(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("baseline", SERVE + " --die 'torch.OutOfMemoryError: CUDA out of memory'")
    with pytest.raises(ArmError, match="ended with status 1 before it was ready") as caught, running(arm, tmp_path):
        raise AssertionError("it was called ready")
    assert str(tmp_path / "logs" / "baseline.log") in str(caught.value)
    assert str(caught.value).endswith("its last line: torch.OutOfMemoryError: CUDA out of memory")


def test_a_dead_server_is_not_mistaken_for_another_on_its_port(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as other:
        monkeypatch.setattr("validation.arms.free_port", lambda: other.port)
        process_ended = threading.Event()
        real = server_process.spawn

        def spawn_and_wait(*given: object) -> subprocess.Popen[bytes]:
            process = real(*given)  # type: ignore[arg-type]
            process.wait()
            process_ended.set()
            return process

        monkeypatch.setattr("validation.arms.spawn", spawn_and_wait)
        with (
            pytest.raises(ArmError, match="address in use"),
            running(CommandArm("candidate", SERVE + " --die 'address in use'"), tmp_path),
        ):
            raise AssertionError("the other server was taken for it")
    assert process_ended.is_set()


def test_a_program_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    arm, said = (
        CommandArm("candidate", "/nowhere/serve --port {port}"),
        r"'/nowhere/serve' could not be started \(No such",
    )
    with pytest.raises(ArmError, match=said), running(arm, tmp_path):
        raise AssertionError("it was called ready")


def test_the_stop_command_runs_while_the_server_lives(tmp_path: pathlib.Path) -> None:
    ask = "import urllib.request as u, sys; open(sys.argv[2], 'wb').write(u.urlopen(sys.argv[1]).read())"
    stop = f"{shlex.quote(sys.executable)} -I -S -c {shlex.quote(ask)} http://127.0.0.1:{{port}}/get_model_info "
    stop += "{logdir}/stopped"
    with running(CommandArm("candidate", SERVE, stop), tmp_path):
        assert not (tmp_path / "logs" / "stopped").exists()
    assert "fake-model" in (tmp_path / "logs" / "stopped").read_text()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ([sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"], "the stop command ended with status 3"),
        (["/nowhere/docker", "stop", "it"], "the stop command could not be started (No such file"),
        ([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], "the stop command did not end within 1 s"),
    ],
    ids=["fails", "missing", "hangs"],
)
def test_a_stop_command_that_fails_is_logged_and_the_server_ends(
    program: list[str], said: str, tmp_path: pathlib.Path
) -> None:
    arm = CommandArm("candidate", SERVE, shlex.join(program), stop_timeout_s=1.0)
    with running(arm, tmp_path):
        group = group_of(tmp_path)
    assert not alive(group)
    assert said in (tmp_path / "logs" / "candidate.log").read_text()


def test_children_end_with_the_server(tmp_path: pathlib.Path) -> None:
    with running(CommandArm("candidate", SERVE + " --child"), tmp_path):
        child = int((tmp_path / "logs" / "children.txt").read_text())
        assert alive(child)
    assert not alive(child)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", SERVE + " --ignore-sigterm --child", stop_timeout_s=0.6)
    started = time.monotonic()
    with running(arm, tmp_path):
        group, child = group_of(tmp_path), int((tmp_path / "logs" / "children.txt").read_text())
        started = time.monotonic()
    assert not alive(group)
    assert not alive(child)
    assert time.monotonic() - started >= 0.3  # it was asked first


def test_the_server_ends_when_the_measurement_fails(tmp_path: pathlib.Path) -> None:
    groups: list[int] = []

    def fail() -> None:
        groups.append(group_of(tmp_path))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), running(CommandArm("candidate", SERVE), tmp_path):
        fail()
    assert not alive(groups[0])


def test_a_second_arm_waits_for_the_node(tmp_path: pathlib.Path) -> None:
    waiting, order = threading.Event(), list[str]()

    def second() -> None:
        def tell(line: str) -> None:
            assert "waiting for another run's server on this node to end" in line
            waiting.set()

        with CommandArm("candidate", SERVE).session(Place(tmp_path / "second"), tell):
            order.append("second runs")

    thread = threading.Thread(target=second)
    with running(CommandArm("baseline", SERVE), tmp_path):
        thread.start()
        assert waiting.wait(30)
        assert not (tmp_path / "second").exists()
        order.append("first ends")
    thread.join(30)
    assert order == ["first ends", "second runs"]


HOLD = """
import pathlib, sys, tempfile
from validation.arms import CommandArm, Place
tempfile.tempdir = sys.argv[1]
with CommandArm("candidate", sys.argv[2]).session(Place(pathlib.Path(sys.argv[1]) / "left"), print) as server:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_the_server_of_a_killed_run_is_ended_by_the_next(tmp_path: pathlib.Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), SERVE + " --child"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"ready\n"
        group, child = group_of(tmp_path), int((tmp_path / "left" / "children.txt").read_text())
        killed.kill()
    assert alive(group)
    assert alive(child)
    told: list[str] = []
    with running(CommandArm("candidate", SERVE), tmp_path, told=told):
        assert not alive(group)
        assert not alive(child)
    assert told == [f"ending process group {group}, the server of a run that was killed"]


@pytest.mark.parametrize("left", ["{pid} 1", "{pid}", "-1 1", "0 1", "nonsense", ""])
def test_a_stranger_of_the_same_number_is_not_ended(left: str, tmp_path: pathlib.Path) -> None:
    stranger = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    with stranger:
        (tmp_path / f"validation-node-{os.getuid()}.lock").write_text(left.format(pid=stranger.pid))
        with node_lock(lambda line: None):
            assert alive(stranger.pid)
        stranger.send_signal(signal.SIGKILL)


def test_a_url_server_is_identified_and_left_alone(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(model="glm")) as fake:
        for _ in range(2):
            with running(UrlArm("candidate", fake.url + "/"), tmp_path) as server:
                assert server.url == fake.url
                assert server.identity["server"]["get_model_info"]["model_path"] == "glm"


def test_another_model_at_the_end_is_an_error(tmp_path: pathlib.Path) -> None:
    with FakeServer(Schedule(model="glm")) as fake:
        port = fake.port
        session = running(UrlArm("candidate", fake.url), tmp_path)
        session.__enter__()
    said = r"another server at the end than at the start \(model_path was 'glm' and is 'another'"
    with FakeServer(Schedule(model="another"), port=port), pytest.raises(ServerChangedError, match=said):
        session.__exit__(None, None, None)


def test_a_url_without_server_says_so_at_once(tmp_path: pathlib.Path) -> None:
    arm, said = UrlArm("candidate", "http://127.0.0.1:9"), r"no server answers at http://127\.0\.0\.1:9; start it"
    with pytest.raises(ArmError, match=said), running(arm, tmp_path):
        raise AssertionError("nobody is there")


def test_the_key_opens_the_server_and_is_written_nowhere(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", f"{SERVE} --api-key {KEY}", api_key=Secret(KEY))
    with running(arm, tmp_path) as server:
        pass
    assert server.identity["server"]["get_server_info"]["api_key"] == MASK
    written = repr(arm) + repr(server) + (tmp_path / "logs" / "candidate.log").read_text()
    assert KEY not in written.replace(repr(arm.command), "")  # the template is the caller's own
    assert written.count(MASK) >= 3


def test_a_key_that_only_the_server_knows_is_not_read_out(tmp_path: pathlib.Path) -> None:
    with running(CommandArm("candidate", SERVE + " --api-key=other"), tmp_path) as server:
        pass
    assert "get_server_info" not in server.identity["server"]  # it asked for the key


def test_a_dying_server_is_quoted_without_the_key(tmp_path: pathlib.Path) -> None:
    arm = CommandArm("candidate", f"{SERVE} --die 'bad key {KEY}'", api_key=Secret(KEY))
    with pytest.raises(ArmError, match="bad key") as caught, running(arm, tmp_path):
        raise AssertionError("it was called ready")
    assert KEY not in str(caught.value)
    assert KEY not in (tmp_path / "logs" / "candidate.log").read_text()


def fake_smi(folder: pathlib.Path, *used_mib: int) -> None:
    """An ``nvidia-smi`` that tells one figure after the other, and the last one from then on."""
    (folder / "bin").mkdir()
    (folder / "used").write_text("".join(f"0, {used}\n" for used in used_mib))
    script = (
        "#!/bin/sh\n"
        f"cd {shlex.quote(str(folder))}\n"
        "head -n 1 used\n"
        '[ "$(wc -l < used)" = 1 ] || { tail -n +2 used > rest; mv rest used; }\n'
    )
    (folder / "bin" / "nvidia-smi").write_text(script)
    (folder / "bin" / "nvidia-smi").chmod(0o755)


def test_memory_that_comes_free_late_is_waited_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, 500, 70_000, 70_000, 900)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with running(CommandArm("candidate", SERVE, stop_timeout_s=5.0), tmp_path):
        pass
    assert (tmp_path / "used").read_text() == "0, 900\n"


def test_memory_that_stays_in_use_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, 500, 70_000)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with (
        pytest.raises(ArmError, match=r"candidate was stopped, but memory is still in use .*'0': 70000"),
        running(CommandArm("candidate", SERVE, stop_timeout_s=0.4), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:30000", "has no scheme or host"),
        ("ftp://host", "has no scheme or host"),
        ("http://", "has no scheme or host"),
        ("http://host:port", "is no URL"),
        ("http://[::1", "is no URL"),
        ("https://host", "is https, which the client does not speak"),
        ("http://me:sesame@host", "http://host holds more than an address"),
        ("http://host/?key=sesame", "http://host/ holds more than an address"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_without_their_secrets(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match="--server-url") as caught:
        check_url(url, "--server-url")
    assert expected in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_usable_url_loses_its_last_slash() -> None:
    assert check_url("http://[::1]:30000/v2/", "--server-url") == "http://[::1]:30000/v2"
    assert redacted("http://me:sesame@host:1/x?key=sesame") == "http://host:1/x"
