"""An arm: one build that can be started, measured and stopped. The embedded engine, an installed server, a container, a URL.

A command arm is started afresh for every block; its command is a template with ``{port}``, ``{gpus}`` and ``{logdir}``.
A URL arm was started by somebody else: it cannot be restarted, so its launch effect cannot be separated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import requests

READY_TIMEOUT_S = 40 * 60.0
"""Large models take up to 40 minutes to load."""
STOP_TIMEOUT_S = 60.0
MEMORY_SLACK_MIB = 1024
"""GPU memory that may stay in use after a stop: a driver's context, not a model."""
PROBE_TIMEOUT_S = 10.0
TELL_EVERY_S = 10.0
_INFO = ("/get_server_info", "/server_info", "/get_model_info", "/version", "/v1/models")
_TEMPLATE_NAMES = ("port", "gpus", "logdir")


class ArmError(RuntimeError):
    """An arm that did not start, answer or stop; the message says which and where its log is."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an arm may run."""

    logdir: pathlib.Path
    gpus: str = ""
    """Device numbers for ``{gpus}``, e.g. ``0,1``."""


class Arm(Protocol):
    """One build. ``session`` starts it, waits until it is ready, and stops it on exit, whatever happens."""

    @property
    def name(self) -> str:
        """``baseline``, ``candidate`` or ``control``."""

    @property
    def fresh(self) -> bool:
        """Whether every session is a launch of its own."""

    def session(self, place: Place, progress: Callable[[str], None]) -> contextlib.AbstractContextManager[Server]:
        """A running server for the ``with`` block."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    ready_s: float
    identity: Mapping[str, Any]
    """What it says of itself, and how it was started."""


@dataclasses.dataclass(frozen=True)
class CommandArm:
    """A build behind a command line.

    ``stop_command`` ends what ending the client would leave running, such as a container.
    """

    name: str
    command: str
    stop_command: str = ""
    ready_timeout_s: float = READY_TIMEOUT_S
    fresh: bool = True
    label: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the user says of the build: commit, worktree, image digest."""

    def __post_init__(self) -> None:
        for template in (self.command, self.stop_command):
            check_template(template, self.name)

    @contextlib.contextmanager
    def session(self, place: Place, progress: Callable[[str], None]) -> Iterator[Server]:
        """Start, wait, identify; stop and see the memory freed on exit. One arm of a node at a time."""
        with node_lock():
            place.logdir.mkdir(parents=True, exist_ok=True)
            values = {"port": str(free_port()), "gpus": place.gpus, "logdir": str(place.logdir)}
            url = f"http://127.0.0.1:{values['port']}"
            log = place.logdir / f"{self.name}.log"
            before = gpu_memory_mib()
            started = time.monotonic()
            process = _spawn(self.command.format(**values), log)
            try:
                wait_ready(url, self.ready_timeout_s, process, log, progress)
                ready_s = time.monotonic() - started
                identity = {"command": self.command, "log": log.name, **self.label, "server": describe(url)}
                yield Server(url, round(ready_s, 3), identity)
            finally:
                _stop(process, self.stop_command.format(**values), log)
            _wait_memory_free(before, self.name)


@dataclasses.dataclass(frozen=True)
class UrlArm:
    """A server somebody else started. Its identity is read at the start and at the end of every session."""

    name: str
    url: str
    fresh: bool = False

    @contextlib.contextmanager
    def session(self, place: Place, progress: Callable[[str], None]) -> Iterator[Server]:
        """The server as it is.

        Raises:
            ArmError: it does not answer, or another model answers at the end than at the start.
        """
        started = time.monotonic()
        wait_ready(self.url, PROBE_TIMEOUT_S, None, None, progress)
        identity = {"url": redacted(self.url), "server": describe(self.url)}
        yield Server(self.url.rstrip("/"), round(time.monotonic() - started, 3), identity)
        after = describe(self.url)
        if _stable(after) != _stable(identity["server"]):
            raise ArmError(
                f"{self.name} at {redacted(self.url)} answered as {_stable(identity['server'])} at the start and as "
                f"{_stable(after)} at the end; expected one server, measure again"
            )


def embedded_arm(name: str, query_path: str, *options: str) -> CommandArm:
    """The embedded engine with one query path, in a process of its own."""
    words = (sys.executable, "-m", "validation.engine", "--query-path", query_path, *options)
    command = f"{' '.join(shlex.quote(word) for word in words)} --port {{port}}"
    return CommandArm(name, command, ready_timeout_s=120.0, label={"engine": "embedded", "query_path": query_path})


