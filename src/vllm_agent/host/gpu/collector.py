"""Looks at the GPUs again and again, and knows who held which when something went wrong."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.host.gpu.attribution import attribute
from vllm_agent.host.gpu.driver import Driver
from vllm_agent.host.process_sight import has_pids_of_its_own, process_sight
from vllm_agent.host.strays import is_stray
from vllm_agent.host.vllm_argv import role_of_name
from vllm_agent.observations import Orphan, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot, FaultCount

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from vllm_agent.config.choices import GpuUse
    from vllm_agent.host.gpu.reader import GpuReader
    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import Gpu, GpuFault, Instant
    from vllm_agent.snapshot import GpuSnapshot, ServerSnapshot

MIN_PAUSE_SECONDS: Final = 0.2
"""Between two looks, whoever asks: a crash loop of many servers must not keep a core busy."""

PIDS_PER_SLICE: Final = 64
"""About 1 ms of work, at 12 µs for a process that is looked at: nothing waits longer for it."""

FAULT_SECONDS: Final = 60.0
"""A fault on a GPU explains a crash that follows within this time: a worker ends seconds later, an
engine that waits for the others by its own timeout of some ten."""

HELD_SECONDS: Final = FAULT_SECONDS + 30.0
"""Who held which GPU is remembered this long: a verdict may come seconds after the process ended,
and the process may have let go before."""

MAX_FAULTS: Final = 1_000
"""Faults remembered at a time; a storm tells the same number over and over."""

FAULT_LOG_SECONDS: Final = 60.0
"""How often one kind of fault of one device is logged; it is counted each time."""

AFTERMATH_XIDS: Final = frozenset({45})
"""XIDs that follow the end of a process and never cause it: 45 is the driver's clean-up after a
process that was killed while the GPU worked for it (NVIDIA's XID catalogue)."""

FAULTS_DROPPED: Final = "gpu_fault"
"""Faults that were counted and found no place in the memory for verdicts."""

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
    """What the newest look saw beside the devices: strays by PID, and whether PIDs can be told."""

    strays: Mapping[int, Orphan] = field(default_factory=lambda: MappingProxyType({}))
    sight: Sight = _VISIBLE


class GpuCollector:
    """The GPUs of the host. Made and used within one event loop.

    `pids` are the processes of the servers that are watched, for drivers that list none.
    """

    def __init__(
        self,
        readers: Iterable[tuple[GpuReader, GpuUse]],
        *,
        proc: Proc,
        clock: Callable[[], Instant],
        pids: Callable[[], Sequence[int]],
        count_dropped: Callable[[str], None],
        interval_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._pids = pids
        self._count_dropped = count_dropped
        self._interval_seconds = interval_seconds
        self._drivers = [
            Driver(
                reader,
                use,
                timeout_seconds=timeout_seconds,
                monotonic=lambda: clock().monotonic_seconds,
                told=self._note_fault,
            )
            for reader, use in readers
        ]
        self._gpus: list[Gpu] = []
        self._seen = _Seen()
        self._lost: set[str] = set()
        self._held: dict[int, dict[str, float]] = {}
        self._parents: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._faults: list[GpuFault] = []
        self._xids: dict[str, dict[int, FaultCount]] = defaultdict(dict)
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
                self._wanted.clear()
                waiting, self._waiting = self._waiting, []
                try:
                    await self._look()
                except Exception:
                    _LOGGER.exception("a look at the GPUs failed")
                self.first_look_done.set()
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
                await asyncio.sleep(MIN_PAUSE_SECONDS)
                await self._pause()
        finally:
            for driver in self._drivers:
                driver.close()

    async def look_now(self) -> None:
        """Waits for a look that begins after this call, if there is anything to look at."""
        if self.first_look_done.is_set() and all(driver.is_absent for driver in self._drivers):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        await future

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._interval_seconds - MIN_PAUSE_SECONDS):
                await self._wanted.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        started = self._clock()
        pids = self._pids()
        # Each has its own thread and deadline: one that hangs holds up no other.
        await asyncio.gather(*(driver.look(pids) for driver in self._drivers))
        finished = self._clock()
        self._gpus = gpus = [gpu for driver in self._drivers for gpu in driver.gpus()]
        was_visible = self._seen.sight.is_visible
        self._seen = await self._who_is_there(gpus, frozenset(pids))
        self._tell_blind(was_visible=was_visible)
        self._remember(gpus, finished)
        self._tell_lost(gpus)
        self._duration_seconds = finished.since(started)
        if self.is_up:
            self._last_success_unix_seconds = finished.unix_seconds

    # What is known.

    @property
    def is_up(self) -> bool:
        """Whether every driver that is there, or has to be, answered the last time."""
        return not any(driver.fault for driver in self._drivers)

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
            detail="; ".join(driver.fault for driver in self._drivers if driver.fault),
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
        """Every device as of the newest look, its memory given to those who hold it now."""
        if not self._gpus:
            return ()
        return attribute(
            self._gpus,
            servers,
            self._seen.strays,
            self._xids,
            can_tell=self._seen.sight.is_visible,
        )

    def fault_of(self, pids: Iterable[int], ended_seconds: float) -> str | None:
        """A sentence about the first fault of a GPU that explains an end of these processes.

        `ended_seconds` is when they ended, on the monotonic clock. The last words of a device that
        fell off its bus are an XID that some drivers keep to themselves: so its loss is one, too.
        """
        held = {uuid for pid in pids for uuid in self._held.get(pid, ())}
        held |= {self._parents[uuid] for uuid in held if uuid in self._parents}
        for fault in self._faults:
            age_seconds = ended_seconds - fault.at.monotonic_seconds
            is_on_it = (fault.instance_uuid or fault.uuid) in held
            if is_on_it and age_seconds <= FAULT_SECONDS and fault.xid not in AFTERMATH_XIDS:
                return f"XID {fault.xid} on {self._labels.get(fault.uuid, fault.uuid)}"
        for uuid in sorted(held & self._lost):
            return f"{self._labels.get(uuid, uuid)} was lost"
        return None

    # What is made of a reading.

    async def _who_is_there(self, gpus: Sequence[Gpu], known: frozenset[int]) -> _Seen:
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
        for number, pid in enumerate(sorted(pids - known)):
            if number % PIDS_PER_SLICE == PIDS_PER_SLICE - 1:
                await asyncio.sleep(0)
            stray = self._stray(pid)
            if stray is not None:
                strays[pid] = stray
        return _Seen(strays)

    def _are_mostly_unknown(self, pids: Collection[int]) -> bool:
        """Whether fewer than half of these processes are there: some may just have ended."""
        return 2 * sum(self._proc.stat(pid) is not None for pid in pids) < len(pids)

    def _stray(self, pid: int) -> Orphan | None:
        """That process as an orphan, if it is one by its name and its parents.

        The name is the kernel's: a command line is in memory that a hung driver may hold locked.
        """
        stat = self._proc.stat(pid)
        role = None if stat is None or stat.is_zombie else role_of_name(stat.name)
        if stat is None or role is None:
            return None
        is_left = is_stray(
            stat,
            stat_of=self._proc.stat,
            is_component=_is_component,
            is_main=lambda _: False,
            proc=self._proc,
        )
        if not is_left:
            return None
        return Orphan(self._proc.identify(stat), role, "", self._proc.start_unix_seconds(stat))

    def _remember(self, gpus: Sequence[Gpu], now: Instant) -> None:
        seconds = now.monotonic_seconds
        for gpu in gpus:
            self._labels[gpu.uuid] = f"GPU {gpu.index} ({gpu.uuid})"
            if gpu.parent_uuid is not None:
                self._parents[gpu.uuid] = gpu.parent_uuid
            for process in gpu.processes or ():
                self._held.setdefault(process.pid, {})[gpu.uuid] = seconds
        for pid, held in list(self._held.items()):
            recent = {uuid: at for uuid, at in held.items() if seconds - at <= HELD_SECONDS}
            if recent:
                self._held[pid] = recent
            else:
                del self._held[pid]
        self._faults = [f for f in self._faults if seconds - f.at.monotonic_seconds <= HELD_SECONDS]

    def _note_fault(self, fault: GpuFault) -> None:
        counts = self._xids[fault.uuid]
        before = counts.get(fault.xid, FaultCount(0, 0.0))
        counts[fault.xid] = FaultCount(before.count + 1, fault.at.unix_seconds)
        if len(self._faults) < MAX_FAULTS:
            self._faults.append(fault)
        else:
            self._count_dropped(FAULTS_DROPPED)
        if fault.at.unix_seconds - before.last_unix_seconds >= FAULT_LOG_SECONDS:
            _LOGGER.warning("XID", extra={"gpu": fault.uuid, "xid": fault.xid})

    def _tell_blind(self, *, was_visible: bool) -> None:
        sight = self._seen.sight
        if was_visible and not sight.is_visible:
            _LOGGER.warning(
                "cannot tell who holds the memory of the GPUs",
                extra={"detail": sight.why_not, "fix": sight.fix},
            )
        elif sight.is_visible and not was_visible:
            _LOGGER.info("can tell again who holds the memory of the GPUs")

    def _tell_lost(self, gpus: Sequence[Gpu]) -> None:
        for gpu in gpus:
            if gpu.is_lost and gpu.uuid not in self._lost:
                self._lost.add(gpu.uuid)
                _LOGGER.error("a GPU is lost", extra={"gpu": gpu.index, "uuid": gpu.uuid})
            elif not gpu.is_lost and gpu.uuid in self._lost:
                self._lost.discard(gpu.uuid)
                _LOGGER.info("a GPU is back", extra={"gpu": gpu.index, "uuid": gpu.uuid})


def _is_component(stat: ProcessStat) -> bool:
    return role_of_name(stat.name) is not None
