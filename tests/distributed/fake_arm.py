"""A fake server as an arm's command: it ends with its parent, and can take its Ray worker or its whole node with it.

``fake_arm.py PORT [--kill worker|node --once FILE] [--fail]``
"""

from __future__ import annotations

import argparse
import os
import pathlib
import runpy
import signal
import sys
import threading
import time
from typing import Any

FAKE_SERVER = pathlib.Path(__file__).resolve().parents[2] / "validation" / "client" / "fake_server.py"
KILL_AFTER_REQUESTS = 6
"""Mid-scenario: after some answers, before the last."""


def parent_of(pid: int) -> int:
    """From ``/proc``: the fourth field, after a name that may hold blanks."""
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_once(what: str, once: pathlib.Path) -> None:
    """SIGKILL the worker that started this arm, and for a node the raylet above it first; the first caller only."""
    try:
        once.touch(exist_ok=False)
    except FileExistsError:
        return
    worker = os.getppid()
    if what == "node":
        os.kill(parent_of(worker), signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)


def end_with(parent: int) -> None:
    """A killed worker cannot stop its server, so the server looks after itself."""
    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--kill", choices=["worker", "node"])
    parser.add_argument("--once", type=pathlib.Path)
    parser.add_argument("--fail", action="store_true")
    arguments = parser.parse_args()
    if arguments.fail:
        sys.exit("out of memory, as ordered")
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    fake: Any = runpy.run_path(str(FAKE_SERVER), run_name="fake_server")
    server = fake["FakeServer"](fake["Schedule"](tokens=8, model="fake"), port=arguments.port)
    if arguments.kill:
        answer = server._answer

        def answer_and_kill(*words: Any) -> None:
            answer(*words)
            if len(server.seen) == KILL_AFTER_REQUESTS:
                kill_once(arguments.kill, arguments.once)

        server._answer = answer_and_kill
    server.serve()


if __name__ == "__main__":
    main()