def check_template(template: str, option: str) -> None:
    """Raise ``ValueError`` unless ``template`` uses only the known names in braces."""
    try:
        template.format(**dict.fromkeys(_TEMPLATE_NAMES, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{option}: command {template!r} cannot be filled in ({error}); expected only "
            f"{', '.join('{' + name + '}' for name in _TEMPLATE_NAMES)}, and double braces for literal ones"
        ) from error


def check_url(url: str, option: str) -> str:
    """``url`` without a trailing slash; raises ``ValueError`` unless it is http(s) with a host."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{option} {redacted(url)} has no scheme or host; expected something like http://127.0.0.1:30000"
        )
    return url.rstrip("/")


def redacted(url: str) -> str:
    """``url`` without user name and password."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None and parts.password is None:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def node_lock() -> Iterator[None]:
    """Hold this node for one arm: two builds on the same GPUs would measure each other."""
    path = pathlib.Path(tempfile.gettempdir()) / f"validation-node-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_ready(
    url: str,
    timeout_s: float,
    process: subprocess.Popen[bytes] | None,
    log: pathlib.Path | None,
    progress: Callable[[str], None],
) -> None:
    """Return once ``url`` answers a health request with 200.

    Raises:
        ArmError: its process ended, or ``timeout_s`` passed.
    """
    started = told = time.monotonic()
    while True:
        if _is_ready(url):
            return
        waited = time.monotonic() - started
        where = f"; its log is {log}" if log else ""
        if process is not None and process.poll() is not None:
            tail = _tail(log)
            raise ArmError(
                f"the server of {redacted(url)} ended with status {process.returncode} before it was ready{where}{tail}"
            )
        if waited > timeout_s:
            raise ArmError(f"no server answered at {redacted(url)} within {timeout_s:.0f} s{where}")
        if process is None:
            raise ArmError(f"no server answers at {redacted(url)}; start it, or give the URL of one that runs")
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            progress(f"waiting for {redacted(url)}: {waited:.0f} s")
        time.sleep(min(0.05 + waited / 20, 2.0))


def _is_ready(url: str) -> bool:
    """Whether ``/health`` answers 200; a server without that route is asked for its models instead.

    A server that has the route answers something else while it warms up, when it may name its models already.
    """
    try:
        status = requests.get(url + "/health", timeout=PROBE_TIMEOUT_S, allow_redirects=False).status_code
    except requests.RequestException:
        return False
    return status == 200 or (status == 404 and _get(url + "/v1/models") is not None)


def describe(url: str) -> dict[str, Any]:
    """What the server says of itself, route by route; routes it lacks are left out."""
    found = {route.strip("/").replace("/", "_"): _get(url + route) for route in _INFO}
    return {route: answer for route, answer in found.items() if answer}


def reset_caches(url: str, api_key: str | None = None) -> bool:
    """Ask the server to forget cached prefixes; False where it has no such route or refuses."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = requests.post(url + "/flush_cache", headers=headers, timeout=PROBE_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException:
        return False
    return answer.status_code == 200


def gpu_memory_mib() -> dict[str, int]:
    """Memory in use on each GPU in MiB, by the vendor's tool; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return {index.strip(): int(used) for index, used in (line.split(",") for line in output.splitlines())}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, KeyError):
        query = ["rocm-smi", "--showmeminfo", "vram", "--json"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        cards = json.loads(output)
        return {card: int(info["VRAM Total Used Memory (B)"]) >> 20 for card, info in cards.items()}
    return {}


def _spawn(command: str, log: pathlib.Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                shlex.split(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise ArmError(
                f"command {command!r} could not be started ({error}); expected a program on this machine"
            ) from error


def _stop(process: subprocess.Popen[bytes], stop_command: str, log: pathlib.Path) -> None:
    """End the whole process group by its id, politely first; a stop command runs before that."""
    if stop_command:
        with log.open("ab") as output, contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                shlex.split(stop_command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=STOP_TIMEOUT_S,
            )
    for sign, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S / 2), (signal.SIGKILL, STOP_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        if _group_ended(process, patience_s):
            return
    raise ArmError(f"process group {process.pid} did not end within {STOP_TIMEOUT_S * 1.5:.0f} s; end it by hand")


def _group_ended(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return process.poll() is not None
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _wait_memory_free(before: Mapping[str, int], name: str) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        held = {gpu: used for gpu, used in gpu_memory_mib().items() if used > before.get(gpu, 0) + MEMORY_SLACK_MIB}
        if not held:
            return
        if time.monotonic() > deadline:
            raise ArmError(
                f"{name} was stopped, but memory is still in use (MiB per GPU: {held}); expected {dict(before)}"
            )
        time.sleep(0.5)


def _get(url: str) -> Any:
    """The JSON (or text) behind ``url``, or None unless it answers 200. Redirects are not followed."""
    try:
        answer = requests.get(url, timeout=PROBE_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException:
        return None
    if answer.status_code != 200:
        return None
    try:
        return answer.json()
    except ValueError:
        return answer.text[:200] or "ok"


def _stable(description: Any) -> Any:
    """The parts of a description that one running server keeps: its model and version, not its counters."""
    if not isinstance(description, Mapping):
        return description
    model = description.get("get_model_info") or description.get("v1_models") or {}
    info = description.get("get_server_info") or description.get("server_info") or {}
    return {
        "model": model.get("model_path") or [entry.get("id") for entry in model.get("data", [])],
        "version": info.get("version") if isinstance(info, Mapping) else None,
    }


def _tail(log: pathlib.Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"; its last line: {lines[-1][:300]}" if lines else ""
