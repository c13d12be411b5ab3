"""Answers no server should give: what a probe meets when something else is on the port."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, NoReturn, cast

from aiohttp import web

if TYPE_CHECKING:
    from vllm_agent.demo.standin.faults import Fault

_GARBAGE = b"\x00\x01\x02SSH-2.0-not-http\r\n\xff\xfe\r\n\r\n"
_BAD_JSON = '{"object": "list", "data": [{"id": '
_METRIC = b"# TYPE made_up_total counter\nmade_up_total 1\n"
_CHUNK = _METRIC * (65536 // len(_METRIC))
_HUGE_BYTES = 100 * 1000 * 1000
# Endless, but not a whole core: about 6 MB/s.
_ENDLESS_PAUSE_SECONDS = 0.01
_HEADERS, _HEADER_BYTES = 64, 16384
_PROMISED_BYTES, _SENT = 1000, b"truncated"
# Linger on, for no time: close sends RST.
_RESET = struct.pack("ii", 1, 0)


class ResetProtocol(asyncio.Protocol):
    """Accepts a connection and resets it at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Resets before anything was read."""
        _reset(cast("asyncio.Transport", transport))


async def never_answer() -> NoReturn:
    """Waits until the client gives up, which cancels the request."""
    await asyncio.Event().wait()
    raise AssertionError


async def misbehave(
    fault: Fault, request: web.BaseRequest, drip_seconds: float
) -> web.StreamResponse:
    """Answers a request as the fault says."""
    match fault.mode:
        case "bad-json":
            response = web.Response(text=_BAD_JSON, content_type="application/json")
        case "redirect":
            response = web.Response(status=307, headers={"Location": fault.argument})
        case "status":
            response = web.Response(status=int(fault.argument))
        case mode:
            return await _misbehave_slowly(mode, request, drip_seconds)
    return response


async def _misbehave_slowly(
    mode: str, request: web.BaseRequest, drip_seconds: float
) -> web.StreamResponse:
    match mode:
        case "endless":
            return await _stream(request, None)
        case "huge":
            return await _stream(request, _HUGE_BYTES)
        case "drip":
            return await _drip(request, drip_seconds)
        case "silent":
            return await never_answer()
        case _:
            return await _raw(mode, request)


async def _stream(request: web.BaseRequest, size: int | None) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    response.content_length = size
    await response.prepare(request)
    sent = 0
    while size is None or sent < size:
        chunk = _CHUNK if size is None else _CHUNK[: size - sent]
        await response.write(chunk)
        sent += len(chunk)
        if size is None:
            await asyncio.sleep(_ENDLESS_PAUSE_SECONDS)
    return response


async def _drip(request: web.BaseRequest, seconds: float) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"#")
        await asyncio.sleep(seconds)


async def _raw(mode: str, request: web.BaseRequest) -> NoReturn:
    """Answers below HTTP, then waits for the connection's end."""
    transport = request.transport
    if transport is not None:
        if mode == "reset":
            _reset(transport)
        elif mode == "garbage":
            transport.write(_GARBAGE)
            transport.close()
        elif mode == "truncated":
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {_PROMISED_BYTES}\r\n\r\n"
            transport.write(head.encode() + _SENT)
            transport.close()
        else:
            line = b"X-Filler: " + b"x" * _HEADER_BYTES + b"\r\n"
            transport.write(b"HTTP/1.1 200 OK\r\n" + line * _HEADERS + b"\r\n")
    await never_answer()


def _reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
