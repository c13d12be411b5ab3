"""Reads that may hang, off the event loop.

The command line of a process is in its memory: reading it waits for whoever holds the lock on that
memory, which in a hung driver is for ever; the files of a process may be on a network. No system
call can be called back, so a thread that hangs is left behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HUNG_SECONDS: Final = 5.0
"""An item on which nothing has moved for that long is given up. A command line takes microseconds,
and 0.1 s where it has to come back from swap; the largest YAML file that is read takes 1 s."""

MAX_HUNG_THREADS: Final = 16
"""Threads left behind at a time; each costs its stack. More means that the host itself hangs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class TooManyHung(Exception):  # noqa: N818 - it says what is the matter
    """As many reads hang as threads may be left behind: nothing more is read until one returns."""


@dataclass(slots=True)
class _Task(Generic[Item, Result]):
    """Some items on their way; the thread appends to `results`, the event loop reads its length."""

    function: Callable[[Item], Result]
    items: Sequence[Item]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    results: list[Result] = field(default_factory=list)
    started: int = 0
    is_given_up: bool = False
    error: Exception | None = None


class Patience:
    """Runs functions over items in a thread of its own, and gives up on an item that hangs."""

    def __init__(self, hung_seconds: float = HUNG_SECONDS) -> None:
        self._hung_seconds = hung_seconds
        self._tasks: SimpleQueue[_Task[Any, Any] | None] | None = None
        self._left_behind: list[threading.Thread] = []
        self._thread: threading.Thread | None = None

    async def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> tuple[list[Result], list[Item]]:
        """The results of all items in order, without those of the items that hung, and the latter.

        A `function` that hangs ends later in a thread whose result nobody sees: it must change
        nothing that others see.

        Raises:
            TooManyHung: the bound is reached; nothing was done.
            Exception: what `function` raised.
        """
        results: list[Result] = []
        hung: list[Item] = []
        left = deque(items)
        while left:
            task = self._start(function, list(left))
            is_whole = await self._finished(task)
            # A copy: a thread that comes back later appends to the original.
            done = tuple(task.results)
            results += done
            for _ in done:
                left.popleft()
            if is_whole:
                break
            if task.started > len(done):
                hung.append(left.popleft())
            self._leave_thread()
        return results, hung

    def close(self) -> None:
        """Lets the thread end."""
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None

    def _start(self, function: Callable[[Item], Result], items: list[Item]) -> _Task[Item, Result]:
        if self._tasks is None:
            self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
            if len(self._left_behind) >= MAX_HUNG_THREADS:
                raise TooManyHung(f"{len(self._left_behind)} reads of processes hang")
            self._tasks = SimpleQueue()
            # A daemon: what hangs must not hold up the agent's exit.
            self._thread = threading.Thread(
                target=_work, args=(self._tasks,), name="processes", daemon=True
            )
            self._thread.start()
        loop = asyncio.get_running_loop()
        task: _Task[Item, Result] = _Task(function, items, loop, loop.create_future())
        self._tasks.put(task)
        return task

    async def _finished(self, task: _Task[Item, Result]) -> bool:
        """Waits for the end, True, or until an item has not moved for too long, False."""
        moved = -1
        while moved < len(task.results) and not task.done.done():
            moved = len(task.results)
            await asyncio.wait({task.done}, timeout=self._hung_seconds)
        if not task.done.done():
            task.is_given_up = True
            return False
        if task.error is not None:
            raise task.error
        return True

    def _leave_thread(self) -> None:
        if self._thread is not None:
            self._left_behind.append(self._thread)
        self.close()


def _work(tasks: SimpleQueue[_Task[Any, Any] | None]) -> None:
    while (task := tasks.get()) is not None:
        try:
            for item in task.items:
                if task.is_given_up:
                    return
                task.started += 1
                task.results.append(task.function(item))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            task.error = error
        try:
            task.loop.call_soon_threadsafe(_settle, task.done)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            return
        # A task must not be kept by a thread that waits for the next one.
        del task


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
