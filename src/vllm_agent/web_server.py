"""The sockets that the agent serves its applications on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vllm_agent.config.url import MAX_SOCKET_PATH_BYTES
from vllm_agent.host.listeners import find_listener

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_agent.config.listen_address import ListenAddress

SHUTDOWN_SECONDS: Final = 0.5
"""How long open requests may take once the agent is told to end, which it does within 2 s."""

CONTROL_SOCKET_MODE: Final = 0o660
"""Owner and group may control the agent, nobody else."""


class CannotListen(Exception):  # noqa: N818 - it says what happened, as OSError's children do
    """An address to listen on cannot be had; the message says why and what to do."""


class WebServer:
    """Every listener of the agent, closed together."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []
        self._socket_path: Path | None = None

    async def serve(self, addresses: Iterable[ListenAddress], app: web.Application) -> list[str]:
        """Serves `app` on TCP; returns the addresses as bound.

        Raises:
            CannotListen: one of them is taken or not this host's.
        """
        runner = await self._runner(app)
        bound = []
        for address in addresses:
            site = web.TCPSite(runner, address.host, address.port)
            try:
                await site.start()
            except OSError as error:
                raise CannotListen(await _why(address, error)) from error
        for name in runner.addresses:
            host, port = name[0], name[1]
            bound.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        return bound

    async def serve_socket(self, path: Path, app: web.Application) -> None:
        """Serves `app` on the unix socket `path`; the state directory's lock makes it ours.

        Raises:
            CannotListen: the folder cannot be written, or the path is too long.
        """
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            limit = f"longer than {MAX_SOCKET_PATH_BYTES} bytes"
            raise CannotListen(f"cannot listen on {path}: {limit}; choose a shorter --state.dir")
        try:
            listener = _bound_socket(path)
        except OSError as error:
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error
        runner = await self._runner(app)
        await web.SockSite(runner, listener).start()
        self._socket_path = path

    async def close(self) -> None:
        """Closes every listener and removes the unix socket."""
        for runner in reversed(self._runners):
            await runner.cleanup()
        if self._socket_path is not None:
            with contextlib.suppress(OSError):
                self._socket_path.unlink()

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await runner.setup()
        self._runners.append(runner)
        return runner


def _bound_socket(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # By the mask and not by chmod afterwards: there must be no moment at which others may connect.
    mask = os.umask(0o777 & ~CONTROL_SOCKET_MODE)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


async def _why(address: ListenAddress, error: OSError) -> str:
    # The number in a failed name lookup is none of errno's.
    is_lookup = isinstance(error, socket.gaierror) or not error.errno
    text = f"cannot listen on {address}: {error if is_lookup else os.strerror(error.errno or 0)}"
    if error.errno != errno.EADDRINUSE:
        return text
    holder = await asyncio.to_thread(find_listener, address.port)
    by = f" by {holder}" if holder is not None else ""
    return f"{text}{by}; end it or choose another --web.listen-address"
