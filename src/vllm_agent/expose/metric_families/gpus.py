"""Families on GPUs: what each device does, and who holds its memory.

A device that is lost has its XIDs only: they tell why it is lost, and the rest is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import MetricType, label_value
from vllm_agent.expose.metric_families.declare import of_gpu, one

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Family, Samples
    from vllm_agent.observations import Gpu
    from vllm_agent.snapshot import GpuSnapshot


def _present(
    name: str, text: str, samples: Callable[[GpuSnapshot], Samples], *labels: str
) -> Family[GpuSnapshot]:
    """A gauge of a device that is not lost."""

    def checked(device: GpuSnapshot) -> Samples:
        return () if device.gpu.is_lost else samples(device)

    return of_gpu(name, MetricType.GAUGE, text, checked, *labels)


def _reading(name: str, text: str, value: Callable[[Gpu], float | None]) -> Family[GpuSnapshot]:
    """A gauge that the driver tells, as far as the device supports it."""
    return _present(name, text, lambda device: one(value(device.gpu)))


def _info(device: GpuSnapshot) -> Samples:
    gpu = device.gpu
    told = (gpu.name, gpu.vendor, gpu.driver_version, gpu.pci_bus_id)
    return ((tuple(label_value(value or "") for value in told), 1.0),)


def _ecc_errors(device: GpuSnapshot) -> Samples:
    gpu = device.gpu
    if gpu.is_lost:
        return ()
    told = (("corrected", gpu.ecc_corrected_errors), ("uncorrected", gpu.ecc_uncorrected_errors))
    return [((kind,), count) for kind, count in told if count is not None]


def _held_by_servers(device: GpuSnapshot) -> Samples:
    held: dict[tuple[str, ...], float] = {}
    for server, used_bytes in device.servers.items():
        if used_bytes is not None:
            # Two long names may be cut to one, and two equal series would spoil the scrape.
            values = (label_value(server),)
            held[values] = held.get(values, 0) + used_bytes
    return tuple(held.items())


def _orphan_bytes(device: GpuSnapshot) -> Samples:
    return () if device.orphans is None else one(device.orphan_bytes)


def _orphan_processes(device: GpuSnapshot) -> Samples:
    return () if device.orphans is None else one(len(device.orphans))


GPU_FAMILIES: Final[tuple[Family[GpuSnapshot], ...]] = (
    _present(
        "gpu_info",
        "What is known about the GPU, or the MIG instance; always 1. Empty where the driver does "
        "not tell.",
        _info,
        *("name", "vendor", "driver_version", "pci_bus_id"),
    ),
    _reading(
        "gpu_memory_total_bytes",
        "Memory of the GPU. Of one that is cut into MIG instances only these have any.",
        lambda gpu: gpu.memory_total_bytes,
    ),
    _reading(
        "gpu_memory_used_bytes",
        "Memory in use, without what the driver reserves for itself where it tells that apart.",
        lambda gpu: gpu.memory_used_bytes,
    ),
    _reading(
        "gpu_memory_free_bytes",
        "Memory that is free; less than total minus used by what the driver reserves.",
        lambda gpu: gpu.memory_free_bytes,
    ),
    _reading(
        "gpu_utilization_ratio",
        "Part of the time in which something ran on the GPU, as its driver last measured it.",
        lambda gpu: gpu.utilization_ratio,
    ),
    _reading(
        "gpu_temperature_celsius",
        "Temperature of the GPU.",
        lambda gpu: gpu.temperature_celsius,
    ),
    _reading(
        "gpu_power_watts",
        "Power that the GPU draws.",
        lambda gpu: gpu.power_watts,
    ),
    _reading(
        "gpu_power_limit_watts",
        "Power that the GPU may draw at most.",
        lambda gpu: gpu.power_limit_watts,
    ),
    of_gpu(
        "gpu_ecc_errors_total",
        MetricType.COUNTER,
        "Memory errors over the GPU's life, by kind: corrected or uncorrected.",
        _ecc_errors,
        "kind",
    ),
    of_gpu(
        "gpu_xid_errors_total",
        MetricType.COUNTER,
        "XIDs (errors that NVIDIA's driver tells of) since the agent started, by number.",
        lambda device: [((str(xid),), told.count) for xid, told in device.xids.items()],
        "xid",
    ),
    of_gpu(
        "gpu_last_xid_timestamp_seconds",
        MetricType.GAUGE,
        "When the driver last told of this XID, in unix time.",
        lambda device: [((str(xid),), told.last_unix_seconds) for xid, told in device.xids.items()],
        "xid",
    ),
    _present(
        "server_gpu_memory_used_bytes",
        "Memory of the GPU that the server's processes hold, whole tree.",
        _held_by_servers,
        "server",
    ),
    _present(
        "gpu_orphan_memory_bytes",
        "Memory of the GPU held by orphans: components that outlived their vLLM.",
        _orphan_bytes,
    ),
    _present(
        "gpu_orphan_processes",
        "Orphans that hold memory of the GPU: components that outlived their vLLM.",
        _orphan_processes,
    ),
    _present(
        "gpu_other_memory_bytes",
        "Memory in use that neither a server nor an orphan holds: used - servers - orphans.",
        lambda device: one(device.other_bytes),
    ),
)
