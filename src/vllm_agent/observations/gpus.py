"""Frozen facts about GPUs: what a driver says of each device and of who holds its memory.

What a driver does not tell, or the device does not support, is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.observations.instant import Instant


class GpuVendor(StrEnum):
    """Whose device it is."""

    NVIDIA = "nvidia"
    AMD = "amd"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a device; `pid` is the host's number of it."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device, or one MIG instance of it, at one moment.

    `index` is the driver's number ("0"), of a MIG instance that of its device and its own ("0:1").
    `parent_uuid` is the device of a MIG instance; a device that is cut into instances carries no
    memory and no processes itself. A device that `is_lost` has its identity only.

    `memory_used_bytes` leaves out what the driver reserves for itself, where it tells that apart,
    so that used and free need not add up to the total. ECC errors are those of the device's life.
    `processes` is None where the driver lists none, which is not the same as an empty list.
    """

    index: str
    uuid: str
    vendor: GpuVendor
    name: str | None = None
    driver_version: str | None = None
    pci_bus_id: str | None = None
    parent_uuid: str | None = None
    is_lost: bool = False
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    ecc_corrected_errors: int | None = None
    ecc_uncorrected_errors: int | None = None
    processes: tuple[GpuProcess, ...] | None = None

    def lost(self) -> Gpu:
        """The same device once the driver no longer reaches it."""
        return Gpu(
            index=self.index,
            uuid=self.uuid,
            vendor=self.vendor,
            name=self.name,
            driver_version=self.driver_version,
            pci_bus_id=self.pci_bus_id,
            parent_uuid=self.parent_uuid,
            is_lost=True,
        )


@dataclass(frozen=True, slots=True)
class GpuFault:
    """An error that the driver reported: an XID of NVIDIA, and when the agent was told.

    `uuid` is the device, `instance_uuid` its MIG instance where the driver names one.
    """

    uuid: str
    xid: int
    at: Instant
    instance_uuid: str | None = None
