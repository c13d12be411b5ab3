"""A program that listens on the port of a vLLM that loads.

vLLM binds its port seconds after its start, and listens when it has loaded. Until then another
program may bind the same address with SO_REUSEADDR, and listen first.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()


class Stranger:
    """Answers every GET with 200, as a healthy vLLM does."""

    def __init__(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def connections(self) -> int:
        """How many were accepted."""
        return self._server.connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    connections = 0

    def process_request(self, request, client_address) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    timeout = 5

    def do_GET(self) -> None:
        body = _MODELS if self.path == "/v1/models" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Its requests are nobody's business."""
