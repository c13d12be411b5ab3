"""Which processes of the host are of one launch, wherever they went: nothing else may be killed.

A process is of a launch if it is in the session that the main process leads, descends from one that
is, has the mark of the server in its environment, or is in the cgroup of the launch. Zombies do not
count: they hold nothing.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.host.launching.launch_cgroup import LaunchCgroup
from vllm_agent.host.launching.plan import MARKER
from vllm_agent.host.model_environment import read_environ
from vllm_agent.host.patience import Patience
from vllm_agent.host.strays import MAX_ANCESTORS
from vllm_agent.host.vllm_argv import role_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import ProcessId

SETTLED_SECONDS: Final = 1.0
"""The environment of a process older than that is believed for good: one that is younger may be a
fork that has the environment of its parent until it executes a program."""

EXEC_READS: Final = 5
EXEC_SECONDS: Final = 0.002
"""How often, and how soon, an empty environment is read again: for less than a millisecond while a
program is executed it is (seen in half of 2,000 tries right after a spawn)."""

KTHREADD: Final = 2
"""The parent of the kernel's own threads, which have no environment."""

UNREADABLE_DROPPED: Final = "launch_process"
"""Processes whose environment could not be read in time, so that nobody knows whose they are."""

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_LOGGER: Final = logging.getLogger(__name__)


class CannotLook(Exception):  # noqa: N818 - it says what is the matter
    """The processes of the host could not be listed: that none was seen means nothing."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the environment of every process of a server's launches says, whoever reads it.

    `owner` tells agents apart: two on one host may each have a server of the same name. It is the
    state directory, which only one agent has at a time.
    """

    server: str
    owner: str

    @classmethod
    def of(cls, server: str, state_dir: Path) -> Self:
        """The mark of a server of the agent with that state directory.

        Raises:
            OSError: the directory is not there.
        """
        status = state_dir.stat()
        return cls(server, f"{status.st_dev:x}:{status.st_ino:x}")

    def value(self, launch_id: str) -> str:
        """The value of the variable for one launch."""
        return f"{self.server}/{launch_id}@{self.owner}"

    def is_in(self, environ: bytes) -> bool:
        """Whether an environment block of /proc has it."""
        begin, end = f"{MARKER}={self.server}/".encode(), f"@{self.owner}".encode()
        return any(
            entry.startswith(begin) and entry.endswith(end) for entry in environ.split(b"\0")
        )


def is_over(stat: ProcessStat) -> bool:
    """Whether nothing of a process runs: its first thread may have ended before the others."""
    return stat.is_zombie and stat.threads <= 1


def list_processes(proc: Proc) -> dict[int, ProcessStat]:
    """Every process of the host by PID, zombies included.

    Raises:
        CannotLook: /proc cannot be read, as when no file may be opened any more.
    """
    try:
        stats = {pid: stat for pid in proc.pids() if (stat := proc.stat(pid)) is not None}
    except OSError as error:
        raise CannotLook(str(error)) from error
    # Without a file to spare each process looks as if it were gone.
    if os.getpid() not in stats or proc.stat(os.getpid()) is None:
        raise CannotLook("/proc does not even show the agent")
    return stats


class _Verdict(Enum):
    OWN = auto()
    OTHER = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class _Listing:
    """All that lives on the host and is not the agent's own, by PID.

    `group` are the PIDs in the cgroup of the launch. `leader_ticks` is when the process began that
    has the PID of the main process now, None where none has it.
    """

    stats: Mapping[int, ProcessStat]
    group: frozenset[int]
    leader_ticks: int | None


