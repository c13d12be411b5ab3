"""Finds the processes that are new on the host, and those that became another program.

Numbers are given out one after the other, to threads too, and the kernel tells the last one: what
is new lies between it and the one before, and costs the same on a large host as on a small one.
Exec has no such trace. It follows the fork at once, or happens in a shell or a wrapper, mostly:
both are looked at again at each poll, and all others by a slow sweep.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from vllm_agent.host.wrappers import may_become_vllm

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vllm_agent.host.proc import CommandLine, Proc, ProcessStat

POLL_SECONDS: Final = 0.5
"""How often `poll` is to be called: a launch is seen within a second."""

SWEEP_SECONDS: Final = 15.0
"""How long a sweep over all processes takes, and so how late a rare exec may be seen."""

MAX_SWEPT_PER_POLL: Final = 40
"""Processes that a sweep reads in one poll, at 5 to 10 µs each: beyond 1,200 of them a sweep takes
longer, so that a large host costs no more."""

MAX_NUMBERS: Final = 1000
"""Numbers tried one by one, at 1 µs each; a listing of 1,000 processes takes 0.6 ms."""

YOUNG_SECONDS: Final = 10.0
"""How long a process is looked at again at each poll: a fork becomes its program in milliseconds,
and a start script of a container in seconds."""

MAX_YOUNG_PER_POLL: Final = 200
"""Young processes looked at again in one poll, in rotation, at 5 µs each. A host that starts 10,000
processes a minute has 80 new ones a poll."""

WRAPPER_SECONDS: Final = 3600.0
"""How long a shell or wrapper is looked at again at each poll: a start script may download a model
first. Older ones, such as somebody's terminal, are left to the sweep."""

MAX_WRAPPERS_PER_POLL: Final = 32
"""Shells and wrappers looked at again in one poll, in rotation, at 5 µs each."""

FINGERPRINT_BYTES: Final = 1024
"""The start of a command line that is compared: a program that becomes another changes that."""

MISSES_BEFORE_DISTRUST: Final = 2
"""Sweeps in a row that find what the numbers did not tell of, before they are no longer believed.
One may be a process restored with its old PID; lxcfs makes up the number for a container."""

_FIRST_PID: Final = 300  # RESERVED_PIDS in kernel/pid.c: where numbers begin again
_KTHREADD: Final = 2
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll found.

    `arrived` has every new process once, for those who follow trees; `lines` the command lines
    worth judging: of new processes, and of those whose line is another than before. Processes
    without arguments, as kernel threads and zombies, have no line. `is_whole` says that with this
    poll every process of the host has been looked at (again).
    """

    arrived: tuple[ProcessStat, ...] = ()
    lines: tuple[tuple[ProcessStat, CommandLine], ...] = ()
    is_whole: bool = False


class Look(NamedTuple):
    """A process to be looked at; `fingerprint` is None where it has to be read whatever it says."""

    pid: int
    fingerprint: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a look saw that was not known: `stat` is None where the process is gone.

    `fingerprint` is that of its line, None where that is out of reach.
    """

    pid: int
    stat: ProcessStat | None = None
    fingerprint: int | None = None
    line: CommandLine | None = None


@dataclass(slots=True)
class _Seen:
    """A known process; `inode` is 0 until a listing told it."""

    start_ticks: int
    fingerprint: int | None
    is_swept: bool
    inode: int


