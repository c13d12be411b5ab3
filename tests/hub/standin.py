"""A stand-in for the Hugging Face Hub: enough of it for the real huggingface_hub.

A model is a few files of random bytes. How fast they come, where they stall and what is answered
instead are set while it runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 64 * 1024
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass(frozen=True)
class Refusal:
    """What is answered to everything: the real Hub's status and X-Error-Code."""

    status: int
    code: str = ""
    message: str = ""


UNAUTHORIZED = Refusal(401, "", "Invalid username or password.")
GATED = Refusal(403, "GatedRepo", "Access to model is restricted.")
NOT_FOUND = Refusal(404, "RepoNotFound", "Repository not found")
TOO_MANY = Refusal(429, "", "Too many requests")


@dataclass
class Hub:
    """Serves `files` of one model at `url`, from another thread.

    `gates` holds back what lies behind so many bytes of a file, until they are raised. `cut_at`
    closes the connection once at that byte of a file. `is_hanging` answers nothing.
    """

    repo: str
    files: dict[str, bytes]
    refusal: Refusal | None = None
    is_hanging: bool = False
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    gates: dict[str, int] = field(default_factory=dict)
    cut_at: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    moved: threading.Condition = field(default_factory=threading.Condition)
    is_over: bool = False

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        with self.moved:
            self.moved.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def let(self, name: str, until: int) -> None:
        """Lets the first `until` bytes of a file through."""
        with self.moved:
            self.gates[name] = until
            self.moved.notify_all()

    def etag(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def wait_for_gate(self, name: str, position: int) -> int:
        """How far a file may be sent that is at `position`; waits until that is further."""
        with self.moved:
            self.served[name] = position
            self.moved.notify_all()
            self.moved.wait_for(
                lambda: self.is_over or self.gates.get(name, len(self.files[name])) > position
            )
            return self.gates.get(name, len(self.files[name]))


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        path = urlsplit(self.path)
        hub.requests.append(
            (self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        )
        if hub.is_hanging:
            with hub.moved:
                hub.moved.wait_for(lambda: hub.is_over or not hub.is_hanging)
            self.close_connection = True
        elif hub.refusal is not None:
            self._refuse(hub.refusal)
        elif match := _TREE.fullmatch(path.path):
            self._json([self._entry(name) for name in hub.files], match)
        elif match := _INFO.fullmatch(path.path):
            has_sizes = "blobs" in parse_qs(path.query)
            siblings = [self._sibling(name, has_sizes=has_sizes) for name in hub.files]
            self._json({"id": hub.repo, "sha": COMMIT, "siblings": siblings}, match)
        elif match := _FILE.fullmatch(path.path):
            self._file(unquote(match["name"]))
        else:
            self._refuse(NOT_FOUND)

    def _sibling(self, name: str, *, has_sizes: bool) -> dict[str, object]:
        size = {"size": len(self.hub.files[name])} if has_sizes else {}
        return {"rfilename": name, **size}

    def _entry(self, name: str) -> dict[str, object]:
        size, etag = len(self.hub.files[name]), self.hub.etag(name)
        lfs = {"oid": etag, "size": size, "pointerSize": 134}
        return {"type": "file", "path": name, "size": size, "oid": etag[:40], "lfs": lfs}

    def _json(self, value: object, match: re.Match[str]) -> None:
        if unquote(match["repo"]) != self.hub.repo:
            self._refuse(NOT_FOUND)
            return
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _file(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self._refuse(Refusal(404, "EntryNotFound", "Entry not found"))
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if begin else 200)
        headers = {"ETag": f'"{self.hub.etag(name)}"', "X-Repo-Commit": COMMIT}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "GET":
            self._body(name, content, begin)

    def _body(self, name: str, content: bytes, position: int) -> None:
        while position < len(content):
            until = self.hub.wait_for_gate(name, position)
            cut = self.hub.cut_at.get(name)
            if self.hub.is_over or cut == position:
                self.hub.cut_at.pop(name, None)
                self.close_connection = True
                return
            end = min(position + PIECE, until, len(content), cut or len(content))
            try:
                self.wfile.write(content[position:end])
            except OSError:  # the other side has gone
                self.close_connection = True
                return
            position = end

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": refusal.message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._send(refusal.status, headers, json.dumps({"error": refusal.message}).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
