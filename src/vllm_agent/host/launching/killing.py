"""Signals to exactly the process that is meant, and SIGKILL to a launch until nothing is left.

No number is trusted: a pidfd is opened first, and then it is looked whether the process is the one
that is meant; what is open stays that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launching.remains import CannotLook
from vllm_agent.host.patience import TooManyHung

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_agent.host.launching.remains import Remains
    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import ProcessId

EMPTY_LOOKS: Final = 2
"""Looks in a row that find nothing before nothing is left: one may miss what was forked during it
by a process that it did not see any more."""

AWAITED_AT_ONCE: Final = 64
"""Processes whose exits are waited for together, each with a file; the others are signalled, and
waited for after the next look. 8 GPUs take some 40."""

ROUND_SECONDS: Final = 1.0
"""Longest wait for exits before the next look, which finds what was forked meanwhile. SIGKILL takes
milliseconds, and up to a second where gigabytes have to be given back."""

STUCK_SECONDS: Final = 5.0
"""What is alive that long after SIGKILL is told of: it waits in the kernel, for a hung driver or
disk, or the agent may not end it."""

STUCK_ROUND_SECONDS: Final = 5.0
"""The same as ROUND_SECONDS from then on: a look costs 20 µs for each process of the host."""

STUCK_DROPPED: Final = "unkillable_process"
"""Counts processes that SIGKILL did not end within STUCK_SECONDS."""

_LOGGER: Final = logging.getLogger(__name__)


def send_signal(process: ProcessId, number: signal.Signals, proc: Proc) -> bool:
    """Sends a signal to that very process; whether it was there.

    Raises:
        OSError: it could not be sent, as for want of rights.
    """
    fd = _opened(process, proc)
    if fd is None:
        return False
    try:
        return _send(fd, number)
    finally:
        os.close(fd)


async def kill_all(
    remains: Remains, proc: Proc, *, server: str, count_dropped: Callable[[str], None]
) -> int:
    """Sends SIGKILL to whatever a look finds until no look does; to how many it was sent.

    This takes as long as it takes. What cannot be looked for or ended is told of once.
    """
    killing = _Killing(proc, server, count_dropped)
    empty_looks = 0
    while empty_looks < EMPTY_LOOKS:
        try:
            left = await remains.look()
            if left:
                await remains.kill_group()
                await killing.kill(left)
        except (CannotLook, TooManyHung, OSError) as problem:
            killing.note_problem(str(problem))
            await asyncio.sleep(ROUND_SECONDS)
        else:
            empty_looks = 0 if left else empty_looks + 1
    await remains.remove_group()
    return killing.count


class _Killing:
    """One launch that is being killed."""

    def __init__(self, proc: Proc, server: str, count_dropped: Callable[[str], None]) -> None:
        self._proc = proc
        self._server = server
        self._count_dropped = count_dropped
        self._loop = asyncio.get_running_loop()
        self._first_sent: dict[ProcessId, float] = {}
        self._stuck: set[ProcessId] = set()
        self._is_problem_told = False

    @property
    def count(self) -> int:
        """How many processes SIGKILL was sent to."""
        return len(self._first_sent)

    def note_problem(self, why: str) -> None:
        """A round came to nothing."""
        if not self._is_problem_told:
            text = "what is left of a server cannot be looked for or ended; it is tried again"
            _LOGGER.warning(text, extra={"server": self._server, "detail": why})
        self._is_problem_told = True

    async def kill(self, left: Sequence[ProcessId]) -> None:
        """Signals all of them and waits until they have ended, for a round at most.

        Raises:
            OSError: a process cannot be signalled for want of a file.
        """
        self._note_stuck(left)
        awaited: list[int] = []
        try:
            # Parents come first, which may start another child for each that they lose.
            for process in left:
                fd = _opened(process, self._proc)
                if fd is None:
                    continue
                awaited.append(fd)
                self._first_sent.setdefault(process, self._loop.time())
                # It may have become somebody else's: then it is waited for, and told of.
                with contextlib.suppress(PermissionError):
                    _send(fd, signal.SIGKILL)
                if len(awaited) > AWAITED_AT_ONCE:
                    os.close(awaited.pop())
            await _ended(awaited, STUCK_ROUND_SECONDS if self._stuck else ROUND_SECONDS)
        finally:
            for fd in awaited:
                os.close(fd)

    def _note_stuck(self, left: Sequence[ProcessId]) -> None:
        now = self._loop.time()
        overdue = {p for p in left if now - self._first_sent.get(p, now) >= STUCK_SECONDS}
        for process in sorted(overdue - self._stuck, key=lambda process: process.pid):
            self._count_dropped(STUCK_DROPPED)
            stat = self._proc.stat(process.pid)
            _LOGGER.error(
                "a process of a server does not end by SIGKILL, and is waited for: "
                "is a driver or a disk hung?",
                extra={
                    "server": self._server,
                    "pid": process.pid,
                    "process_name": "" if stat is None else stat.name,
                    "process_state": "" if stat is None else stat.state,
                },
            )
        self._stuck = overdue


def _opened(process: ProcessId, proc: Proc) -> int | None:
    """A pidfd of that very process; None where it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # The number may be another process's by now; what is open stays the same one.
    if proc.is_same(process):
        return fd
    os.close(fd)
    return None


def _send(fd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    return True


async def _ended(fds: Sequence[int], timeout_seconds: float) -> None:
    """Waits until all processes of these pidfds have ended, for so long at most."""
    loop = asyncio.get_running_loop()
    left = set(fds)
    done = asyncio.Event()

    def ended(fd: int) -> None:
        loop.remove_reader(fd)
        left.discard(fd)
        if not left:
            done.set()

    for fd in fds:
        loop.add_reader(fd, ended, fd)
    try:
        if fds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), timeout_seconds)
    finally:
        for fd in left:
            loop.remove_reader(fd)
