"""Servers that answer like vLLM from canned bytes, as cheaply as this machine can.

`python -m benchmarks.farm --listeners N` serves N ports from one process; with `--processes` each
port has a process of its own, to be killed. It prints `[[port, pid], …]` as JSON once all listen,
and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final, cast

import uvloop

import vllm_agent.demo

MODEL: Final = "Qwen/Qwen3-0.6B"
_TEMPLATE: Final = Path(vllm_agent.demo.__file__).parent / "metrics_template.txt"
_BACKLOG: Final = 128
_END_OF_HEAD: Final = b"\r\n\r\n"
_MAX_REQUEST_BYTES: Final = 16 * 1024


def answers() -> dict[bytes, bytes]:
    """The whole answer by path; /metrics is a page that a vLLM sent, with its start now."""
    page = _TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("<engine>", "0").replace("<model>", MODEL)
    lines = [
        f"process_start_time_seconds {time.time():.2f}"
        if line.startswith("process_start_time_seconds ")
        else line
        for line in page.splitlines()
    ]
    models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
    bodies = {
        b"/health": ("text/plain", b""),
        b"/metrics": (
            "text/plain; version=1.0.0; charset=utf-8",
            "".join(f"{line}\n" for line in lines).encode(),
        ),
        b"/v1/models": ("application/json", json.dumps(models).encode()),
        b"/version": ("application/json", b'{"version":"0.32.0"}'),
    }
    return {path: _answer("200 OK", kind, body) for path, (kind, body) in bodies.items()}


def _answer(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\n"
        f"content-type: {content_type}\r\n\r\n"
    )
    return head.encode("ascii") + body


_NOT_FOUND: Final = _answer("404 Not Found", "application/json", b'{"detail":"Not Found"}')


class _Canned(asyncio.Protocol):
    """One connection; answers every request in the order it came."""

    def __init__(self, by_path: dict[bytes, bytes]) -> None:
        self._by_path = by_path
        self._unfinished = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *requests, self._unfinished = (self._unfinished + data).split(_END_OF_HEAD)
        if self._transport is None or len(self._unfinished) > _MAX_REQUEST_BYTES:
            return
        for request in requests:
            path = request.split(b" ", 2)[1]
            self._transport.write(self._by_path.get(path, _NOT_FOUND))


async def _serve(listeners: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    by_path = answers()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    for listener in listeners:
        await loop.create_server(lambda: _Canned(by_path), sock=listener, backlog=_BACKLOG)
    await ended.wait()


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(_BACKLOG)
    return listener


def _fork(listeners: list[socket.socket]) -> list[int]:
    """A process for each listener; returns their PIDs, in the first process only."""
    pids = []
    for own in listeners:
        pid = os.fork()
        if pid == 0:
            for listener in listeners:
                if listener is not own:
                    listener.close()
            uvloop.run(_serve([own]))
            os._exit(0)
        pids.append(pid)
    for listener in listeners:
        listener.close()
    return pids


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.farm")
    parser.add_argument("--listeners", type=int, required=True)
    parser.add_argument("--processes", action="store_true", help="one process per listener")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # standard input ends the farm, after its users
    listeners = [_listener() for _ in range(options.listeners)]
    ports = [listener.getsockname()[1] for listener in listeners]
    pids = _fork(listeners) if options.processes else [os.getpid()] * len(ports)
    print(json.dumps(list(zip(ports, pids, strict=True))), flush=True)
    if not options.processes:
        uvloop.run(_serve(listeners))
        return
    sys.stdin.buffer.read()
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
