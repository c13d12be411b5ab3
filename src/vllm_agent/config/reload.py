"""Loads the configuration while the agent runs, in a process that is started afresh.

The agent has threads by now: a fork could inherit a lock that nobody releases (ADR 17).
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
from typing import TYPE_CHECKING, Final, cast

from vllm_agent import __version__
from vllm_agent.config import apart
from vllm_agent.config.apart import CHECK, NoConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_agent.config.model import Config

RELOAD_SECONDS: Final = 30.0
"""For all of it. It takes 0.2 s, 0.6 s with 2,000 servers, and some times that on a busy host; more
where a file that the configuration names is on a network that hangs."""

READER: Final = (sys.executable, "-P", "-m", "vllm_agent.config.fresh_reader")

_STDIN, _STDOUT = 0, 1


async def load_afresh(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Load as `load` does, in a process of its own; a relative path begins where the agent is.

    The process is killed when this is cancelled, when it is late, and when it says too much.

    Raises:
        ConfigError: as `load` raises it.
        NoConfigError: the other process could not be started, or did not answer.
    """
    content, status = await _ask(pickle.dumps((path, dict(environ))))
    version, _, answer = content.partition(b"\n")
    if answer and version != __version__.encode():
        raise NoConfigError(
            f"version {version.decode(errors='replace')!r} was installed while this one, "
            f"{__version__}, runs: restart the agent"
        )
    # 2,000 servers take 14 ms, of which a thread leaves the loop its share.
    return await asyncio.to_thread(apart.configuration, answer, status)


async def _ask(question: bytes) -> tuple[bytes, int]:
    """What the other process answers, and its exit code (negative: the signal that ended it)."""
    loop = asyncio.get_running_loop()
    try:
        transport, reader = await loop.subprocess_exec(
            lambda: _Reader(loop),
            *READER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise apart.cannot_start(error) from None
    try:
        async with asyncio.timeout(RELOAD_SECONDS):
            stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(_STDIN))
            stdin.write(question)
            stdin.close()
            await asyncio.shield(reader.finished)
        if reader.is_too_long:
            raise apart.too_long()
        await asyncio.shield(reader.exited)
    except TimeoutError:
        raise NoConfigError(
            "the process that reads the configuration did not answer within "
            f"{RELOAD_SECONDS:g} s, maybe a file that it names hangs: {CHECK}"
        ) from None
    finally:
        await _end(transport, reader)
    return bytes(reader.content), cast("int", transport.get_returncode())


async def _end(transport: asyncio.SubprocessTransport, reader: _Reader) -> None:
    """Leaves no process behind, and no zombie."""
    try:
        if transport.get_returncode() is None:
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
        await asyncio.shield(reader.exited)
    finally:
        transport.close()


class _Reader(asyncio.SubprocessProtocol):
    """Keeps what the process says; `finished` is when that is all, or more than is allowed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.content = bytearray()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()

    @property
    def is_too_long(self) -> bool:
        return len(self.content) > apart.MAX_ANSWER_BYTES

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - there is one
        if not self.is_too_long:
            self.content += data
        if self.is_too_long:
            _settle(self.finished)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the interface
        if fd == _STDOUT:
            _settle(self.finished)

    def process_exited(self) -> None:
        _settle(self.exited)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
