"""Runs a program that answers at once, and gives it up when it does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_COMPLAINT_BYTES: Final = 4096
"""Kept of what a program says on standard error: a sentence or two."""

_STDOUT, _STDERR = 1, 2
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NoAnswerError(Exception):
    """The program is not there, was late, or failed; the message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed before it ended with code 0; `is_cut` by the bound."""

    output: bytes
    complaint: str
    is_cut: bool = False


async def run(
    command: Sequence[str],
    *,
    deadline_seconds: float,
    max_bytes: int,
    environment: Mapping[str, str] | None = None,
    take: Callable[[bytes], object] | None = None,
) -> Answer:
    """Runs `command`, a list of arguments: no shell sees it.

    It gets no input and, besides `environment`, only a search path and the language C. It is killed
    when it is late, when it prints more than `max_bytes`, and when this is cancelled. With `take`
    what it prints is handed over piece by piece instead of kept.

    Raises:
        NoAnswerError: there is none.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, reader = await loop.subprocess_exec(
            lambda: _Reader(max_bytes, loop, take),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ.get("PATH", _SEARCH_PATH),
                "LC_ALL": "C.UTF-8",
                **(environment or {}),
            },
        )
    except OSError as error:
        raise NoAnswerError(f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(deadline_seconds):
            await asyncio.shield(reader.finished)
        code = transport.get_returncode()
    except TimeoutError:
        raise NoAnswerError(f"{command[0]} did not answer within {deadline_seconds:g} s") from None
    finally:
        if transport.get_returncode() is None:
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
            await reader.exited
        transport.close()
    complaint = reader.complaint.decode("utf-8", "replace").strip()
    if code:
        raise NoAnswerError(complaint or f"{command[0]} ended with code {code}")
    return Answer(bytes(reader.output), complaint, reader.is_cut)


class _Reader(asyncio.SubprocessProtocol):
    """Keeps the beginning of what a program prints.

    `finished` is when all of it was read, or as much as is kept. A program that left a child behind
    which holds its output open has not finished.
    """

    def __init__(
        self,
        max_bytes: int,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[bytes], object] | None,
    ) -> None:
        self.output = bytearray()
        self.complaint = bytearray()
        self.is_cut = False
        self.finished: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[None] = loop.create_future()
        self._take = self.output.extend if take is None else take
        self._left_bytes = max_bytes
        self._open = {_STDOUT, _STDERR}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDERR:
            self.complaint += data[: MAX_COMPLAINT_BYTES - len(self.complaint)]
        elif not self.is_cut:
            self._take(data[: self._left_bytes])
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                self.is_cut = True
                self._finish()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - the interface
        self._open.discard(fd)
        self._finish_if_over()

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self.exited.done() and not self._open:
            self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
