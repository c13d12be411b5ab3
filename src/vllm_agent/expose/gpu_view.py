"""The GPUs as the API tells them: each device, and who holds its memory. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from vllm_agent.expose.json_text import timestamp
from vllm_agent.expose.json_view import CollectorView, collector_view
from vllm_agent.expose.process_view import SightView, sight_views
from vllm_agent.observations import SightKind

if TYPE_CHECKING:
    from vllm_agent.snapshot import (
        AgentSnapshot,
        CollectorSnapshot,
        GpuOrphan,
        GpuSnapshot,
        GpuStranger,
    )

GPU_COLLECTOR: Final = "gpu"

_GPU_SIGHTS: Final = frozenset({SightKind.GPU, SightKind.GPU_PROCESSES})


class GpuServerView(TypedDict):
    """A server that holds memory of the device; null where the driver does not tell how much."""

    server: str
    used_bytes: int | None


class GpuOrphanView(TypedDict):
    """A component that outlived its main process; `server` is null where none was ever seen."""

    pid: int
    role: str
    server: str | None
    used_bytes: int | None
    start_time_seconds: float | None


class GpuOtherView(TypedDict):
    """A process of no vLLM that is known; `name` is the kernel's, null where it is gone by now."""

    pid: int
    name: str | None
    used_bytes: int | None


class XidView(TypedDict):
    """How often the driver told of one kind of fault since the agent started, and when last."""

    xid: int
    count: int
    last_timestamp_seconds: float | None


class GpuView(TypedDict):
    """One device, or one MIG instance of the device `parent_uuid`.

    What is unsupported or unknown is null. `orphans` is null where the agent cannot tell who holds
    the memory. `others` are processes that hold some of `other_memory_bytes`, the largest first:
    not all where there are many, none where `orphans` is null. A device that is `lost` has its
    identity only.
    """

    gpu: str
    uuid: str
    name: str | None
    vendor: str
    driver_version: str | None
    pci_bus_id: str | None
    parent_uuid: str | None
    lost: bool
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    utilization_ratio: float | None
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None
    ecc_corrected_errors: int | None
    ecc_uncorrected_errors: int | None
    xids: list[XidView]
    servers: list[GpuServerView]
    orphans: list[GpuOrphanView] | None
    orphan_memory_bytes: int | None
    other_memory_bytes: int | None
    others: list[GpuOtherView]


class GpusView(TypedDict):
    """The answer that lists every device.

    `collector` is null where no driver was found or GPUs are off; `sights` is what the agent may
    see of GPUs, and what would help.
    """

    collector: CollectorView | None
    sights: list[SightView]
    gpus: list[GpuView]


def gpus_view(agent: AgentSnapshot) -> GpusView:
    """Every device, and what the agent sees of them."""
    source = gpu_collector(agent)
    return GpusView(
        collector=None if source is None else collector_view(source),
        sights=sight_views(sight for sight in agent.sights if sight.kind in _GPU_SIGHTS),
        gpus=[gpu_view(device) for device in agent.gpus],
    )


def gpu_collector(agent: AgentSnapshot) -> CollectorSnapshot | None:
    """The agent's source of GPUs; None where no driver was found, or GPUs are off."""
    return next((source for source in agent.collectors if source.name == GPU_COLLECTOR), None)


def gpu_view(device: GpuSnapshot) -> GpuView:
    """One device."""
    gpu = device.gpu
    return GpuView(
        gpu=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        vendor=gpu.vendor,
        driver_version=gpu.driver_version,
        pci_bus_id=gpu.pci_bus_id,
        parent_uuid=gpu.parent_uuid,
        lost=gpu.is_lost,
        memory_total_bytes=gpu.memory_total_bytes,
        memory_used_bytes=gpu.memory_used_bytes,
        memory_free_bytes=gpu.memory_free_bytes,
        utilization_ratio=gpu.utilization_ratio,
        temperature_celsius=gpu.temperature_celsius,
        power_watts=gpu.power_watts,
        power_limit_watts=gpu.power_limit_watts,
        ecc_corrected_errors=gpu.ecc_corrected_errors,
        ecc_uncorrected_errors=gpu.ecc_uncorrected_errors,
        xids=[
            XidView(
                xid=xid,
                count=told.count,
                last_timestamp_seconds=timestamp(told.last_unix_seconds),
            )
            for xid, told in sorted(device.xids.items())
        ],
        servers=[
            GpuServerView(server=server, used_bytes=used) for server, used in device.servers.items()
        ],
        orphans=None if device.orphans is None else [_orphan(one) for one in device.orphans],
        orphan_memory_bytes=device.orphan_bytes,
        other_memory_bytes=device.other_bytes,
        others=[_other(one) for one in device.strangers],
    )


def _orphan(orphan: GpuOrphan) -> GpuOrphanView:
    return GpuOrphanView(
        pid=orphan.pid,
        role=orphan.role,
        server=orphan.server,
        used_bytes=orphan.used_bytes,
        start_time_seconds=timestamp(orphan.start_seconds),
    )


def _other(stranger: GpuStranger) -> GpuOtherView:
    return GpuOtherView(pid=stranger.pid, name=stranger.name, used_bytes=stranger.used_bytes)
