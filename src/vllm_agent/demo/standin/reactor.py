"""A process that sleeps in poll(2) until a descriptor, a signal or a deadline wakes it."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WAKEUP_BYTES = 64


class Reactor:
    """Callbacks for readable descriptors, signals and deadlines, in the main thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._signals: dict[int, Callable[[int], None]] = {}
        self._deadlines: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._status: int | None = None
        self._wakeup, write_end = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self.on_readable(self._wakeup, self._dispatch_signals)

    def on_readable(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back whenever the descriptor is readable or closed at the other end."""
        self._readers[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Stops watching a descriptor."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def on_signal(self, signums: Iterable[int], callback: Callable[[int], None]) -> None:
        """Calls back with the signal's number, outside of the signal handler."""
        for signum in signums:
            self._signals[signum] = callback
            signal.signal(signum, _wake_only)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back once, after a delay."""
        entry = (time.monotonic() + seconds, next(self._order), callback)
        heapq.heappush(self._deadlines, entry)

    def stop(self, status: int) -> None:
        """Makes `run` and every later `sleep` return; the first status counts."""
        if self._status is None:
            self._status = status

    @property
    def status(self) -> int | None:
        """The exit status, once somebody stopped the reactor."""
        return self._status

    def run(self) -> int:
        """Serves until `stop`; returns its status."""
        while self._status is None:
            self._turn()
        return self._status

    def hang(self, *, is_spinning: bool) -> None:
        """Serves until `stop`; spinning takes a whole core, as a collective that waits does."""
        while self._status is None:
            self._turn(0.0 if is_spinning else None)

    def sleep(self, seconds: float) -> bool:
        """Serves for a while; False when somebody stopped the reactor meanwhile."""
        return self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Serves until `done` or the time is over; False when stopped meanwhile."""
        over: list[bool] = []
        if seconds is not None:
            self.call_later(seconds, lambda: over.append(True))
        while self._status is None and not over and not done():
            self._turn()
        return self._status is None

    def _turn(self, timeout: float | None = None) -> None:
        """One wait, until the next deadline or for `timeout` milliseconds, and what it brings."""
        if self._deadlines and timeout is None:
            timeout = max(0.0, self._deadlines[0][0] - time.monotonic()) * 1000
        for fd, _event in self._poll.poll(timeout):
            callback = self._readers.get(fd)
            if callback is not None:
                callback()
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            heapq.heappop(self._deadlines)[2]()

    def _dispatch_signals(self) -> None:
        for signum in os.read(self._wakeup, _WAKEUP_BYTES):
            callback = self._signals.get(signum)
            if callback is not None:
                callback(signum)


def _wake_only(_signum: int, _frame: object) -> None:
    """The wakeup descriptor carries the signal; the handler itself has nothing to do."""
