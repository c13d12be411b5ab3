"""Servers for tests that say exactly what a test wants, on both event loops."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.config.url import parse_server_url
from vllm_agent.host.dial import Target

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

RECORDED = Path(__file__).parent.parent / "testdata" / "vllm-0.32.0"


def target(port: int, *, scheme: str = "http", timeout_seconds: float = 5.0, **fields) -> Target:
    return Target(parse_server_url(f"{scheme}://127.0.0.1:{port}"), timeout_seconds, **fields)


@asynccontextmanager
async def raw_server(talk: Talk, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Give the port of a server that runs `talk` for each connection and closes it afterwards."""
    talks = _Talks(talk)
    server = await asyncio.start_server(talks, "127.0.0.1", 0, ssl=tls, limit=2**20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await talks.end()


@asynccontextmanager
async def raw_socket_server(talk: Talk, path: Path) -> AsyncIterator[None]:
    """Serve like `raw_server`, on a unix socket."""
    talks = _Talks(talk)
    server = await asyncio.start_unix_server(talks, path)
    try:
        yield
    finally:
        server.close()
        await talks.end()


class _Talks:
    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def end(self) -> None:
        # A connection accepted just before the close begins its talk only now.
        await asyncio.sleep(0)
        while self._tasks:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)
            # Transports finish their close in the iterations that follow.
            for _ in range(3):
                await asyncio.sleep(0)


def saying(answer: bytes) -> Talk:
    """Answer the first request with `answer`, then close."""

    async def talk(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    return talk


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """Read the path and the headers of one request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request_line, *lines = head.rstrip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return request_line.split(" ")[1], headers


def ok(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def recorded_page(name: str) -> bytes:
    """Read a recorded page without the line that curl added to one of them."""
    page = (RECORDED / name).read_bytes()
    return page.partition(b"\n\n200 ")[0].rstrip(b"\n") + b"\n"


def open_sockets() -> int:
    """Count the sockets of this process."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count
