"""Finds every vLLM server on the host by its main process, without configuration."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.new_processes import POLL_SECONDS, NewProcesses
from vllm_agent.host.patience import Patience
from vllm_agent.host.process_sight import process_sight
from vllm_agent.host.sockets import server_url
from vllm_agent.host.strays import MAX_ANCESTORS, is_stray
from vllm_agent.host.supervision import parse_supervision
from vllm_agent.host.vllm_argv import is_main, parse_command, role_of
from vllm_agent.host.vllm_config_file import read_config_file
from vllm_agent.observations import ProcessId, Sighting
from vllm_agent.snapshot import CollectorSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vllm_agent.host.new_processes import Batch
    from vllm_agent.host.proc import CommandLine, Proc, ProcessStat
    from vllm_agent.observations import Instant, Sight

MAX_SERVERS: Final = 32
"""Servers told of at a time that nobody configured: anybody on the host can invent some."""

FORGET_SECONDS: Final = 5.0
"""How often it is seen which servers have ended, while there is room for more: who follows them
knows at once, and this is a read for each."""

SERVERS_DROPPED: Final = "servers"
"""Servers that found no place; each counts once."""

LINES_DROPPED: Final = "command_line"
"""Command lines of vLLMs that were cut, and lines of any process that could not be read in time."""

LOOKS_DROPPED: Final = "discovery"
"""Looks, and processes within a look, that ended by a fault of ours."""

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A command line, and what it is: of a main process, of a component, or of neither."""

    stat: ProcessStat
    line: CommandLine
    is_main: bool
    is_component: bool