class Remains:
    """What is left of a launch, seen by looks at all processes of the host.

    `process` is the main process of the launch; None for whatever launches have the mark. `mark` is
    None where environments tell nothing. `was_seen_alive` is whether this agent saw the launch
    live: the number of its session is not another's by now.
    """

    def __init__(
        self,
        proc: Proc,
        process: ProcessId | None,
        mark: Mark | None,
        *,
        count_dropped: Callable[[str], None],
        cgroup: LaunchCgroup | None = None,
        was_seen_alive: bool = False,
    ) -> None:
        self._proc = proc
        self._process = process
        self._mark = mark
        self._cgroup = cgroup
        self._count_dropped = count_dropped
        self._own_until_ticks = _now_ticks() if was_seen_alive else 0
        self._patience = Patience()
        self._known: frozenset[ProcessId] = frozenset()
        # Told apart for good.
        self._others: set[ProcessId] = set()

    async def look(self) -> list[ProcessId]:
        """What lives of the launch now, the oldest first.

        Raises:
            CannotLook: that could not be seen.
            TooManyHung: nor can it be before a read returns.
        """
        if self._process is not None and self._process.boot_id != self._proc.boot_id:
            return []
        began_ticks = _now_ticks()
        listings, _ = await self._patience.map(self._list, [self._cgroup])
        if not listings:
            raise CannotLook("a list of the processes did not come back in time")
        listing = listings[0]
        self._note_leader(listing.leader_ticks, began_ticks)
        found = self._belonging(listing.stats, listing.group)
        others = [stat for pid, stat in listing.stats.items() if pid not in found]
        marked = await self._marked(others, is_session_its=self._is_session_its(listing))
        if marked:
            found = self._belonging(listing.stats, listing.group | marked)
        self._known = frozenset(map(self._proc.identify, found.values()))
        return sorted(self._known, key=lambda process: (process.start_ticks, process.pid))

    async def kill_group(self) -> None:
        """Sends SIGKILL to all of the launch's cgroup at once, where it has one."""
        if self._cgroup is not None:
            await self._patience.map(LaunchCgroup.kill, [self._cgroup])

    async def remove_group(self) -> None:
        """Removes the launch's cgroup, if nothing lives in it."""
        if self._cgroup is not None:
            await self._patience.map(LaunchCgroup.remove, [self._cgroup])

    def close(self) -> None:
        """Ends the thread that looks."""
        self._patience.close()

    # Who belongs to it.

    def _list(self, cgroup: LaunchCgroup | None) -> _Listing:
        stats = list_processes(self._proc)
        leader = None if self._process is None else stats.get(self._process.pid)
        agent = _with_ancestors(os.getpid(), stats)
        session = stats[os.getpid()].session
        living = {
            pid: stat
            for pid, stat in stats.items()
            if not (is_over(stat) or pid in agent or stat.session == session)
        }
        group = frozenset[int]() if cgroup is None else cgroup.pids()
        return _Listing(living, group, None if leader is None else leader.start_ticks)

    def _note_leader(self, leader_ticks: int | None, at_ticks: int) -> None:
        """As long as its main process is there, a zombie at least, nobody else has its session."""
        if self._process is not None and leader_ticks is not None:
            is_main = leader_ticks == self._process.start_ticks
            self._own_until_ticks = at_ticks if is_main else 0

    def _is_session_its(self, listing: _Listing) -> bool:
        """Whether nothing speaks against it."""
        if self._process is None:
            return False
        return listing.leader_ticks in {None, self._process.start_ticks}

    def _belonging(
        self, stats: Mapping[int, ProcessStat], own: frozenset[int]
    ) -> dict[int, ProcessStat]:
        """Those of the launch, among them those whose PIDs are in `own`, and all below them."""
        children: dict[int, list[ProcessStat]] = {}
        for stat in stats.values():
            children.setdefault(stat.parent, []).append(stat)
        found: dict[int, ProcessStat] = {}
        left = [stat for stat in stats.values() if stat.pid in own or self._is_own(stat)]
        while left:
            stat = left.pop()
            if stat.pid not in found:
                found[stat.pid] = stat
                # No child is older than its parent: that number would be another's.
                left += [c for c in children.get(stat.pid, ()) if c.start_ticks >= stat.start_ticks]
        return found

    def _is_own(self, stat: ProcessStat) -> bool:
        process = self._proc.identify(stat)
        if process == self._process or process in self._known:
            return True
        return self._is_of_session(stat) and stat.start_ticks <= self._own_until_ticks

    def _is_of_session(self, stat: ProcessStat) -> bool:
        return (
            self._process is not None
            and stat.session == self._process.pid
            and stat.start_ticks >= self._process.start_ticks
        )

    # Whose environment has the mark.

    async def _marked(
        self, stats: Iterable[ProcessStat], *, is_session_its: bool
    ) -> frozenset[int]:
        """The PIDs of those that the mark tells, or a title."""
        since_ticks = 0 if self._process is None else self._process.start_ticks
        unknown = [
            stat
            for stat in stats
            if stat.start_ticks >= since_ticks and self._proc.identify(stat) not in self._others
        ]
        told, hung = await self._patience.map(partial(self._judge, is_session_its), unknown)
        for stat in hung:
            self._others.add(self._proc.identify(stat))
            self._count_dropped(UNREADABLE_DROPPED)
            text = "a process cannot be read, and may be left of a server: is a driver hung?"
            _LOGGER.warning(text, extra={"pid": stat.pid})
        settled_ticks = _now_ticks() - SETTLED_SECONDS * _TICKS_PER_SECOND
        self._others.update(
            self._proc.identify(stat)
            for stat, verdict in told
            if verdict is _Verdict.OTHER and stat.start_ticks < settled_ticks
        )
        return frozenset(stat.pid for stat, verdict in told if verdict is _Verdict.OWN)

    def _judge(
        self,
        is_session_its: bool,  # noqa: FBT001 - of a partial
        stat: ProcessStat,
    ) -> tuple[ProcessStat, _Verdict]:
        """What a process says of itself. This may hang."""
        if self._mark is not None:
            environ = self._environ(stat)
            if environ and b"=" in environ:
                return stat, _Verdict.OWN if self._mark.is_in(environ) else _Verdict.OTHER
        # A component writes its title over its environment. There is none during an exec either.
        if is_session_its and self._is_of_session(stat):
            line = self._proc.command_line(stat.pid)
            if line is not None and role_of(line.arguments) is not None:
                return stat, _Verdict.OWN
        return stat, _Verdict.UNKNOWN

    def _environ(self, stat: ProcessStat) -> bytes | None:
        """The environment, asked again while a program is just being executed: then it is empty."""
        environ = read_environ(self._proc, stat.pid)
        for _ in range(EXEC_READS):
            if environ is None or environ or stat.parent == KTHREADD:
                break
            time.sleep(EXEC_SECONDS)
            environ = read_environ(self._proc, stat.pid)
        return environ


def _with_ancestors(pid: int, stats: Mapping[int, ProcessStat]) -> frozenset[int]:
    pids = {pid}
    for _ in range(MAX_ANCESTORS):
        stat = stats.get(pid)
        if stat is None:
            break
        pid = stat.parent
        pids.add(pid)
    return frozenset(pids)


def _now_ticks() -> int:
    """Now, as /proc says when a process was started."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_SECOND)
