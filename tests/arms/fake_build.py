"""A build to start in tests: a small HTTP server that starts slowly, dies early, leaves children or ignores SIGTERM."""

from __future__ import annotations

import argparse
import http.server
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any


def main() -> None:
    """Serve until SIGTERM; ``children.txt`` under ``--logdir`` names the processes that it started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--logdir", type=pathlib.Path)
    parser.add_argument("--gpus", default="")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--api-key")
    parser.add_argument("--die", metavar="SENTENCE")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    print(f"starting with {' '.join(sys.argv[1:])}", flush=True)
    if options.die:
        sys.exit(options.die)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child:
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
        (options.logdir / "children.txt").write_text(str(child.pid))
    if options.never_ready:
        time.sleep(600)
    pages = {
        "/health": {},
        "/get_model_info": {"model_path": options.model},
        "/get_server_info": {"version": "1.0", "argv": sys.argv[1:], "api_key": options.api_key},
    }
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler(pages, options.api_key)).serve_forever()


def handler(pages: dict[str, Any], api_key: str | None) -> type[http.server.BaseHTTPRequestHandler]:
    """Answers GET with ``pages``; where there is a key, all but ``/health`` want it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = api_key is None or self.headers.get("Authorization") == f"Bearer {api_key}"
            status = 404 if self.path not in pages else 200 if allowed or self.path == "/health" else 401
            self.send_response(status)
            self.end_headers()
            if status == 200:
                self.wfile.write(json.dumps(pages[self.path]).encode())

    return Handler


if __name__ == "__main__":
    main()
