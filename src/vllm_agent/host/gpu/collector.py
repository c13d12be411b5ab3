"""Looks at the GPUs again and again, and knows who holds each of them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.host.gpu.amdgpu import AmdgpuReader
from vllm_agent.host.gpu.attribution import Owners, attribute
from vllm_agent.host.gpu.demo import DemoReader
from vllm_agent.host.gpu.driver import Driver
from vllm_agent.host.gpu.faults import FaultMemory
from vllm_agent.host.gpu.holders import holders_text
from vllm_agent.host.gpu.nvml import NvmlReader
from vllm_agent.host.gpu.seen import GpusSeen
from vllm_agent.host.process_sight import has_pids_of_its_own, process_sight
from vllm_agent.host.strays import is_stray
from vllm_agent.host.vllm_argv import role_of_name
from vllm_agent.observations import Orphan, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from vllm_agent.config.choices import GpuUse
    from vllm_agent.host.gpu.reader import GpuReader
    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import Gpu, Instant
    from vllm_agent.snapshot import GpuSnapshot, ServerSnapshot

MIN_PAUSE_SECONDS: Final = 0.2
"""Between two looks, whoever asks: a crash loop of many servers must not keep a core busy."""

AGAIN_SECONDS: Final = 1.0
"""A look that somebody asked for is repeated after this time: the driver frees the memory of a
process a moment after its end."""

PIDS_PER_SLICE: Final = 64
"""About 1 ms of work, at 12 µs for a process that is looked at: nothing waits longer for it."""

_KINDS: Final = frozenset({NvmlReader.name, AmdgpuReader.name})
_OTHER_PIDS: Final = Sight(
    SightKind.GPU_PROCESSES,
    is_visible=False,
    why_not="the driver tells PIDs of the host, and the agent runs in a PID namespace of its own",
    fix="run it on the host, or with --pid=host (Docker Compose: pid: host; Kubernetes: hostPID: "
    "true)",
)
_NO_LISTS: Final = Sight(
    SightKind.GPU_PROCESSES,
    is_visible=False,
    why_not="the driver does not tell which processes use the GPUs",
)
_VISIBLE: Final = Sight(SightKind.GPU_PROCESSES, is_visible=True)
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look saw beside the devices: who had which process, and whether that can be told.

    `names` are the kernel's names of the processes that nobody has.
    """

    strays: Mapping[int, Orphan] = field(default_factory=lambda: MappingProxyType({}))
    names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    owners: Owners = field(default_factory=Owners)
    sight: Sight = _VISIBLE


