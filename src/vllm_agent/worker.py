"""One thread for everything that may block on the disk.

The thread is a daemon: one that hangs in a system call must not keep the agent from ending, as the
threads of concurrent.futures would.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class Worker:
    """Runs functions one after the other, off the event loop in which it was made."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._unfinished = 0
        self._is_hung = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def is_hung(self) -> bool:
        """Whether a call passed its deadline and nothing has finished since."""
        return self._is_hung

    @property
    def is_idle(self) -> bool:
        """Whether everything that was submitted has finished."""
        return self._unfinished == 0

    def submit(self, function: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Queue `function`; one whose future is cancelled before its turn never runs."""
        future: asyncio.Future[_Result] = self._loop.create_future()
        self._unfinished += 1
        self._jobs.put((function, future))
        return future

    async def wait(self, future: asyncio.Future[_Result], timeout_seconds: float) -> None:
        """Wait for `future` without cancelling it.

        Raises:
            TimeoutError: the thread did not finish it in time; it may still do so.
        """
        done, _ = await asyncio.wait({future}, timeout=timeout_seconds)
        if not done:
            self._is_hung = True
            raise TimeoutError

    def stop(self) -> None:
        """Let the thread end once its queue is empty."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            result, error = None, None
            if not future.cancelled():
                try:
                    result = function()
                except Exception as raised:  # noqa: BLE001 - it belongs to whoever waits
                    error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                return

    def _finish(
        self, future: asyncio.Future[_Result], result: _Result, error: Exception | None
    ) -> None:
        self._unfinished -= 1
        self._is_hung = False
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
