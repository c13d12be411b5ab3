"""Who holds the memory of each GPU: servers, their orphans, or somebody else. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.snapshot import GpuOrphan, GpuSnapshot, GpuStranger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_agent.observations import Gpu, GpuProcess, Orphan
    from vllm_agent.snapshot import FaultCount, ServerSnapshot


MAX_STRANGERS: Final = 16
"""Processes of others that are named on one device: more is a list nobody reads."""


@dataclass(frozen=True, slots=True)
class Owners:
    """Which server each process belongs to, and what it is if it outlived its main process."""

    servers: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    orphans: Mapping[int, tuple[Orphan, str | None]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    @classmethod
    def of(cls, servers: Iterable[ServerSnapshot], strays: Mapping[int, Orphan]) -> Owners:
        """Those of the process trees; `strays` are orphans by PID that none of them claims."""
        held: dict[int, str] = {}
        left: dict[int, tuple[Orphan, str | None]] = {}
        for server in servers:
            if server.tree is not None:
                held |= dict.fromkeys(server.tree.pids, server.name)
                left |= {o.process.pid: (o, server.name) for o in server.tree.orphans}
        # One that is still part of a launch that goes on is no stray, whatever its parent.
        unclaimed = {pid: (stray, None) for pid, stray in strays.items() if pid not in held}
        return cls(MappingProxyType(held), MappingProxyType(unclaimed | left))

    def after(self, before: Owners) -> Owners:
        """The same, and for processes that nobody has any more, who had them before."""
        gone = {pid: orphan for pid, orphan in before.orphans.items() if pid not in self.servers}
        return Owners(
            MappingProxyType({**before.servers, **self.servers}),
            MappingProxyType({**gone, **self.orphans}),
        )


def attribute(
    gpus: Iterable[Gpu],
    owners: Owners | None,
    names: Mapping[int, str],
    xids: Mapping[str, Mapping[int, FaultCount]],
) -> tuple[GpuSnapshot, ...]:
    """Every device with those who hold its memory.

    `owners` is None where PIDs of the driver mean nothing to the agent. `names` are the kernel's
    names of processes that belong to nobody, `xids` the faults of each device by its uuid.
    """
    return tuple(_attributed(gpu, owners, names, xids.get(gpu.uuid)) for gpu in gpus)


def _attributed(
    gpu: Gpu,
    owners: Owners | None,
    names: Mapping[int, str],
    xids: Mapping[int, FaultCount] | None,
) -> GpuSnapshot:
    faults = MappingProxyType({} if xids is None else dict(xids))
    if owners is None or gpu.processes is None:
        return GpuSnapshot(gpu, xids=faults)
    held: dict[str, int | None] = {}
    orphans: list[GpuOrphan] = []
    strangers: list[GpuStranger] = []
    for process in gpu.processes:
        pid, used_bytes = process.pid, process.used_bytes
        if pid in owners.orphans:
            orphans.append(_orphan(process, *owners.orphans[pid]))
        elif pid in owners.servers:
            name = owners.servers[pid]
            held[name] = _sum((held.get(name, 0), used_bytes))
        else:
            strangers.append(GpuStranger(pid, names.get(pid), used_bytes))
    orphan_bytes = _sum(orphan.used_bytes for orphan in orphans)
    claimed = _sum((*held.values(), orphan_bytes))
    used = gpu.memory_used_bytes
    return GpuSnapshot(
        gpu,
        servers=MappingProxyType(held),
        orphans=tuple(orphans),
        orphan_bytes=orphan_bytes,
        # Memory that processes share counts for each of them: the rest cannot be less than none.
        other_bytes=None if used is None or claimed is None else max(0, used - claimed),
        strangers=tuple(sorted(strangers, key=lambda s: -(s.used_bytes or 0))[:MAX_STRANGERS]),
        xids=faults,
    )


def _orphan(process: GpuProcess, orphan: Orphan, server: str | None) -> GpuOrphan:
    return GpuOrphan(process.pid, orphan.role, server, process.used_bytes, orphan.start_seconds)


def _sum(amounts: Iterable[int | None]) -> int | None:
    """The sum, None if any of them is unknown."""
    total = 0
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total
