"""Follows all processes of one launch of a vLLM, and notes what tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from vllm_agent.host.launch_members import Member, Members
from vllm_agent.host.pidfd import has_exit_info
from vllm_agent.observations import (
    Component,
    ComponentAtClose,
    ComponentExit,
    ComponentRole,
    Orphan,
    ProcessTree,
    Sight,
    SightKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import Instant, Sighting

_ROLE_ORDER: Final = tuple(ComponentRole)


@dataclass(frozen=True, slots=True)
class MainGone:
    """The main process ended, `at_seconds` on the monotonic clock."""

    at_seconds: float


@dataclass(frozen=True, slots=True)
class ComponentGone:
    """A component ended, `at_seconds` on the monotonic clock.

    `role` is None for a child of the main process that had no title, or not yet: an EngineCore has
    none in the first half minute.
    """

    role: ComponentRole | None
    at_seconds: float


TreeEvent: TypeAlias = MainGone | ComponentGone


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEvidence:
    """What a tree tells of the end of its launch; fields as those of `EndingEvidence`.

    `is_complete` says that the main process is gone and that the status of everything that ended
    is known, or is known to stay unknown.
    """

    main_wait_status: int | None
    main_exit_seconds: float | None
    main_was_exiting_at_close: bool | None
    close_seconds: float | None
    at_close: tuple[ComponentAtClose, ...] | None
    exits: tuple[ComponentExit, ...]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Close:
    at_seconds: float
    main_was_exiting: bool
    components: tuple[ComponentAtClose, ...]


class TreeWatch:
    """All processes of one launch: who they are, what they use, and how they end.

    `tell` is called by the loop, right after a component or the main process has ended, and never
    from within a call of this. `role_of` reads a title. Made and used in one running loop.
    """

    def __init__(
        self,
        sighting: Sighting,
        proc: Proc,
        *,
        clock: Callable[[], Instant],
        tell: Callable[[TreeEvent], None],
        role_of: Callable[[tuple[str, ...]], tuple[ComponentRole, str] | None],
        count_dropped: Callable[[str], None],
    ) -> None:
        self._sighting = sighting
        self._proc = proc
        self._clock = clock
        self._tell = tell
        self._members = Members(
            sighting.process,
            sighting.session,
            proc,
            clock=clock,
            role_of=role_of,
            on_exit=self._on_exit,
            on_status=self._note_completeness,
            count_dropped=count_dropped,
        )
        self._main = self._members.main
        self._close: _Close | None = None
        self._complete = asyncio.Event()
        self._may_inspect = False
        self._is_closed = False

    # Who belongs to it.

    def start(self, stats: Iterable[ProcessStat]) -> None:
        """Begins to follow the launch; `stats` are the processes of the host."""
        self._may_inspect = self._proc.shows_exit_status(self._main.process.pid)
        self._members.start(stats)

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Takes in those processes, new on the host, that belong to the launch."""
        self._members.take_in(stats)

    def refresh(self) -> None:
        """Reads the titles again, and looks for ends that could not be told."""
        self._members.refresh()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that have not ended, the main one first."""
        return tuple(self._members.alive)

    @property
    def all_pids(self) -> tuple[int, ...]:
        """Every process that is or was of this launch, the main one first."""
        return tuple({**self._members.seen, **dict.fromkeys(self._members.alive)})

    @property
    def cpu_seconds(self) -> float | None:
        """What all of it has used, ended processes included, when it was last looked at."""
        return self._members.cpu_seconds

    def has_had(self, role: ComponentRole) -> bool:
        """Whether there is, or was, a component of that role."""
        return any(known is role for _, known in self._members.components)

    @property
    def is_over(self) -> bool:
        """Whether the main process and every component have ended."""
        is_main_gone = self._main.exit_seconds is not None
        return is_main_gone and all(m.role is None for m in self._members.alive.values())

    def close(self) -> None:
        """Follows nothing any more and tells nothing more. May be repeated."""
        self._is_closed = True
        self._members.close()
        self._note_completeness()

    # How it ends.

    def note_close(self) -> None:
        """Notes, this moment, who is on its way out: the peer closed the idle connection.

        Of several closes that were not forgotten the first one counts.
        """
        if self._close is not None:
            return
        main = self._at_close(self._main, ComponentRole.API_SERVER)
        components = (self._at_close(*component) for component in self._members.components)
        at_seconds = self._clock().monotonic_seconds
        self._close = _Close(at_seconds, not main.is_alive, tuple(components))

    def forget_close(self, connected_seconds: float | None = None) -> None:
        """Drops the close that was noted: the server answers, so it meant nothing.

        `connected_seconds` is when the connection that was answered was made, on the monotonic
        clock; one from before the close proves nothing. Nor does an answer of another API server
        while one of several is ending.
        """
        noted = self._close
        if noted is None:
            return
        if connected_seconds is not None and connected_seconds < noted.at_seconds:
            return
        ending = [component.role for component in noted.components if not component.is_alive]
        ending += [member.role for member in self._members.ended if member.role is not None]
        if ComponentRole.API_SERVER not in ending:
            self._close = None

    def evidence(self) -> TreeEvidence:
        """What is known by now of the end of the launch."""
        noted = self._close
        return TreeEvidence(
            main_wait_status=self._main.wait_status,
            main_exit_seconds=self._main.exit_seconds,
            main_was_exiting_at_close=noted.main_was_exiting if noted else None,
            close_seconds=noted.at_seconds if noted else None,
            at_close=noted.components if noted else None,
            exits=tuple(
                ComponentExit(member.role, member.exit_seconds, member.wait_status)
                for member in self._members.ended
                if member.role is not None and member.exit_seconds is not None
            ),
            is_complete=self._complete.is_set(),
        )

    async def settled(self, timeout_seconds: float) -> bool:
        """Waits until the evidence is complete, for so long at most; whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._complete.wait()
        return self._complete.is_set()

    # What it is, and uses.

    def tree(self) -> ProcessTree:
        """The processes and what they use now."""
        seen = [self._members.stat(member) for member in self._members.alive.values()]
        stats = [stat for stat in seen if stat is not None and not stat.is_zombie]
        counts = [self._proc.fd_count(stat.pid) for stat in stats]
        fds = [count for count in counts if count is not None]
        return ProcessTree(
            process=self._main.process,
            is_main_alive=self._main.exit_seconds is None,
            components=self._shown_components(),
            pids=self.pids,
            processes=len(stats),
            threads=sum(stat.threads for stat in stats) if stats else None,
            resident_bytes=sum(stat.resident_bytes for stat in stats) if stats else None,
            open_fds=sum(fds) if fds else None,
            cpu_seconds=self._members.cpu_seconds,
            orphans=self._orphans(stats),
        )

    def sights(self) -> tuple[Sight, Sight]:
        """Whether the open files and the exit statuses of this launch can be seen."""
        if self._main.exit_seconds is None:
            self._may_inspect = self._proc.shows_exit_status(self._main.process.pid)
        if self._may_inspect:
            return Sight(SightKind.FDS, True), Sight(SightKind.EXIT_STATUS, True)  # noqa: FBT003
        user = f"user {self._sighting.uid}"
        why_not = f"the agent may not look into the processes of this server, which run as {user}"
        fix = f"run the agent as root, as {user}, or with CAP_SYS_PTRACE"
        return (
            Sight(SightKind.FDS, is_visible=False, why_not=why_not, fix=fix),
            Sight(SightKind.EXIT_STATUS, is_visible=True)
            if has_exit_info()
            else Sight(
                SightKind.EXIT_STATUS,
                is_visible=False,
                why_not=f"{why_not}, and this Linux tells exit statuses to nobody else",
                fix=f"{fix}, or use Linux 6.15 or newer",
            ),
        )

    def _on_exit(self, member: Member) -> None:
        self._note_completeness()
        at_seconds = member.exit_seconds
        if at_seconds is None:
            return
        if member is self._main:
            self._tell_soon(MainGone(at_seconds))
        elif member.role is not None or member.parent is self._main:
            self._tell_soon(ComponentGone(member.role, at_seconds))

    def _tell_soon(self, event: TreeEvent) -> None:
        def tell() -> None:
            if not self._is_closed:
                self._tell(event)

        asyncio.get_running_loop().call_soon(tell)

    def _note_completeness(self) -> None:
        if self._main.exit_seconds is not None and not self._members.is_status_to_come:
            self._complete.set()
        else:
            self._complete.clear()

    def _at_close(self, member: Member, role: ComponentRole) -> ComponentAtClose:
        stat = None if member.exit_seconds is not None else self._members.stat(member)
        is_exiting = stat is not None and (stat.is_exiting or stat.is_zombie)
        is_killed: bool | None = False
        if stat is not None and not is_exiting:
            is_killed = self._proc.has_kill_pending(stat.pid)
        is_gone = stat is None or is_killed is None
        return ComponentAtClose(role, is_gone, is_exiting, bool(is_killed))

    def _shown_components(self) -> tuple[Component, ...]:
        newest: dict[tuple[ComponentRole, str], Member] = {}
        if self._is_main_serving():
            newest[ComponentRole.API_SERVER, ""] = self._main
        for member, role in sorted(self._members.components, key=_start_ticks):
            newest[role, member.rank] = member
        shown = [
            Component(role, rank, member.process.pid, member.exit_seconds is None)
            for (role, rank), member in newest.items()
        ]
        return tuple(sorted(shown, key=_component_order))

    def _orphans(self, stats: Iterable[ProcessStat]) -> tuple[Orphan, ...]:
        """The components that have outlived the main process so far."""
        if self._main.exit_seconds is None:
            return ()
        members = ((self._members.alive[stat.pid], stat) for stat in stats)
        return tuple(
            Orphan(m.process, m.role, m.rank, self._proc.start_unix_seconds(stat))
            for m, stat in members
            if m.role is not None
        )

    def _is_main_serving(self) -> bool:
        command = self._sighting.command
        if command.is_headless or command.is_supervisor or (command.api_servers or 1) > 1:
            return False
        return not any(role is ComponentRole.API_SERVER for _, role in self._members.components)


def _start_ticks(component: tuple[Member, ComponentRole]) -> int:
    return component[0].process.start_ticks


def _component_order(component: Component) -> tuple[int, int, str]:
    # The length first: tp10 comes after tp9.
    return _ROLE_ORDER.index(component.role), len(component.rank), component.rank
