"""A light HTTP client that asks as Prometheus does, on one kept connection."""

from __future__ import annotations

import gzip
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT_SECONDS: Final = 30.0
_RECEIVE_BYTES: Final = 1 << 20
_END_OF_HEAD: Final = b"\r\n\r\n"
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

ACCEPT: Final = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2.42 sends (scrape/scrape.go)."""


class NoAnswerError(Exception):
    """The server closed the connection, or sent what is no complete answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `seconds` from the first byte sent to the last byte received."""

    status: int
    head: bytes
    raw_body: bytes
    seconds: float

    @property
    def body(self) -> bytes:
        """The body, without chunks and uncompressed."""
        body = self.raw_body
        if b"transfer-encoding: chunked" in self.head.lower():
            body = _unchunked(body)
        return gzip.decompress(body) if b"content-encoding: gzip" in self.head.lower() else body

    @property
    def series(self) -> int:
        """How many series a metrics page shows."""
        lines = self.body.splitlines()
        return sum(1 for line in lines if line and not line.startswith(b"#"))


class Scraper:
    """Asks one path of one server on loopback, connecting again where the connection was closed."""

    def __init__(self, port: int, path: str = "/metrics", *, is_compressed: bool = True) -> None:
        encoding = "gzip" if is_compressed else "identity"
        self._port = port
        self._head = (
            f" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: Prometheus/2.42.0\r\n"
            f"Accept: {ACCEPT}\r\nAccept-Encoding: {encoding}\r\n"
            f"X-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n"
        )
        self._path = path
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str | None = None) -> Answer:
        """One answer, to the path of the scraper or another one.

        Raises:
            NoAnswerError: the connection ended before the answer did.
            OSError: nobody listens, or no byte came for `TIMEOUT_SECONDS`.
        """
        request = f"GET {path or self._path}{self._head}".encode("ascii")
        if self._connection is not None:
            try:
                return exchange(self._connection, request)
            except (NoAnswerError, ConnectionError):
                self.close()
        self._connection = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_SECONDS)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return exchange(self._connection, request)


def exchange(connection: socket.socket, request: bytes) -> Answer:
    """Sends a request and reads its answer.

    Raises:
        NoAnswerError: the connection ended before the answer did.
        OSError: no byte came for as long as the connection waits.
    """
    began = time.perf_counter()
    connection.sendall(request)
    received = bytearray()
    while (body_at := received.find(_END_OF_HEAD)) < 0:
        _receive(connection, received)
    body_at += len(_END_OF_HEAD)
    head = bytes(received[:body_at])
    length = _LENGTH.search(head)
    if length is not None:
        while len(received) < body_at + int(length[1]):
            _receive(connection, received)
    else:
        while not received.endswith(_LAST_CHUNK):
            _receive(connection, received)
    seconds = time.perf_counter() - began
    return Answer(int(head.split(None, 2)[1]), head, bytes(received[body_at:]), seconds)


def _receive(connection: socket.socket, received: bytearray) -> None:
    piece = connection.recv(_RECEIVE_BYTES)
    if not piece:
        raise NoAnswerError("the connection was closed")
    received += piece


def _unchunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end].split(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        at = line_end + 2
        pieces.append(body[at : at + size])
        at += size + 2
