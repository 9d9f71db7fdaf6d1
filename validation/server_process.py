"""Server processes: one arm of a node at a time, each in a process group of its own that is ended by its id."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

STOP_TIMEOUT_S = 60.0


class ArmError(RuntimeError):
    """An arm that did not start, answer or stop; the message says which and where its log is."""


class ServerChangedError(ArmError):
    """A server that became another model or build while it was measured: what it answered is of both."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Where an arm's commands run."""

    folder: pathlib.Path | None = None
    """None: this process's own."""
    variables: Mapping[str, str] | None = None
    """The environment variables; None: this process's own."""


@contextlib.contextmanager
def node_lock(progress: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold this node for one arm: two builds on the same GPUs would measure each other.

    The file names the holder's process group. A run that was killed leaves its server behind; the next holder ends it.
    """
    path = pathlib.Path(tempfile.gettempdir()) / f"validation-node-{os.getuid()}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another run's server on this node to end ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        _end_left_behind(file.read(), progress)
        file.truncate(0)
        yield file
        file.truncate(0)


def write_holder(file: IO[str], group: int) -> None:
    """Note in the lock's file which process group its holder has started."""
    file.write(f"{group} {_started(group)}")
    file.flush()


def _end_left_behind(holder: str, progress: Callable[[str], None]) -> None:
    """End the process group that a killed run left; ``holder`` is what ``write_holder`` wrote, or empty."""
    words = holder.split()
    if len(words) != 2 or not words[0].isdecimal():
        return
    group = int(words[0])
    if group < 2:  # 0 would be our own group, and 1 is init's
        return
    # the number is another process's by now where its start time differs; while members live it cannot be given again
    if _started(group) not in ("", words[1]) or not _members(group):
        return
    progress(f"ending process group {group}, the server of a run that was killed")
    _end_group(group, STOP_TIMEOUT_S)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    """When the process started, in ticks since boot; empty where there is none."""
    return (_stat(pid) or [""] * 20)[19]


def _members(group: int) -> list[int]:
    """Living processes of a group. A zombie is none: it holds nothing, and in a container nobody may reap it."""
    pids = [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]
    stats = {pid: _stat(pid) for pid in pids}
    return [pid for pid, fields in stats.items() if fields and fields[2] == str(group) and fields[0] not in "ZX"]


def words_of(template: str, values: Mapping[str, str]) -> list[str]:
    """The command's words, filled in after splitting, so that a folder with a blank in its name stays one word."""
    return [word.format(**values) for word in shlex.split(template)]


def spawn(words: Sequence[str], log: pathlib.Path, where: Surroundings = Surroundings()) -> subprocess.Popen[bytes]:
    """Start a command as the leader of its own process group; its output goes to the end of ``log``.

    Raises:
        ArmError: there is no such program.
    """
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=where.folder,
                env=where.variables,
            )
        except OSError as error:
            raise ArmError(
                f"command {words[0]!r} could not be started ({error.strerror}); expected a program on this machine"
            ) from error


def stop(
    process: subprocess.Popen[bytes],
    words: Sequence[str],
    log: pathlib.Path,
    timeout_s: float,
    where: Surroundings = Surroundings(),
) -> None:
    """End the whole process group by its id, politely first; the stop command, if any, runs before that.

    Raises:
        ArmError: members live on after SIGKILL.
    """
    if words:
        with log.open("ab") as output:
            try:
                result = subprocess.run(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout_s,
                    check=False,
                    cwd=where.folder,
                    env=where.variables,
                )
                said = f"ended with status {result.returncode}" if result.returncode else ""
            except OSError as error:
                said = f"could not be started ({error.strerror})"
            except subprocess.TimeoutExpired:
                said = f"did not end within {timeout_s:g} s"
            if said:
                output.write(f"the stop command {said}\n".encode())
    _end_group(process.pid, timeout_s, process)


def _end_group(group: int, timeout_s: float, leader: subprocess.Popen[bytes] | None = None) -> None:
    """SIGTERM to every member, SIGKILL to those that are left after half of ``timeout_s``; reaps ``leader``."""
    for sign, patience_s in ((signal.SIGTERM, timeout_s / 2), (signal.SIGKILL, timeout_s)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, sign)
        deadline = time.monotonic() + patience_s
        while True:
            if not _members(group):
                if leader is not None:
                    leader.wait()
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    raise ArmError(f"process group {group} did not end within {timeout_s * 1.5:.0f} s; end it by hand")
