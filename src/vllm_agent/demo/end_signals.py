"""The signals that end the demo, as something to wait for instead of an exception anywhere."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import FrameType

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `timeout` or a supervisor, and a terminal that is closed."""


class EndSignals:
    """Whether one of `END_SIGNALS` has come since this was entered, in the main thread.

    They raise nothing: an exception between the start of a process and the block that ends it
    would leave the process behind, and a second signal would cut the cleaning up short.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Whoever ignores one, as nohup does, has said that it is not to end this.
        self._before = {
            number: signal.signal(number, self._note)
            for number in END_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._read)
        os.close(self._write)

    @property
    def has_come(self) -> bool:
        """Whether the demo is to end."""
        return self.wait(0)

    def wait(self, seconds: float | None) -> bool:
        """Waits for a signal, at most so long; whether one has come."""
        return self._read in self._readable(seconds)

    def wait_for_exit(self, pid: int, seconds: float | None) -> None:
        """Waits for the end of a child that is not reaped yet, too."""
        pidfd = os.pidfd_open(pid)
        try:
            self._readable(seconds, pidfd)
        finally:
            os.close(pidfd)

    def _readable(self, seconds: float | None, *others: int) -> list[int]:
        return select.select([self._read, *others], [], [], seconds)[0]

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        # A pipe that is full has told it.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")
