"""Passes requests on to a real server of this machine and calls itself something else after some of them."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

PAGES: Mapping[str, Any] = {
    "/health": {},
    "/get_model_info": {"model_path": "checkpoint", "weight_version": "default"},
    "/get_server_info": {"version": "0.5.12", "random_seed": 11, "tp_size": 8, "speculative_algorithm": "EAGLE"},
}


@contextlib.contextmanager
def turncoat(url: str, *, after: int, becomes: Mapping[str, Any]) -> Iterator[str]:
    """The URL of a server that answers as ``url`` does, and from ``after`` requests on has ``becomes`` in its pages."""
    target = urllib.parse.urlsplit(url)
    pages = {path: dict(page) for path, page in PAGES.items()}
    seen, lock = [0], threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200 if self.path in pages else 404, json.dumps(pages.get(self.path)).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with contextlib.closing(http.client.HTTPConnection(target.hostname or "", target.port or 80)) as connection:
                connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                kind = answer.headers["Content-Type"]
                self._answer(answer.status, answer.read(), kind)
            if self.path == "/generate":
                with lock:
                    seen[0] += 1
                    if seen[0] == after:
                        for page in pages.values():
                            page.update({key: value for key, value in becomes.items() if key in page})

        def _answer(self, status: int, body: bytes, kind: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
