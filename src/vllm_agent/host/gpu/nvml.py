"""NVIDIA devices, their MIG instances and faults, as NVML tells of them."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.host import clock
from vllm_agent.host.gpu.nvml_library import LostError, NvmlLibrary
from vllm_agent.host.gpu.nvml_xids import XidWatch
from vllm_agent.observations import Gpu, GpuProcess, GpuVendor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vllm_agent.observations import GpuFault, Instant

MAX_CELSIUS: Final = 150.0
"""A device stops itself near 100; all ones, which a device that is failing answers, is more."""

MIN_CELSIUS: Final = -50.0
"""Below what any electronics is made for; a number that the driver made of an error may be less."""

MAX_WATTS: Final = 10_000.0
"""Several times what the largest module takes, below 3,000; all ones are 4 million."""

_FULL_PERCENT: Final = 100
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
        # By the driver's index. These outlive `close`, so that a device that is lost has a name.
        self._identities: dict[int, Gpu] = {}
        self._nameless: set[int] = set()
        self._told: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Loads and initializes the library. Raises NoDriverError or DriverError."""
        self._opened = _OpenReader(NvmlLibrary(self._told), self._now)

    def read(
        self,
        pids: Collection[int],  # noqa: ARG002 - the driver lists all that hold memory
        tell: Callable[[GpuFault], None],
    ) -> tuple[Gpu, ...]:
        """Every device and MIG instance; `tell` is given the XIDs since the last reading.

        Raises:
            DriverError: the driver answers nothing.
        """
        opened = self._opened
        if opened is None:
            text = "the reader of NVML is not open"
            raise RuntimeError(text)
        for fault in opened.xids.drain():
            tell(fault)
        return tuple(self._gpus(opened))

    def close(self) -> None:
        """Shuts the library down. Never raises, and may be repeated."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _gpus(self, opened: _OpenReader) -> Iterable[Gpu]:
        found: dict[int, tuple[Gpu, ...]] = {}
        count = opened.device_count()
        opened.know_driver_version()
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
            yield identity.lost()
        elif index not in self._nameless:
            self._nameless.add(index)
            text = "a GPU does not say what it is, and is left out"
            _LOGGER.warning(text, extra={"driver": self.name, "gpu": index})


class _OpenReader:
    """Asks a library that is open. To make one asks nothing, so that it cannot fail."""

    def __init__(self, library: NvmlLibrary, now: Callable[[], Instant]) -> None:
        self._library = library
        self._nvml = library.nvml
        self._driver_version: str | None = None
        self.xids = XidWatch(library, now)

    def close(self) -> None:
        self.xids.close()
        self._library.close()

    def device_count(self) -> int:
        return int(self._library.must(self._nvml.nvmlDeviceGetCount))

    def know_driver_version(self) -> None:
        """Asks for it until it is known. Raises DriverError."""
        if self._driver_version is None:
            # A driver may answer this with the loss of one device: the others go on.
            with suppress(LostError):
                self._driver_version = self._library.ask(self._nvml.nvmlSystemGetDriverVersion)

    def read_device(self, index: int, identities: dict[int, Gpu]) -> tuple[Gpu, ...]:
        """The device and its MIG instances; keeps what it is called in `identities`.

        Raises LostError or DriverError.
        """
        ask, nvml = self._library.ask, self._nvml
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else ask(nvml.nvmlDeviceGetUUID, handle)
        if uuid is None:
            raise LostError
        identity = self._identity(index, uuid, handle, identities.get(index))
        identities[index] = identity
        self.xids.watch(uuid, handle)
        mig_mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        is_cut = mig_mode is not None and mig_mode[0] == nvml.NVML_DEVICE_MIG_ENABLE
        device = self._device(identity, handle, is_cut=is_cut)
        return (device, *self._instances(device, handle)) if is_cut else (device,)

    def _identity(self, index: int, uuid: str, handle: object, before: Gpu | None) -> Gpu:
        """What was known before is not asked again."""
        ask = self._library.ask
        if before is None or before.uuid != uuid:
            before = Gpu(index=str(index), uuid=uuid, vendor=GpuVendor.NVIDIA)
        return replace(
            before,
            name=before.name or ask(self._nvml.nvmlDeviceGetName, handle),
            driver_version=self._driver_version,
            pci_bus_id=before.pci_bus_id or ask(self._pci_bus_id, handle),
        )

    def _pci_bus_id(self, handle: object) -> str:
        """Within `ask`, as pynvml decodes it only now."""
        return str(self._nvml.nvmlDeviceGetPciInfo(handle).busId)

    def _device(self, identity: Gpu, handle: object, *, is_cut: bool) -> Gpu:
        ask, nvml = self._library.ask, self._nvml
        memory = _Memory() if is_cut else self._memory(handle)
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
            utilization_ratio=self._utilization(handle),
            temperature_celsius=self._temperature(handle),
            power_watts=self._watts(nvml.nvmlDeviceGetPowerUsage, handle),
            power_limit_watts=self._watts(nvml.nvmlDeviceGetEnforcedPowerLimit, handle),
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
        nvml = self._nvml
        memory = self._library.ask_forms(
            (nvml.nvmlDeviceGetMemoryInfo, (handle, nvml.nvmlMemory_v2)),
            (nvml.nvmlDeviceGetMemoryInfo, (handle,)),
        )
        return _Memory() if memory is None else _Memory(memory.total, memory.used, memory.free)

    def _temperature(self, handle: object) -> float | None:
        """The first form of the call, which every driver has had, is to be removed one day."""
        nvml = self._nvml
        sensor = nvml.NVML_TEMPERATURE_GPU
        celsius = self._library.ask_forms(
            (nvml.nvmlDeviceGetTemperature, (handle, sensor)),
            (nvml.nvmlDeviceGetTemperatureV, (handle, sensor)),
        )
        return self._within("temperature", celsius, MIN_CELSIUS, MAX_CELSIUS)

    def _utilization(self, handle: object) -> float | None:
        rates = self._library.ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        ratio = None if rates is None else rates.gpu / _FULL_PERCENT
        return self._within("utilization", ratio, 0.0, 1.0)

    def _watts(self, function: Callable[..., int], handle: object) -> float | None:
        milliwatts = self._library.ask(function, handle)
        watts = None if milliwatts is None else milliwatts / _MILLIWATTS
        return self._within("power", watts, 0.0, MAX_WATTS)

    def _within(self, what: str, value: float | None, low: float, high: float) -> float | None:
        """A value that is no measurement is unknown."""
        if value is None or low <= value <= high:
            return value
        self._library.tell_once(what, f"it is not within {low:g} and {high:g}")
        return None

    def _processes(self, handle: object) -> tuple[GpuProcess, ...] | None:
        """Both lists as one: a process that computes and draws is in both, with the same memory.

        Not every device draws; but where those that compute are unknown, so is who holds memory.
        """
        nvml = self._nvml
        compute = self._listed(
            handle,
            nvml.nvmlDeviceGetComputeRunningProcesses_v3,
            nvml.nvmlDeviceGetComputeRunningProcesses_v2,
        )
        graphics = self._listed(
            handle,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        )
        if compute is None:
            return None
        used: dict[int, int | None] = {}
        for process in (*compute, *(graphics or ())):
            used[process.pid] = _larger(used.get(process.pid), process.usedGpuMemory)
        return tuple(GpuProcess(pid, used_bytes) for pid, used_bytes in used.items())

    def _listed(self, handle: object, *forms: Callable[..., list[Any]]) -> list[Any] | None:
        return self._library.ask_forms(*((form, (handle,)) for form in forms))


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