class GpuCollector:
    """The GPUs of the host. Made and used within one event loop.

    `servers` are those that are watched, as they are now.
    """

    def __init__(
        self,
        readers: Iterable[tuple[GpuReader, GpuUse]],
        *,
        proc: Proc,
        clock: Callable[[], Instant],
        servers: Callable[[], Iterable[ServerSnapshot]],
        interval_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._servers = servers
        self._interval_seconds = interval_seconds
        self._faults = FaultMemory()
        self._drivers = [
            Driver(
                reader,
                use,
                timeout_seconds=timeout_seconds,
                monotonic=lambda: clock().monotonic_seconds,
                told=self._faults.note,
            )
            for reader, use in readers
        ]
        self._gpus: list[Gpu] = []
        self._seen = _Seen()
        self._fault = ""
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._duration_seconds: float | None = None
        self._last_success_unix_seconds: float | None = None
        self.first_look_done = asyncio.Event()

    # What is done.

    async def run(self) -> None:
        """Looks until it is cancelled; a fault of ours in one look does not end it."""
        try:
            while True:
                was_wanted = self._wanted.is_set()
                self._wanted.clear()
                waiting, self._waiting = self._waiting, []
                try:
                    await self._look()
                except Exception as fault:  # noqa: BLE001 - it is told of, and the next look comes
                    self._note_fault(fault)
                else:
                    self._note_success()
                if not self.first_look_done.is_set():
                    self._tell_absent()
                    self.first_look_done.set()
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
                await asyncio.sleep(MIN_PAUSE_SECONDS)
                await self._pause(AGAIN_SECONDS if was_wanted else self._interval_seconds)
        finally:
            for driver in self._drivers:
                driver.close()

    def look_soon(self) -> None:
        """Makes the next look come at once: something has ended."""
        self._wanted.set()

    async def look_now(self) -> None:
        """Waits for a look that begins after this call, if there is anything to look at."""
        if self.first_look_done.is_set() and all(driver.is_absent for driver in self._drivers):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        await future

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds - MIN_PAUSE_SECONDS):
                await self._wanted.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        started = self._clock()
        pids = [
            pid for server in self._servers() if server.tree is not None for pid in server.tree.pids
        ]
        # Each has its own thread and deadline: one that hangs holds up no other.
        await asyncio.gather(*(driver.look(pids) for driver in self._drivers))
        finished = self._clock()
        gpus = [gpu for driver in self._drivers for gpu in driver.gpus()]
        self._faults.remember(gpus, finished.monotonic_seconds)
        was_visible = self._seen.sight.is_visible
        # Both at once: who scrapes meanwhile sees the look before.
        self._seen, self._gpus = await self._who_is_there(gpus), gpus
        self._tell_blind(was_visible=was_visible)
        self._duration_seconds = finished.since(started)

    # What is known.

    @property
    def is_up(self) -> bool:
        """Whether every driver that is there, or has to be, answered the last time."""
        return not self._fault and not any(driver.fault for driver in self._drivers)

    @property
    def status(self) -> CollectorSnapshot | None:
        """Whether the drivers work; None where there is none, or before the first look."""
        is_there = any(not driver.is_absent for driver in self._drivers)
        if not is_there or not self.first_look_done.is_set():
            return None
        return CollectorSnapshot(
            name="gpu",
            is_up=self.is_up,
            duration_seconds=self._duration_seconds,
            last_success_unix_seconds=self._last_success_unix_seconds,
            detail="; ".join(
                filter(None, (self._fault, *(driver.fault for driver in self._drivers)))
            ),
        )

    @property
    def sights(self) -> tuple[Sight, ...]:
        """What the agent may see of the GPUs; nothing where there is no driver."""
        if self.status is None:
            return ()
        faulty = [driver for driver in self._drivers if driver.fault]
        hidden = [Sight(SightKind.GPU, False, d.fault, d.fix) for d in faulty]  # noqa: FBT003
        if faulty:
            return tuple(hidden)
        return (Sight(SightKind.GPU, is_visible=True), self._seen.sight)

    def snapshots(self, servers: Iterable[ServerSnapshot]) -> tuple[GpuSnapshot, ...]:
        """Every device as of the newest look, its memory given to those who hold it now.

        What ended since the look stays with who had it then: nobody knows yet that it is free.
        """
        if not self._gpus:
            return ()
        seen = self._seen
        owners = Owners.of(servers, seen.strays).after(seen.owners)
        can_tell = seen.sight.is_visible
        return attribute(self._gpus, owners if can_tell else None, seen.names, self._faults.counts)

    def fault_of(self, pids: Iterable[int], ended_seconds: float) -> str | None:
        """A sentence about the first fault of a GPU that explains an end of these processes.

        `ended_seconds` is when they ended, on the monotonic clock.
        """
        return self._faults.explain(pids, ended_seconds)

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        """What these processes hold by the newest look; None where that cannot be told."""
        lists = [gpu.processes for gpu in self._gpus if gpu.processes is not None]
        if not lists or not self._seen.sight.is_visible:
            return None
        wanted, total = set(pids), 0
        for process in (process for listed in lists for process in listed):
            if process.pid in wanted:
                if process.used_bytes is None:
                    return None
                total += process.used_bytes
        return total

    def holders(self, other_than: Iterable[int]) -> str:
        """Who else holds the most memory of the GPUs, for people; empty where nobody does."""
        return holders_text(self.snapshots(self._servers()), frozenset(other_than))

    def holders_of(self, uuids: Collection[str]) -> str:
        """Who holds the most memory of these devices, for people; empty if nobody is known to."""
        shown = self.snapshots(self._servers())
        return holders_text(gpu for gpu in shown if gpu.gpu.uuid in uuids)

    def seen(self) -> GpusSeen:
        """The real devices as of the newest look."""
        drivers = [driver for driver in self._drivers if driver.name != DemoReader.name]
        is_whole = not self._fault and {driver.name for driver in drivers} >= _KINDS
        return GpusSeen(
            devices=tuple(self._gpus) if drivers else (),
            is_whole=is_whole and all(driver.has_settled for driver in drivers),
            is_required=any(driver.is_required for driver in drivers),
        )

    # What is made of a reading.

    async def _who_is_there(self, gpus: Collection[Gpu]) -> _Seen:
        lists = [gpu.processes for gpu in gpus if gpu.processes is not None]
        if not lists:
            is_told = any(gpu.memory_used_bytes is not None for gpu in gpus)
            return _Seen(sight=_NO_LISTS if is_told else self._seen.sight)
        sight = process_sight(self._proc)
        if not sight.is_visible:
            why_not = f"drivers tell PIDs of the host, and {sight.why_not}"
            return _Seen(sight=Sight(SightKind.GPU_PROCESSES, False, why_not, sight.fix))  # noqa: FBT003
        pids = {process.pid for listed in lists for process in listed}
        if has_pids_of_its_own(self._proc) and self._are_mostly_unknown(pids):
            return _Seen(sight=_OTHER_PIDS)
        strays: dict[int, Orphan] = {}
        names: dict[int, str] = {}
        known = Owners.of(self._servers(), {})
        for number, pid in enumerate(sorted(pids - known.servers.keys() - known.orphans.keys())):
            if number % PIDS_PER_SLICE == PIDS_PER_SLICE - 1:
                await asyncio.sleep(0)
            stat = self._proc.stat(pid)
            if stat is None or stat.is_zombie:
                continue
            names[pid] = stat.name
            stray = self._stray(stat)
            if stray is not None:
                strays[pid] = stray
        return _Seen(strays, names, Owners.of(self._servers(), strays))

    def _are_mostly_unknown(self, pids: Collection[int]) -> bool:
        """Whether fewer than half of these processes are there: some may just have ended."""
        return 2 * sum(self._proc.stat(pid) is not None for pid in pids) < len(pids)

    def _stray(self, stat: ProcessStat) -> Orphan | None:
        """That process as an orphan, if it is one by its name and its parents.

        The name is the kernel's: a command line is in memory that a hung driver may hold locked.
        """
        role = role_of_name(stat.name)
        if role is None or not is_stray(
            stat,
            stat_of=self._proc.stat,
            is_component=_is_component,
            is_main=lambda _: False,
            proc=self._proc,
        ):
            return None
        return Orphan(self._proc.identify(stat), role, "", self._proc.start_unix_seconds(stat))

    def _note_success(self) -> None:
        self._fault = ""
        if self.is_up:
            self._last_success_unix_seconds = self._clock().unix_seconds

    def _note_fault(self, fault: Exception) -> None:
        # Half of what it saw may be old: nothing is shown of it.
        self._gpus = []
        if not self._fault:
            _LOGGER.error("a look at the GPUs failed", exc_info=fault)
        self._fault = f"a fault of the agent: {fault}"

    def _tell_absent(self) -> None:
        absent = [driver for driver in self._drivers if driver.is_absent]
        if absent and len(absent) == len(self._drivers):
            detail = "; ".join(driver.detail for driver in absent)
            _LOGGER.info("no GPU driver was found", extra={"detail": detail})

    def _tell_blind(self, *, was_visible: bool) -> None:
        sight = self._seen.sight
        if was_visible and not sight.is_visible:
            _LOGGER.warning(
                "cannot tell who holds the memory of the GPUs",
                extra={"detail": sight.why_not, "fix": sight.fix},
            )
        elif sight.is_visible and not was_visible:
            _LOGGER.info("can tell again who holds the memory of the GPUs")


def _is_component(stat: ProcessStat) -> bool:
    return role_of_name(stat.name) is not None
