"""Tells the moment a process ends, and how, though it is not a child of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import platform
import re
import resource
import select
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import Instant, ProcessId

REAPING_SECONDS: Final = 1.5
"""How long the parent of an ended process is waited for: one that lives reaps within milliseconds,
and an ending has to be settled 2 s after its process is gone."""

EXIT_INFO_LINUX: Final = (6, 15)
"""The first Linux whose pidfds tell an exit status. Before 6.13 they tell nothing at all."""

# struct pidfd_info of include/uapi/linux/pidfd.h, its first version: every later one takes it.
_INFO_BYTES: Final = 64
_EXIT_CODE_OFFSET: Final = 60
_INFO_EXIT: Final = 1 << 3
_GET_INFO: Final = 3 << 30 | _INFO_BYTES << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, pidfd_info)


RESERVED_FILES: Final = 48
"""Files that are left for probes, the store and whoever reads the page: without one free an agent
is deaf, without a watch it sees an end at its next look."""


class ExitWatch:
    """Waits for the end of one process, which may be anybody's; made in a running loop.

    `on_exit` is called once, at once, with the monotonic time and the wait status: what waitpid(2)
    reports, where the process is a zombie that the agent may look into, or was reaped already.
    Where it got None, `on_status` is called once after it: with the status as soon as the parent
    has reaped the process (Linux 6.15 and newer), or with None once that will not be known. Where
    `on_exit` got the status, `on_status` is not called. Nothing is called after `close`.

    Raises:
        ProcessLookupError: that process is gone, and so is its status.
        OSError: no watch is possible now, such as EMFILE.
    """

    __slots__ = (
        "_clock",
        "_deadline",
        "_fd",
        "_loop",
        "_on_exit",
        "_on_status",
        "_proc",
        "_process",
        "_reaping",
    )

    def __init__(
        self,
        process: ProcessId,
        proc: Proc,
        *,
        clock: Callable[[], Instant],
        on_exit: Callable[[float, int | None], None],
        on_status: Callable[[int | None], None],
    ) -> None:
        self._process = process
        self._proc = proc
        self._clock = clock
        self._on_exit = on_exit
        self._on_status = on_status
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None
        self._reaping: select.epoll | None = None
        self._fd = _opened(process.pid)
        try:
            # The number may be another process's by now; what is open stays the same one.
            if not proc.is_same(process):
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            self._loop.add_reader(self._fd, self._ended)
        except OSError:
            os.close(self._fd)
            self._fd = -1
            raise

    def close(self) -> None:
        """Stops waiting; nothing is called any more. May be repeated."""
        if self._fd < 0:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        if self._reaping is not None:
            self._loop.remove_reader(self._reaping.fileno())
            self._reaping.close()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _ended(self) -> None:
        at = self._clock().monotonic_seconds
        # It stays readable from now on, and would be called for ever.
        self._loop.remove_reader(self._fd)
        status = self._zombie_status()
        if status is None:
            status = _exit_info(self._fd)
        if status is not None:
            self.close()
        else:
            self._await_reaping()
        self._on_exit(at, status)

    def _zombie_status(self) -> int | None:
        # In this order: a status that was read before access was refused reads as 0.
        if not self._proc.shows_exit_status(self._process.pid):
            return None
        stat = self._proc.stat(self._process.pid)
        if stat is None or stat.start_ticks != self._process.start_ticks:
            return None
        return stat.exit_status

    def _await_reaping(self) -> None:
        if has_exit_info() is False:
            self._deadline = self._loop.call_later(0, self._reaped)
            return
        self._deadline = self._loop.call_later(REAPING_SECONDS, self._reaped)
        # Without it the deadline asks.
        with contextlib.suppress(OSError):
            self._reaping = select.epoll()
            # A loop can wait for readable only, which it is. This waits for nothing but POLLHUP.
            self._reaping.register(self._fd, 0)
            self._loop.add_reader(self._reaping.fileno(), self._reaped)

    def _reaped(self) -> None:
        status = _exit_info(self._fd)
        self.close()
        self._on_status(status)


def _opened(pid: int) -> int:
    fd = os.pidfd_open(pid)
    if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fd


def has_exit_info() -> bool | None:
    """Whether pidfds of this kernel tell exit statuses; None where only an exit would show it."""
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, _GET_INFO, bytes(_INFO_BYTES))
    except OSError:
        return False
    finally:
        os.close(fd)
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    is_new = numbers is not None and (int(numbers[1]), int(numbers[2])) >= EXIT_INFO_LINUX
    return True if is_new else None


def _exit_info(fd: int) -> int | None:
    """The wait status that a pidfd tells once its process was reaped."""
    info = bytearray(_INFO_BYTES)
    struct.pack_into("=Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(fd, _GET_INFO, info)
    except OSError:
        return None
    (told,) = struct.unpack_from("=Q", info, 0)
    if not told & _INFO_EXIT:
        return None
    status: int = struct.unpack_from("=i", info, _EXIT_CODE_OFFSET)[0]
    return status