class Discovery:
    """Watches the host's processes, and tells of each main process of a vLLM once.

    `found` gets the servers, `arrived` every process that is new on the host, before `found` does;
    both are called in the event loop. `is_wanted` tells which servers are configured: those are
    let in whatever `max_servers` says. `count_dropped` is told the kind of what was left out.
    """

    def __init__(
        self,
        proc: Proc,
        *,
        found: Callable[[Sighting], None],
        arrived: Callable[[Sequence[ProcessStat]], None],
        clock: Callable[[], Instant],
        count_dropped: Callable[[str], None],
        max_servers: int = MAX_SERVERS,
        is_wanted: Callable[[Sighting], bool] = lambda _: False,
        read_config: Callable[[Proc, int, str], Mapping[str, object]] = read_config_file,
    ) -> None:
        self.first_look_done = asyncio.Event()
        self._proc = proc
        self._found = found
        self._arrived = arrived
        self._clock = clock
        self._count_dropped = count_dropped
        self._max_servers = max_servers
        self._is_wanted = is_wanted
        self._read_config = read_config
        self._new = NewProcesses(proc, clock=lambda: clock().monotonic_seconds)
        self._patience = Patience()
        self._sight = process_sight(proc)
        # Whether each is wanted; left out are those that found no place, the oldest first.
        self._mains: dict[ProcessId, bool] = {}
        self._left_out: dict[ProcessId, None] = {}
        self._forget_due_seconds = 0.0
        self._lines: list[tuple[ProcessStat, CommandLine]] = []
        self._strays: tuple[ProcessStat, ...] = ()
        self._fault = ""
        self._is_fault_recent = False
        self._duration_seconds: float | None = None
        self._last_success_unix_seconds: float | None = None

    @property
    def servers(self) -> int | None:
        """How many main processes live, those without a place included; None where it is blind."""
        count = len(self._mains) + len(self._left_out)
        if not self.first_look_done.is_set():
            return None
        return None if self.is_blind else count

    @property
    def is_blind(self) -> bool:
        """Whether the processes of the host cannot be seen from here."""
        return not self._sight.is_visible

    @property
    def strays(self) -> tuple[ProcessStat, ...]:
        """The components that had lost their main process when the agent came."""
        return self._strays

    @property
    def sights(self) -> tuple[Sight, ...]:
        """What the agent may see of the host."""
        return (self._sight,)

    @property
    def status(self) -> CollectorSnapshot:
        """Whether discovery works."""
        is_done = self.first_look_done.is_set()
        return CollectorSnapshot(
            name="discovery",
            is_up=is_done and not self._fault and self._sight.is_visible,
            duration_seconds=self._duration_seconds,
            last_success_unix_seconds=self._last_success_unix_seconds,
            detail=self._fault or self._sight.why_not,
        )

    async def run(self) -> None:
        """Looks at the host until it is cancelled; a fault in one look does not end it."""
        try:
            while True:
                started = self._clock()
                try:
                    await self._look()
                except Exception as fault:  # noqa: BLE001 - it is told of, and the next look comes
                    self._note_fault("a look at the processes failed", fault)
                else:
                    finished = self._clock()
                    self._last_success_unix_seconds = finished.unix_seconds
                    self._duration_seconds = finished.since(started)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._patience.close()

    async def _look(self) -> None:
        self._forget_ended()
        looks = self._new.plan()
        readings, hung = await self._patience.map(self._new.read, looks)
        batch = self._new.take(readings)
        self._tell_arrived(batch)
        if hung:
            pids = [look.pid for look in hung]
            self._note_hung(pids)
            self._tell_arrived(self._new.set_aside(pids))
        # Kept until they are judged: no later look tells of them again.
        self._lines += [*await self._lines_without_place(), *batch.lines]
        judged = await self._judge(self._lines) if self._lines else []
        await self._admit_mains([one for one in judged if one.is_main])
        self._lines = []
        if batch.is_whole:
            self._finish_sweep(batch, judged)

    def _tell_arrived(self, batch: Batch) -> None:
        if not batch.arrived:
            return
        try:
            self._arrived(batch.arrived)
        except Exception as fault:  # noqa: BLE001 - it must not hide the servers among them
            self._note_fault("new processes could not be taken in", fault)

    def _finish_sweep(self, batch: Batch, judged: Sequence[_Judged]) -> None:
        self._sight = process_sight(self._proc)
        self._left_out = {p: None for p in self._left_out if self._proc.is_same(p)}
        if not self.first_look_done.is_set():
            if not self._sight.is_visible:
                _LOGGER.warning(
                    "discovery does not see the processes of the host",
                    extra={"detail": self._sight.why_not, "fix": self._sight.fix},
                )
            self._strays = self._strays_among(batch.arrived, judged)
            self.first_look_done.set()
        if not self._is_fault_recent:
            self._fault = ""
        self._is_fault_recent = False

    def _strays_among(
        self, stats: Iterable[ProcessStat], judged: Sequence[_Judged]
    ) -> tuple[ProcessStat, ...]:
        """The components that nobody runs any more."""
        by_pid = {stat.pid: stat for stat in stats}
        mains = {one.stat.pid for one in judged if one.is_main}
        components = {one.stat.pid: one.stat for one in judged if one.is_component}
        return tuple(
            stat
            for _, stat in sorted(components.items())
            if is_stray(
                stat,
                stat_of=by_pid.get,
                is_component=lambda parent: parent.pid in components,
                is_main=lambda parent: parent.pid in mains,
                proc=self._proc,
            )
        )

    def tell_again(self) -> None:
        """Tells of every main process again at the next look: whose they are may have changed."""
        self._left_out |= dict.fromkeys(self._mains)
        self._mains.clear()

    def _forget_ended(self) -> None:
        now = self._clock().monotonic_seconds
        has_room = self._places_taken() < self._max_servers
        if has_room and now < self._forget_due_seconds:
            return
        self._forget_due_seconds = now + FORGET_SECONDS
        for process in list(self._mains):
            if not self._proc.is_alive(process):
                del self._mains[process]

    async def _lines_without_place(self) -> list[tuple[ProcessStat, CommandLine]]:
        """The lines of as many servers without a place as there are places now."""
        room = self._max_servers - self._places_taken()
        if room <= 0 or not self._left_out:
            return []
        chosen = list(islice(self._left_out, room))
        for process in chosen:
            del self._left_out[process]
        lines, hung = await self._patience.map(self._read_line, chosen)
        self._note_hung([process.pid for process in hung])
        return [line for line in lines if line is not None]

    def _read_line(self, process: ProcessId) -> tuple[ProcessStat, CommandLine] | None:
        line, stat = self._proc.command_line(process.pid), self._proc.stat(process.pid)
        if line is None or stat is None or stat.start_ticks != process.start_ticks:
            return None
        return stat, line

    async def _judge(self, lines: Sequence[tuple[ProcessStat, CommandLine]]) -> list[_Judged]:
        # In the thread as well: lines may be long, and many.
        judged, hung = await self._patience.map(_judged, lines)
        self._note_hung([stat.pid for stat, _ in hung])
        for fault in judged:
            if isinstance(fault, Exception):
                self._note_fault("a command line could not be judged", fault)
        return [one for one in judged if isinstance(one, _Judged)]

    async def _admit_mains(self, mains: Sequence[_Judged]) -> None:
        new = [one for one in mains if not self._is_told(self._proc.identify(one.stat))]
        if not new:
            return
        for one in new:
            if one.line.is_cut:
                self._count_dropped(LINES_DROPPED)
        starts = {process.pid: process.start_ticks for process in (*self._mains, *self._left_out)}
        starts |= {one.stat.pid: one.stat.start_ticks for one in new}
        seen, hung = await self._patience.map(partial(self._sighting, starts), new)
        self._note_hung([one.stat.pid for one in hung])
        for sighting in sorted(
            (one for one in seen if isinstance(one, Sighting)),
            key=lambda one: one.process.start_ticks,
        ):
            self._admit(sighting)
        for fault in seen:
            if isinstance(fault, Exception):
                self._note_fault("a vLLM could not be looked at", fault)

    def _is_told(self, process: ProcessId) -> bool:
        return process in self._mains or process in self._left_out

    def _sighting(self, starts: Mapping[int, int], main: _Judged) -> Sighting | Exception | None:
        """Who that server is; None if it is part of another one, or gone. Runs in the thread."""
        try:
            return self._read_sighting(starts, main.stat, main.line)
        except Exception as fault:  # noqa: BLE001 - one process must not hide the others
            return fault

    def _read_sighting(
        self, starts: Mapping[int, int], stat: ProcessStat, line: CommandLine
    ) -> Sighting | None:
        pid = stat.pid
        if self._is_below_main(starts, stat):
            return None
        command = parse_command(line.arguments, partial(self._config_of, pid))
        supervision = parse_supervision(self._proc.cgroup(pid) or "")
        # From here the path may lead through /proc/PID: what is shown is what the server was given.
        is_socket = command.uds is not None
        url = f"unix://{command.uds}" if is_socket else server_url(self._proc, pid, command)
        uid = self._proc.uid(pid)
        if uid is None or not self._proc.is_alive(self._proc.identify(stat)):
            return None
        return Sighting(
            process=self._proc.identify(stat),
            start_seconds=self._proc.start_unix_seconds(stat),
            command=command,
            uid=uid,
            session=stat.session,
            unit=supervision.unit,
            is_user_unit=supervision.is_user_unit,
            container_id=supervision.container_id,
            url=url,
        )

    def _config_of(self, pid: int, path: str) -> Mapping[str, object]:
        try:
            return self._read_config(self._proc, pid, path)
        except UnreadableFileError as problem:
            _LOGGER.warning(
                "the file of --config of a vLLM was not read: its port and model are guessed",
                extra={"pid": pid, "detail": str(problem)},
            )
            return {}

    def _is_below_main(self, starts: Mapping[int, int], stat: ProcessStat) -> bool:
        """Whether it is a child of a server: it has the line of its parent until its title."""
        for _ in range(MAX_ANCESTORS):
            parent = self._proc.stat(stat.parent)
            if parent is None:
                return False
            if starts.get(parent.pid) == parent.start_ticks:
                return True
            stat = parent
        return False

    def _admit(self, sighting: Sighting) -> None:
        is_wanted = self._is_wanted(sighting)
        if not is_wanted and self._places_taken() >= self._max_servers:
            self._left_out[sighting.process] = None
            self._count_dropped(SERVERS_DROPPED)
            return
        self._mains[sighting.process] = is_wanted
        try:
            self._found(sighting)
        except Exception as fault:  # noqa: BLE001 - one server must not hide the others
            self._note_fault("a vLLM that was found could not be taken in", fault)

    def _places_taken(self) -> int:
        return Counter(self._mains.values())[False]

    def _note_hung(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._count_dropped(LINES_DROPPED)
            self._fault = f"the kernel does not let process {pid} be read"
            self._is_fault_recent = True
            text = "a process cannot be read, and is left out: is a driver hung?"
            _LOGGER.warning(text, extra={"pid": pid})

    def _note_fault(self, text: str, fault: Exception) -> None:
        self._count_dropped(LOOKS_DROPPED)
        if not self._fault:
            _LOGGER.error(text, exc_info=fault)
        self._fault = f"{text}: {fault}"
        self._is_fault_recent = True


def _judged(line: tuple[ProcessStat, CommandLine]) -> _Judged | Exception:
    stat, words = line
    arguments = words.arguments
    try:
        return _Judged(stat, words, is_main(arguments), role_of(arguments) is not None)
    except Exception as fault:  # noqa: BLE001 - one line must not hide the others
        return fault
