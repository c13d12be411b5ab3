"""What runs on a host for one server of the story: its launches, and what outlives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import (
    Component,
    ComponentRole,
    GpuProcess,
    Orphan,
    ProcessId,
    ProcessTree,
    Sighting,
    VllmCommand,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_agent.observations import Instant

_BOOT: Final = "0a1b2c3d-0000-4000-8000-000000000000"
_PIDS_PER_LAUNCH: Final = 100
_FIRST_WORKER: Final = 10
_TICKS_PER_SECOND: Final = 100
_RESIDENT_BYTES: Final = 3 * 2**30
_THREADS: Final = 60
_FDS: Final = 80


@dataclass(slots=True)
class Processes:
    """The processes of one server. `gpus` are the devices of its workers, in rank order.

    `newest` is the main process of the newest launch, None before the first.
    """

    first_pid: int
    gpus: Sequence[str]
    newest: Sighting | None = None
    is_alive: bool = False
    cpu_seconds: float = 0.0
    _launches: int = 0
    _orphans: dict[str, tuple[Orphan, int]] = field(default_factory=dict)

    def begin(
        self, now: Instant, *, model: str | None, age_seconds: float, unit: str | None, url: str
    ) -> Sighting:
        """A launch, and the main process of it as discovery finds it."""
        self._launches += 1
        self.is_alive = True
        pid = self.first_pid + _PIDS_PER_LAUNCH * self._launches
        start_seconds = now.unix_seconds - age_seconds
        self.newest = Sighting(
            process=ProcessId(_BOOT, pid, int(start_seconds * _TICKS_PER_SECOND)),
            start_seconds=start_seconds,
            command=VllmCommand(model=model),
            uid=1000,
            session=pid,
            unit=unit,
            url=url,
        )
        return self.newest

    def end(self, held_bytes: Mapping[str, int]) -> None:
        """The newest launch is gone, but for its workers that hold so much of those GPUs."""
        for gpu, used_bytes in held_bytes.items():
            rank = self.gpus.index(gpu)
            process = ProcessId(_BOOT, self.workers[rank], self._main.process.start_ticks)
            started = self._main.start_seconds
            orphan = Orphan(process, ComponentRole.WORKER, f"tp{rank}", started)
            self._orphans[gpu] = (orphan, used_bytes)
        self.is_alive = False

    def end_orphans(self) -> None:
        self._orphans.clear()

    @property
    def workers(self) -> tuple[int, ...]:
        """The PIDs that hold GPU memory, in rank order."""
        first = self._main.process.pid + _FIRST_WORKER
        return tuple(range(first, first + len(self.gpus)))

    def held(self, used_bytes: int) -> dict[str, list[GpuProcess]]:
        """Who holds what of each GPU, when each worker holds so much."""
        held: dict[str, list[GpuProcess]] = {}
        if self.is_alive and used_bytes:
            for gpu, pid in zip(self.gpus, self.workers, strict=True):
                held[gpu] = [GpuProcess(pid, used_bytes)]
        for gpu, (orphan, left_bytes) in self._orphans.items():
            held.setdefault(gpu, []).append(GpuProcess(orphan.process.pid, left_bytes))
        return held

    def tree(self) -> ProcessTree:
        """Everything that runs for it now."""
        components = tuple(self._components())
        orphans = tuple(orphan for orphan, _ in self._orphans.values())
        pids = [component.pid for component in components if component.is_alive]
        pids += [orphan.process.pid for orphan in orphans]
        count = len(pids)
        return ProcessTree(
            process=self._main.process,
            is_main_alive=self.is_alive,
            components=components,
            pids=tuple(pids),
            processes=count,
            threads=_THREADS * count if count else None,
            resident_bytes=_RESIDENT_BYTES * count if count else None,
            open_fds=_FDS * count if count else None,
            cpu_seconds=round(self.cpu_seconds, 2),
            orphans=orphans,
        )

    @property
    def _main(self) -> Sighting:
        assert self.newest is not None, "nothing was launched"
        return self.newest

    def _components(self) -> list[Component]:
        pid, is_alive = self._main.process.pid, self.is_alive
        api_server = Component(ComponentRole.API_SERVER, "", pid, is_alive)
        engine = ComponentRole.ENGINE_CORE
        if len(self.gpus) == 1:
            # On one GPU the engine does the work itself.
            return [api_server, Component(engine, "", self.workers[0], is_alive)]
        workers = [
            Component(ComponentRole.WORKER, f"tp{rank}", worker, is_alive)
            for rank, worker in enumerate(self.workers)
        ]
        return [api_server, Component(engine, "", pid + 1, is_alive), *workers]