class NewProcesses:
    """Tells at each poll which processes are new, and which command lines.

    `poll` is `take(read(plan))`; the three are apart because `read` alone may hang, in memory that
    a driver has locked, and may run in a thread: it changes nothing. `kind_of` tells a process
    from a thread, see `is_process`.
    """

    def __init__(
        self,
        proc: Proc,
        *,
        clock: Callable[[], float] = time.monotonic,
        kind_of: Callable[[int], bool | None] | None = None,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._kind_of = is_process if kind_of is None else kind_of
        self._known: dict[int, _Seen] = {}
        # By PID, in the order in which they are next: until when.
        self._young: dict[int, float] = {}
        self._wrappers: dict[int, float] = {}
        self._listed: dict[int, int] = {}
        self._newest: int | None = None
        self._unborn: list[int] = []
        self._misses = 0
        self._counts_on_numbers = _is_own_view(proc)
        self._sweep: deque[int] = deque()
        self._slice_length = 0
        self._sweep_due = clock()
        self._is_sweeping = False

    @property
    def counts_on_numbers(self) -> bool:
        """Whether the newest number is believed; without it each poll lists all processes."""
        return self._counts_on_numbers

    @property
    def known(self) -> int:
        """How many processes are known."""
        return len(self._known)

    def poll(self) -> Batch:
        """What is new since the last poll; everything, the first time.

        Raises:
            OSError: /proc cannot be listed.
        """
        return self.take([self.read(look) for look in self.plan()])

    def plan(self) -> list[Look]:
        """The processes to look at now, each once; never reads what may hang.

        Raises:
            OSError: /proc cannot be listed.
        """
        now = self._clock()
        last = self._newest
        numbers, self._unborn = self._unborn, []
        fresh = self._new_numbers()
        if now >= self._sweep_due and not self._sweep:
            looks = self._begin_sweep(last, numbers)
            self._sweep_due = now + SWEEP_SECONDS
            self._unborn = [number for number in fresh or () if number not in self._listed]
        elif fresh is None:
            looks = self._list()
        else:
            looks = {pid: Look(pid) for pid in self._processes_of(numbers, fresh)}
        again = [
            *_rotated(self._young, MAX_YOUNG_PER_POLL, now),
            *_rotated(self._wrappers, MAX_WRAPPERS_PER_POLL, now),
            *(self._sweep.popleft() for _ in range(min(self._slice_length, len(self._sweep)))),
        ]
        for pid in again:
            seen = self._known.get(pid)
            if seen is not None and seen.is_swept:
                looks.setdefault(pid, Look(pid, seen.fingerprint))
        return list(looks.values())

    def read(self, look: Look) -> Reading | None:
        """Looks at one process; None if it is as it was. Changes nothing, and may hang."""
        pid = look.pid
        # First the fingerprint: a line that changes meanwhile is then read again, and not missed.
        fingerprint = self._fingerprint(pid)
        if look.fingerprint is not None and fingerprint == look.fingerprint:
            return None
        stat = self._proc.stat(pid)
        if stat is None:
            return Reading(pid)
        return Reading(pid, stat, fingerprint, self._proc.command_line(pid))

    def take(self, readings: Iterable[Reading | None]) -> Batch:
        """What the readings of the last plan say; to be called once for each plan."""
        arrived, lines = [], []
        for reading in readings:
            if reading is None:
                continue
            stat, line = reading.stat, reading.line
            if stat is None:
                self._forget(reading.pid)
                continue
            is_new, is_other = self._learn(stat, reading)
            if is_new:
                arrived.append(stat)
            if is_other and line is not None and line.arguments:
                lines.append((stat, line))
        self._listed = {}
        is_whole = self._is_sweeping and not self._sweep
        self._is_sweeping &= not is_whole
        return Batch(tuple(arrived), tuple(lines), is_whole)

    def set_aside(self, pids: Iterable[int]) -> Batch:
        """Reads the lines of these processes no more, as that hangs; tells the new ones."""
        arrived = []
        for pid in pids:
            stat = self._proc.stat(pid)
            if stat is not None:
                is_new, _ = self._learn(stat, Reading(pid, stat))
                self._known[pid].is_swept = False
                if is_new:
                    arrived.append(stat)
        return Batch(tuple(arrived))

    def _learn(self, stat: ProcessStat, reading: Reading) -> tuple[bool, bool]:
        """Keeps what is known of a process: whether it is new, and whether its line is another."""
        pid, now = stat.pid, self._clock()
        seen = self._known.get(pid)
        is_new = seen is None or seen.start_ticks != stat.start_ticks
        is_other = is_new or seen is None or seen.fingerprint != reading.fingerprint
        if seen is None or is_new:
            has_line = reading.line is not None and bool(reading.line.arguments)
            is_kernel_thread = _KTHREADD in {pid, stat.parent} and not has_line
            seen = self._known[pid] = _Seen(
                stat.start_ticks,
                reading.fingerprint,
                is_swept=not is_kernel_thread,
                inode=self._listed.get(pid, 0),
            )
            self._young[pid] = now + YOUNG_SECONDS
        seen.fingerprint = reading.fingerprint
        if is_other:
            self._wrappers.pop(pid, None)
            if may_become_vllm(stat.name):
                self._wrappers[pid] = now + WRAPPER_SECONDS
        return is_new, is_other

    def _forget(self, pid: int) -> None:
        for known in (self._known, self._young, self._wrappers):
            known.pop(pid, None)

    def _new_numbers(self) -> list[int] | None:
        """The numbers given out since the last call; None where a listing is due instead."""
        newest = self._proc.newest_pid() if self._counts_on_numbers else None
        last, self._newest = self._newest, newest
        if last is None or newest is None:
            return None
        if newest >= last:
            ranges = [range(last + 1, newest + 1)]
        else:
            ranges = [range(last + 1, self._proc.max_pid()), range(_FIRST_PID, newest + 1)]
        if sum(map(len, ranges)) > MAX_NUMBERS:
            return None
        return [number for numbers in ranges for number in numbers]

    def _processes_of(self, again: list[int], fresh: list[int]) -> Iterator[int]:
        """Which of the numbers are processes.

        A number is given out a moment before its process can be seen, so `fresh` ones that are
        none, or belong to a thread, are tried once more, `again`.
        """
        try:
            for number in again:
                if self._kind_of(number):
                    yield number
            for number in fresh:
                if self._kind_of(number):
                    self._misses = 0
                    yield number
                else:
                    self._unborn.append(number)
        except OSError as error:
            self._distrust(f"a process cannot be told from a thread: {error}")
            yield from self._list()

    def _list(self) -> dict[int, Look]:
        """Looks at what is not known of a listing of all processes; forgets what is not in it."""
        try:
            inodes = self._proc.inodes()
        except OSError:
            # The numbers since the last poll are lost.
            self._newest = None
            raise
        self._listed = inodes
        for pid in self._known.keys() - inodes.keys():
            self._forget(pid)
        looks = {}
        for pid, inode in inodes.items():
            seen = self._known.get(pid)
            if seen is None:
                looks[pid] = Look(pid)
                continue
            if seen.inode not in {0, inode}:
                looks[pid] = Look(pid)
            seen.inode = inode
        return looks

    def _begin_sweep(self, last: int | None, again: list[int]) -> dict[int, Look]:
        looks = self._list()
        unknown = looks.keys() - self._known.keys() - set(again)
        if last is not None and self._counts_on_numbers:
            # Read after the listing: whatever is in it has been given out by now.
            self._check_numbers(unknown, last, self._proc.newest_pid() or last)
        self._sweep.extend(
            pid for pid, seen in self._known.items() if seen.is_swept and pid not in looks
        )
        in_time = math.ceil(len(self._sweep) * POLL_SECONDS / SWEEP_SECONDS)
        self._slice_length = min(in_time, MAX_SWEPT_PER_POLL)
        self._is_sweeping = True
        return looks

    def _check_numbers(self, unknown: Collection[int], last: int, newest: int) -> None:
        """Whether each process that the listing told of is one that the numbers would tell of."""
        is_wrapped = newest < last
        for pid in unknown:
            is_fresh = (pid > last or pid <= newest) if is_wrapped else last < pid <= newest
            if not is_fresh:
                self._misses += 1
                if self._misses >= MISSES_BEFORE_DISTRUST:
                    self._distrust("/proc/loadavg does not tell the newest process")
                return

    def _distrust(self, why: str) -> None:
        self._counts_on_numbers = False
        self._newest = None
        _LOGGER.info("new processes are found by listing all", extra={"detail": why})

    def _fingerprint(self, pid: int) -> int | None:
        # These are all that a host at rest costs: one read, and not a call more.
        try:
            descriptor = os.open(self._proc.path(pid, "cmdline"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return hash(os.read(descriptor, FINGERPRINT_BYTES))
        except OSError:
            return None
        finally:
            os.close(descriptor)


def is_process(number: int) -> bool | None:
    """Whether a number is that of a process, a zombie included, and not of a thread; None if gone.

    Raises:
        OSError: the kernel cannot tell (older than 5.3), or must not (seccomp).
    """
    try:
        os.close(os.pidfd_open(number))
    except ProcessLookupError:
        return None
    except OSError as error:
        # A thread: pidfd_open(2) since 5.3, and since 6.15 with a number of its own.
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return False
        raise
    return True


def _is_own_view(proc: Proc) -> bool:
    """Whether the numbers in `proc` are those that this process uses itself.

    They are not where the proc file system of the host is mounted in a container with PIDs of its
    own; the kernel then tells the newest number of the container, all the same.
    """
    try:
        return os.readlink(f"{proc.root}/self") == str(os.getpid())
    except OSError:
        return False


def _rotated(queue: dict[int, float], limit: int, now: float) -> list[int]:
    """The next PIDs of a queue, which become its last; without those whose time is over."""
    chosen = list(itertools.islice(queue, limit))
    for pid in chosen:
        until = queue.pop(pid)
        if now < until:
            queue[pid] = until
    return chosen
