"""An API server's end of the socket to one EngineCore."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

from vllm_agent.demo.standin.engine import BEGIN, END, EXECUTOR_FAILED, STEP

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_READ_BYTES = 1 << 12


class EngineDeadError(Exception):
    """The engine is gone; requests that waited for it fail."""


class EngineClient:
    """Steps of running requests, in the order in which the engine answers them."""

    def __init__(
        self, fd: int, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]
    ) -> None:
        self._fd = fd
        self._loop = loop
        self._on_lost = on_lost
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0
        self.executor_failed = False
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def begin(self) -> None:
        """Counts one more running request in the engine."""
        self.running += 1
        self._send(BEGIN)

    def end(self) -> None:
        """Ends what `begin` began."""
        self.running -= 1
        self._send(END)

    async def step(self) -> None:
        """Waits until the engine has made one token.

        Raises:
            EngineDeadError: the engine died, and `fail_waiting` was called.
        """
        answer: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(answer)
        self._send(STEP)
        await answer

    def fail_waiting(self) -> None:
        """Fails every waiting step, as a dead engine does outside of a stop."""
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(EngineDeadError())

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, message)

    def _read(self) -> None:
        try:
            answers = os.read(self._fd, _READ_BYTES)
        except ConnectionResetError:
            answers = b""
        self.executor_failed |= EXECUTOR_FAILED in answers
        for _ in range(answers.count(STEP)):
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(None)
        if not answers or self.executor_failed:
            self._loop.remove_reader(self._fd)
            self._on_lost()
