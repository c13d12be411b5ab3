"""NVIDIA devices, their MIG instances and faults, as NVML tells of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.host import clock
from vllm_agent.host.gpu.nvml_library import LostError, NvmlLibrary
from vllm_agent.host.gpu.nvml_xids import XidWatch
from vllm_agent.host.gpu.reader import DriverError
from vllm_agent.observations import Gpu, GpuProcess, GpuReading, GpuVendor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vllm_agent.observations import GpuFault, Instant

_PERCENT: Final = 100
_MILLIWATTS: Final = 1000
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Memory:
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None


class NvmlReader:
    """Reads through nvidia-ml-py, which is imported only where the driver's library is.

    `now` is the clock by which faults are dated.
    """

    name: Final = "nvml"

    def __init__(self, now: Callable[[], Instant] = clock.now) -> None:
        self._now = now
        self._opened: _OpenReader | None = None
        # By the driver's index. These outlive `close`, so that a device that is lost has a name,
        # and what was told between two readings is not lost with a reading that fails.
        self._identities: dict[int, Gpu] = {}
        self._nameless: set[int] = set()
        self._told: set[tuple[str, int]] = set()
        self._faults: list[GpuFault] = []

    def open(self) -> None:
        """Loads and initializes the library. Raises NoDriverError or DriverError."""
        library = NvmlLibrary(self._told)
        try:
            self._opened = _OpenReader(library, self._now)
        except DriverError:
            library.close()
            raise

    def read(self, pids: Collection[int]) -> GpuReading:  # noqa: ARG002
        """Every device and MIG instance, and the XIDs since the last reading.

        Raises:
            DriverError: the driver answers nothing.
        """
        opened = self._opened
        if opened is None:
            text = "the reader of NVML is not open"
            raise RuntimeError(text)
        self._faults.extend(opened.xids.drain())
        gpus = tuple(self._gpus(opened))
        faults = tuple(self._faults)
        self._faults.clear()
        return GpuReading(gpus, faults)

    def close(self) -> None:
        """Shuts the library down. Never raises, and may be repeated."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _gpus(self, opened: _OpenReader) -> Iterable[Gpu]:
        found: dict[int, tuple[Gpu, ...]] = {}
        count = opened.device_count()
        for index in range(count):
            try:
                found[index] = opened.read_device(index, self._identities)
            except LostError:
                continue
        uuids = {gpus[0].uuid for gpus in found.values()}
        for index in range(count):
            if index in found:
                yield from found[index]
            else:
                yield from self._lost(index, uuids)

    def _lost(self, index: int, uuids: Collection[str]) -> Iterator[Gpu]:
        """What remains of a device, unless its number was given to another one since."""
        identity = self._identities.get(index)
        if identity is not None and identity.uuid not in uuids:
            yield replace(identity, is_lost=True)
        elif index not in self._nameless:
            self._nameless.add(index)
            text = "a GPU does not say what it is, and is left out"
            _LOGGER.warning(text, extra={"driver": self.name, "gpu": index})


