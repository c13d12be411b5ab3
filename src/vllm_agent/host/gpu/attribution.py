"""Who holds the memory of each GPU: servers, their orphans, or somebody else. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_agent.snapshot import GpuOrphan, GpuSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_agent.observations import Gpu, GpuProcess, Orphan
    from vllm_agent.snapshot import FaultCount, ServerSnapshot


@dataclass(slots=True)
class _Owners:
    """Which server each process belongs to, and what it is if it outlived its main process."""

    servers: dict[int, str] = field(default_factory=dict)
    orphans: dict[int, tuple[Orphan, str | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, servers: Iterable[ServerSnapshot], strays: Mapping[int, Orphan]) -> _Owners:
        owners = cls(orphans={pid: (stray, None) for pid, stray in strays.items()})
        for server in servers:
            if server.tree is not None:
                owners.servers |= dict.fromkeys(server.tree.pids, server.name)
                owners.orphans |= {
                    orphan.process.pid: (orphan, server.name) for orphan in server.tree.orphans
                }
        # One that is still part of a launch that goes on is no stray, whatever its parent.
        for pid in owners.servers.keys() & strays.keys():
            if owners.orphans[pid][1] is None:
                del owners.orphans[pid]
        return owners


def attribute(
    gpus: Iterable[Gpu],
    servers: Iterable[ServerSnapshot],
    strays: Mapping[int, Orphan],
    xids: Mapping[str, Mapping[int, FaultCount]],
    *,
    can_tell: bool,
) -> tuple[GpuSnapshot, ...]:
    """Every device with those who hold its memory.

    `strays` are orphans by PID that need belong to no known server, `xids` the faults of each
    device by its uuid. `can_tell` is false where PIDs of the driver mean nothing to the agent.
    """
    owners = _Owners.of(servers, strays) if can_tell else None
    return tuple(_attributed(gpu, owners, xids.get(gpu.uuid)) for gpu in gpus)


def _attributed(
    gpu: Gpu, owners: _Owners | None, xids: Mapping[int, FaultCount] | None
) -> GpuSnapshot:
    faults = MappingProxyType({} if xids is None else dict(xids))
    if owners is None or gpu.processes is None:
        return GpuSnapshot(gpu, xids=faults)
    held: dict[str, int | None] = {}
    orphans: list[GpuOrphan] = []
    for process in gpu.processes:
        if process.pid in owners.orphans:
            orphans.append(_orphan(process, *owners.orphans[process.pid]))
        elif process.pid in owners.servers:
            name = owners.servers[process.pid]
            held[name] = _sum((held.get(name, 0), process.used_bytes))
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
