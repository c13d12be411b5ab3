"""Which processes belong to one launch of a vLLM, what each of them is, and when it ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.pidfd import ExitWatch
from vllm_agent.host.vllm_argv import role_of_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import ComponentRole, Instant, ProcessId

MAX_PROCESSES: Final = 512
"""Processes followed at once in one launch, each with a pidfd: 8 GPUs take some 40, and what the
workers start to compile kernels comes and goes by the hundred."""

MAX_EXITS: Final = 256
"""Ended components kept of one launch: a vLLM starts none again, except with elastic scaling."""

MAX_PIDS: Final = 4096
"""PIDs remembered of one launch, the first: what compiles kernels comes and goes by the hundred,
and those that write to its log are there from its start."""

DROPPED_PROCESS: Final = "process"
DROPPED_EXIT_WATCH: Final = "exit_watch"
DROPPED_EXIT: Final = "component_exit"


@dataclass(slots=True, eq=False)
class Member:
    """A process of the launch; a component if it has a `role`.

    `parent` is the nearest process above it that is followed still, or is a component.
    `is_status_to_come` says that it has ended and that its wait status may yet be told.
    """

    process: ProcessId
    session: int
    parent: Member | None = None
    role: ComponentRole | None = None
    rank: str = ""
    cpu_seconds: float | None = None
    exit_seconds: float | None = None
    wait_status: int | None = None
    is_status_to_come: bool = False
    watch: ExitWatch | None = None


class Members:
    """The main process of a launch and all that belongs to it.

    A process belongs to it if its parent does, or if it is of the session that the main process
    leads; it then does so for ever, whatever parent it gets. `alive` has those that have not ended
    by PID, the main one first; `ended` the components that have, in that order; `seen` the PIDs of
    all that ever belonged to it, in their order, if not more than MAX_PIDS. `on_exit` is
    called once for each that ends, `on_status` when a status is told after that.
    """

    def __init__(
        self,
        main: ProcessId,
        session: int,
        proc: Proc,
        *,
        clock: Callable[[], Instant],
        role_of: Callable[[tuple[str, ...]], tuple[ComponentRole, str] | None],
        on_exit: Callable[[Member], None],
        on_status: Callable[[], None],
        count_dropped: Callable[[str], None],
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._role_of = role_of
        self._on_exit = on_exit
        self._on_status = on_status
        self._count_dropped = count_dropped
        self._ended_cpu_seconds: float | None = None
        self.main = Member(main, session)
        self.alive = {main.pid: self.main}
        self.ended: list[Member] = []
        self.seen = {main.pid: None}

    def start(self, stats: Iterable[ProcessStat]) -> None:
        """Begins to follow the main process, and what belongs to it among the host's processes."""
        self._watch(self.main)
        self.take_in(stats)

    def take_in(self, stats: Iterable[ProcessStat]) -> None:
        """Follows those that belong to the launch, and the processes below them."""
        children: dict[int, list[ProcessStat]] = {}
        belonging: deque[ProcessStat] = deque()
        # Older ones first, so that most parents are known before their children.
        for stat in sorted(stats, key=lambda stat: (stat.start_ticks, stat.pid)):
            if self._is_known(stat) or stat.is_zombie:
                continue
            if stat.parent in self.alive or self._is_of_session(stat):
                belonging.append(stat)
            else:
                children.setdefault(stat.parent, []).append(stat)
        while belonging:
            stat = belonging.popleft()
            self._join(stat)
            belonging.extend(children.pop(stat.pid, ()))

    def refresh(self) -> None:
        """Reads titles again, and looks for ends that no watch told of."""
        for member in tuple(self.alive.values()):
            if member.watch is None:
                self._look_for_end(member)
            self._read_title(member)

    def close(self) -> None:
        """Follows nothing any more."""
        for member in (self.main, *self.alive.values(), *self.ended):
            self._unwatch(member)

    @property
    def components(self) -> list[tuple[Member, ComponentRole]]:
        """Those with a role, ended ones first; the main process is not among them."""
        members = (*self.ended, *self.alive.values())
        return [(member, member.role) for member in members if member.role is not None]

    @property
    def is_status_to_come(self) -> bool:
        """Whether the status of one that has ended may yet be told."""
        return any(member.is_status_to_come for member in (self.main, *self.ended))

    @property
    def cpu_seconds(self) -> float | None:
        """What all of them have used by their last readings, ended ones included."""
        known = [m.cpu_seconds for m in self.alive.values() if m.cpu_seconds is not None]
        if not known:
            return self._ended_cpu_seconds
        return sum(known, self._ended_cpu_seconds or 0.0)

    def stat(self, member: Member) -> ProcessStat | None:
        """The state of a member now; None if it is gone."""
        stat = self._proc.stat(member.process.pid)
        if stat is None or stat.start_ticks != member.process.start_ticks:
            return None
        member.cpu_seconds = max(stat.cpu_seconds, member.cpu_seconds or 0.0)
        return stat

    # Joining.

    def _is_known(self, stat: ProcessStat) -> bool:
        member = self.alive.get(stat.pid)
        if member is None:
            return False
        if member.process.start_ticks == stat.start_ticks:
            return True
        # Its watch is about to tell the same.
        self._unwatch(member)
        self._exited(member, self._clock().monotonic_seconds, None)
        return False

    def _is_of_session(self, stat: ProcessStat) -> bool:
        """Whether only a descendant of the main process can be in that session.

        A shell's session holds strangers. The number is used again once its session is empty.
        """
        session = self.main.process.pid
        return stat.session == session and any(
            member.session == session for member in self.alive.values()
        )

    def _join(self, stat: ProcessStat) -> None:
        if len(self.alive) >= MAX_PROCESSES:
            self._count_dropped(DROPPED_PROCESS)
            return
        member = Member(
            self._proc.identify(stat),
            stat.session,
            self.alive.get(stat.parent),
            cpu_seconds=stat.cpu_seconds,
        )
        self.alive[stat.pid] = member
        if len(self.seen) < MAX_PIDS:
            self.seen[stat.pid] = None
        self._watch(member)
        self._read_title(member)

    def _read_title(self, member: Member) -> None:
        if member is self.main or member.exit_seconds is not None:
            return
        line = self._proc.command_line(member.process.pid)
        told = None if line is None else self._role_of(line.arguments)
        if told is None:
            return
        self._take_role(member, *told)

    @staticmethod
    def _take_role(member: Member, role: ComponentRole | None, rank: str) -> None:
        above = member.parent
        while above is not None and above.role is None:
            above = above.parent
        # A fork has the title of its parent until it sets its own or executes a program.
        is_copy = above is not None and above.role is role
        member.role, member.rank = (None, "") if is_copy else (role, rank)

    # Ending.

    def _watch(self, member: Member) -> None:
        try:
            member.watch = ExitWatch(
                member.process,
                self._proc,
                clock=self._clock,
                on_exit=partial(self._exited, member),
                on_status=partial(self._status_told, member),
            )
        except ProcessLookupError:
            self._exited(member, self._clock().monotonic_seconds, None)
        except OSError:
            self._count_dropped(DROPPED_EXIT_WATCH)

    @staticmethod
    def _unwatch(member: Member) -> None:
        if member.watch is not None:
            member.watch.close()
            member.watch = None
        member.is_status_to_come = False

    def _look_for_end(self, member: Member) -> None:
        """What a watch would have told, of a process that could not get one."""
        is_status_shown = self._proc.shows_exit_status(member.process.pid)
        stat = self.stat(member)
        if stat is None or stat.is_zombie:
            status = stat.exit_status if stat is not None and is_status_shown else None
            self._exited(member, self._clock().monotonic_seconds, status)
        else:
            self._watch(member)

    def _exited(self, member: Member, at_seconds: float, wait_status: int | None) -> None:
        if member.exit_seconds is not None:
            # Told already: by its watch, and by a look for what could not be watched.
            return
        stat = self.stat(member)  # a zombie still tells what it has used, and its name
        if stat is not None and member.role is None and member is not self.main:
            self._take_role(member, role_of_name(stat.name), "")
        if self.alive.get(member.process.pid) is member:
            # Else the number is another process's by now.
            del self.alive[member.process.pid]
        member.exit_seconds = at_seconds
        member.wait_status = wait_status
        member.is_status_to_come = wait_status is None and member.watch is not None
        if member.cpu_seconds is not None:
            self._ended_cpu_seconds = (self._ended_cpu_seconds or 0.0) + member.cpu_seconds
        if member is not self.main:
            self._keep_or_leave_out(member)
        self._on_exit(member)

    def _keep_or_leave_out(self, member: Member) -> None:
        if member.role is not None and len(self.ended) < MAX_EXITS:
            self.ended.append(member)
            return
        if member.role is not None:
            self._count_dropped(DROPPED_EXIT)
        self._unwatch(member)
        for other in self.alive.values():
            if other.parent is member:
                other.parent = member.parent

    def _status_told(self, member: Member, wait_status: int | None) -> None:
        member.wait_status = wait_status
        member.is_status_to_come = False
        self._on_status()