class _OpenReader:
    """Asks a library that is open."""

    def __init__(self, library: NvmlLibrary, now: Callable[[], Instant]) -> None:
        self._library = library
        self._nvml = library.nvml
        self._driver_version = library.ask(self._nvml.nvmlSystemGetDriverVersion)
        self.xids = XidWatch(library, now)

    def close(self) -> None:
        self.xids.close()
        self._library.close()

    def device_count(self) -> int:
        return int(self._library.must(self._nvml.nvmlDeviceGetCount))

    def read_device(self, index: int, identities: dict[int, Gpu]) -> tuple[Gpu, ...]:
        """The device and its MIG instances; keeps what it is called in `identities`.

        Raises LostError or DriverError.
        """
        ask, nvml = self._library.ask, self._nvml
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else ask(nvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            raise LostError
        identity = identities.get(index)
        if identity is None or identity.uuid != uuid:
            identity = self._identity(index, uuid, handle)
        elif identity.driver_version != self._driver_version:
            identity = replace(identity, driver_version=self._driver_version)
        identities[index] = identity
        mig_mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        is_cut = mig_mode is not None and mig_mode[0] == nvml.NVML_DEVICE_MIG_ENABLE
        device = self._device(identity, handle, is_cut=is_cut)
        self.xids.watch(uuid, handle)
        return (device, *self._instances(device, handle)) if is_cut else (device,)

    def _identity(self, index: int, uuid: str, handle: object) -> Gpu:
        ask, nvml = self._library.ask, self._nvml
        pci = ask(nvml.nvmlDeviceGetPciInfo, handle)
        return Gpu(
            index=str(index),
            uuid=uuid,
            vendor=GpuVendor.NVIDIA,
            name=ask(nvml.nvmlDeviceGetName, handle),
            driver_version=self._driver_version,
            pci_bus_id=None if pci is None else pci.busId,
        )

    def _device(self, identity: Gpu, handle: object, *, is_cut: bool) -> Gpu:
        ask, nvml = self._library.ask, self._nvml
        memory = _Memory() if is_cut else self._memory(handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        corrected, uncorrected = (
            ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_AGGREGATE_ECC)
            for kind in (
                nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            )
        )
        return replace(
            identity,
            memory_total_bytes=memory.total_bytes,
            memory_used_bytes=memory.used_bytes,
            memory_free_bytes=memory.free_bytes,
            utilization_ratio=None if rates is None else rates.gpu / _PERCENT,
            temperature_celsius=self._temperature(handle),
            power_watts=_watts(ask(nvml.nvmlDeviceGetPowerUsage, handle)),
            power_limit_watts=_watts(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            ecc_corrected_errors=corrected,
            ecc_uncorrected_errors=uncorrected,
            processes=None if is_cut else self._processes(handle),
        )

    def _instances(self, device: Gpu, handle: object) -> Iterator[Gpu]:
        """The MIG instances; their handles change whenever the device is cut anew."""
        ask, nvml = self._library.ask, self._nvml
        ids: dict[tuple[int, int], str] = {}
        for slot in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
            uuid = None if instance is None else ask(nvml.nvmlDeviceGetUUID, instance)
            if uuid is None:
                continue
            gpu_instance = ask(nvml.nvmlDeviceGetGpuInstanceId, instance)
            compute_instance = ask(nvml.nvmlDeviceGetComputeInstanceId, instance)
            if gpu_instance is not None and compute_instance is not None:
                ids[gpu_instance, compute_instance] = uuid
            memory = self._memory(instance)
            yield Gpu(
                index=f"{device.index}:{slot}",
                uuid=uuid,
                vendor=GpuVendor.NVIDIA,
                name=ask(nvml.nvmlDeviceGetName, instance),
                driver_version=device.driver_version,
                pci_bus_id=device.pci_bus_id,
                parent_uuid=device.uuid,
                memory_total_bytes=memory.total_bytes,
                memory_used_bytes=memory.used_bytes,
                memory_free_bytes=memory.free_bytes,
                processes=self._processes(instance),
            )
        self.xids.know_instances(device.uuid, ids)

    def _memory(self, handle: object) -> _Memory:
        """The second form of the call, since driver 510, tells apart what is reserved."""
        ask, nvml = self._library.ask, self._nvml
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if memory is None:
            memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        return _Memory() if memory is None else _Memory(memory.total, memory.used, memory.free)

    def _temperature(self, handle: object) -> float | None:
        """The first form of the call, which every driver has had, is to be removed one day."""
        ask, nvml = self._library.ask, self._nvml
        celsius = ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        if celsius is None:
            celsius = ask(nvml.nvmlDeviceGetTemperatureV, handle, nvml.NVML_TEMPERATURE_GPU)
        return celsius

    def _processes(self, handle: object) -> tuple[GpuProcess, ...] | None:
        """Both lists as one: a process that computes and draws is in both, with the same memory."""
        nvml = self._nvml
        compute = self._either(
            handle,
            nvml.nvmlDeviceGetComputeRunningProcesses_v3,
            nvml.nvmlDeviceGetComputeRunningProcesses_v2,
        )
        graphics = self._either(
            handle,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        )
        if compute is None and graphics is None:
            return None
        used: dict[int, int | None] = {}
        for process in (*(compute or ()), *(graphics or ())):
            used[process.pid] = _larger(used.get(process.pid), process.usedGpuMemory)
        return tuple(GpuProcess(pid, used_bytes) for pid, used_bytes in used.items())

    def _either(self, handle: object, *functions: Callable[..., list[Any]]) -> list[Any] | None:
        for function in functions:
            listed = self._library.ask(function, handle)
            if listed is not None:
                return listed
        return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / _MILLIWATTS


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
