"""Clients that stream completions from a vLLM, and hold on for a while when it falls silent."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Self

CLIENTS = 4
"""As many as there were when the endings of a real vLLM were recorded."""

PATIENCE_SECONDS = 5.0
"""A client leaves after this silence. vLLM waits for its clients when it stops."""

LIFETIME_SECONDS = 180.0
"""Clients that a test forgot end by themselves."""

SERVED_NAME = "tiny"

_FIRST_TOKEN_SECONDS = 90.0
_AGAIN_SECONDS = 0.1
_READ_BYTES = 1 << 16
_BODY = json.dumps(
    {
        "model": SERVED_NAME,
        "prompt": "one two",
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
    }
)
_REQUEST = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n{_BODY}"
).encode()


class StreamingClients:
    """`CLIENTS` threads, each with one stream after another, until the server is gone."""

    def __init__(self, port: int, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._address = ("127.0.0.1", port)
        self._streaming = threading.Semaphore(0)
        self._over = threading.Event()
        self._deadline = time.monotonic() + LIFETIME_SECONDS
        self._threads = [
            threading.Thread(target=self._stream_on, daemon=True) for _ in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        """Returns when every client has its first token."""
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._streaming.acquire(timeout=_FIRST_TOKEN_SECONDS), "no stream began"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * self._patience_seconds)

    def _stream_on(self) -> None:
        is_first = True
        # A refusal, a reset and a silence all make the client leave.
        with contextlib.suppress(OSError):
            while not self._is_over():
                self._stream(is_first=is_first)
                is_first = False
                self._over.wait(_AGAIN_SECONDS)

    def _stream(self, *, is_first: bool) -> None:
        with socket.create_connection(self._address, self._patience_seconds) as connection:
            connection.sendall(_REQUEST)
            while not self._is_over() and (chunk := connection.recv(_READ_BYTES)):
                if is_first and b"data:" in chunk:
                    is_first = False
                    self._streaming.release()

    def _is_over(self) -> bool:
        return self._over.is_set() or time.monotonic() > self._deadline
