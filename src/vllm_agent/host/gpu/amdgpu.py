"""AMD GPUs, by what the kernel's driver amdgpu shows in sysfs: no library of ROCm is needed.

Sources: Documentation/gpu/amdgpu/{driver-misc,thermal,ras}.rst of the kernel, and the code that
fills the files: amdgpu_vram_mgr.c, amdgpu_ras.c and pm/amdgpu_pm.c in drivers/gpu/drm/amd.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_agent.host.gpu.amdgpu_processes import AmdgpuProcesses
from vllm_agent.host.gpu.reader import DriverError, NoDriverError
from vllm_agent.host.gpu.sysfs import MAX_VALUE_BYTES, parse_number, read_number, read_text
from vllm_agent.host.proc import read_small
from vllm_agent.observations import Gpu, GpuVendor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vllm_agent.observations import GpuFault, GpuProcess

MAX_DEVICES: Final = 64
"""GPUs that are followed, in the order of their numbers; the largest hosts have 16."""

MAX_RAS_BLOCKS: Final = 64
"""Parts of a device that count ECC errors; AMDGPU_RAS_BLOCK_COUNT of amdgpu_ras.h is about 20."""

ECC_SECONDS: Final = 60.0
"""How often they are counted: each of the files makes the driver ask that part of the device, and
they change rarely."""

_DRIVER: Final = "amdgpu"
_BUS_ID: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_UNIQUE_ID: Final = re.compile(r"[0-9a-fA-F]{1,16}")
_DEVICE_ID: Final = re.compile(r"0x[0-9a-f]{4}")
_ERR_COUNT: Final = re.compile(rb"^(ue|ce): ([0-9]{1,20})$", re.MULTILINE)
_LOST: Final = frozenset({errno.ENODEV, errno.EIO})
_ASLEEP: Final = frozenset({"suspended", "suspending"})
_FULL_PERCENT: Final = 100
# Kernels around 6.6 show the number of an error, which is negative, as an unsigned power.
_LOWEST_ERROR_AS_POWER: Final = 2**32 - 4096
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Device:
    """One GPU; `identity` is all that is told of it while it is lost."""

    folder: str
    bus_id: str
    identity: Gpu
    ecc: _EccCounts


class AmdgpuReader:
    """Every GPU that amdgpu drives.

    They are numbered by PCI bus id, as rocm-smi and amd-smi number them. HIP takes the order of
    KFD's topology, in which the kernel found them: mostly the same, and another one where
    ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES say so. The uuid is `GPU-` and the 16 hex digits of
    `unique_id`: what rocminfo prints, and what both variables accept. A device without one, such as
    the GPU of many a processor, has its PCI bus id instead.

    A device is lost while it is not bound to the driver, or what the driver knows of its memory
    cannot be read. A sensor that fails does not make it lost: during a reset all of them do. One
    that sleeps is not woken: its memory is told, its sensors are not.
    """

    name: Final = "amdgpu"

    def __init__(
        self,
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sys = f"{sys_root}"
        self._clock = clock
        self._processes = AmdgpuProcesses(sys_root, proc_root)
        self._devices: tuple[_Device, ...] = ()
        self._names: frozenset[str] = frozenset()

    def open(self) -> None:
        """Finds the devices.

        Raises:
            NoDriverError: there is none, or no DRM at all.
            DriverError: they cannot be listed.
        """
        drm = f"{self._sys}/class/drm"
        try:
            names = os.listdir(drm)
        except FileNotFoundError:
            raise NoDriverError(f"there is no {drm}, so no driver of GPUs") from None
        except OSError as fault:
            raise DriverError(f"{drm} cannot be listed: {fault.strerror}") from fault
        found = {}
        for name in names:
            # A card and its render node lead to one device, a connector of it to none.
            folder = os.path.realpath(f"{drm}/{name}/device")
            address = _BUS_ID.fullmatch(os.path.basename(folder))
            if address and _is_bound(folder):
                found[tuple(int(part, 16) for part in address.groups())] = folder
        if not found:
            raise NoDriverError(f"no device in {drm} has the driver amdgpu")
        if len(found) > MAX_DEVICES:
            text = "not all AMD GPUs are followed: there are too many"
            _LOGGER.warning(text, extra={"gpus": len(found), "followed": MAX_DEVICES})
        self._names = frozenset(names)
        version = read_text(f"{self._sys}/module/amdgpu/version")
        self._devices = tuple(
            self._device(str(index), folder, version)
            for index, (_, folder) in enumerate(sorted(found.items())[:MAX_DEVICES])
        )

    def read(
        self,
        pids: Collection[int],
        tell: Callable[[GpuFault], None],  # noqa: ARG002 - amdgpu tells of none
    ) -> tuple[Gpu, ...]:
        """Every device of the host; those that were there before keep their place."""
        self._find_new()
        bound = [device.bus_id for device in self._devices if _is_bound(device.folder)]
        processes = self._processes.read(bound, pids)
        return tuple(
            _reading(device, processes[device.bus_id])
            if device.bus_id in processes
            else device.identity.lost()
            for device in self._devices
        )

    def close(self) -> None:
        """Nothing is held."""

    def _find_new(self) -> None:
        """Devices come late where the agent starts while the kernel still looks for them."""
        with contextlib.suppress(OSError, NoDriverError, DriverError):
            if not self._names.issuperset(os.listdir(f"{self._sys}/class/drm")):
                self.open()

    def _device(self, index: str, folder: str, version: str | None) -> _Device:
        bus_id = os.path.basename(folder)
        identity = Gpu(
            index=index,
            uuid=parse_unique_id(read_text(f"{folder}/unique_id")) or bus_id,
            vendor=GpuVendor.AMD,
            name=_name(folder),
            driver_version=version,
            pci_bus_id=bus_id,
        )
        return _Device(folder, bus_id, identity, _EccCounts(folder, self._clock))


class _EccCounts:
    """ECC errors of one device since the driver was loaded, all of its blocks together.

    `ras/BLOCK_err_count` has a line for uncorrected and one for corrected errors. Some blocks never
    tell, and none does during a reset: each counts as what it told last, so that no sum falls.
    """

    def __init__(self, folder: str, clock: Callable[[], float]) -> None:
        self._folder = f"{folder}/ras"
        self._clock = clock
        self._due_seconds = clock()
        self._blocks: dict[str, tuple[int, int]] = {}

    def refresh(self) -> None:
        """Counts again if it is time."""
        now = self._clock()
        if now < self._due_seconds:
            return
        self._due_seconds = now + ECC_SECONDS
        try:
            names = os.listdir(self._folder)
        except OSError:
            return
        for name in sorted(name for name in names if name.endswith("_err_count"))[:MAX_RAS_BLOCKS]:
            counts = parse_err_count(read_small(f"{self._folder}/{name}", MAX_VALUE_BYTES) or b"")
            if counts is not None:
                self._blocks[name] = counts

    @property
    def totals(self) -> tuple[int | None, int | None]:
        """Uncorrected and corrected errors; None where no block ever told."""
        if not self._blocks:
            return None, None
        uncorrected, corrected = zip(*self._blocks.values(), strict=True)
        return sum(uncorrected), sum(corrected)


def parse_err_count(content: bytes) -> tuple[int, int] | None:
    """Uncorrected and corrected errors of a block of a device; None if it does not tell both."""
    counts = {key: int(number) for key, number in _ERR_COUNT.findall(content)}
    if b"ue" not in counts or b"ce" not in counts:
        return None
    return counts[b"ue"], counts[b"ce"]


def parse_watts(content: bytes | None) -> float | None:
    """The microwatts of a file of hwmon as watts; None if it holds none."""
    microwatts = parse_number(content)
    if microwatts is None or not 0 <= microwatts < _LOWEST_ERROR_AS_POWER:
        return None
    return microwatts / 1e6


def parse_unique_id(text: str | None) -> str | None:
    """The uuid that ROCm makes of `unique_id`; None if there is none, or 0."""
    if text is None or not _UNIQUE_ID.fullmatch(text) or not int(text, 16):
        return None
    return f"GPU-{int(text, 16):016x}"


def _is_bound(folder: str) -> bool:
    try:
        return os.path.basename(os.readlink(f"{folder}/driver")) == _DRIVER
    except OSError:
        return False


def _name(folder: str) -> str | None:
    """What the board calls itself, which most workstation cards do not, else the PCI device id."""
    name = read_text(f"{folder}/product_name")
    if name is not None:
        return name
    device_id = read_text(f"{folder}/device") or ""
    return f"AMD {device_id}" if _DEVICE_ID.fullmatch(device_id) else None


def _reading(device: _Device, processes: tuple[GpuProcess, ...] | None) -> Gpu:
    folder = device.folder
    try:
        total = _vram_bytes(f"{folder}/mem_info_vram_total")
        used = _vram_bytes(f"{folder}/mem_info_vram_used")
    except OSError:
        return device.identity.lost()
    gpu = replace(
        device.identity,
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=None if total is None or used is None else max(total - used, 0),
        processes=processes,
    )
    if read_text(f"{folder}/power/runtime_status") not in _ASLEEP:
        device.ecc.refresh()
        gpu = _with_sensors(gpu, folder)
    uncorrected, corrected = device.ecc.totals
    return replace(gpu, ecc_uncorrected_errors=uncorrected, ecc_corrected_errors=corrected)


def _vram_bytes(path: str) -> int | None:
    """A size in bytes. Raises OSError where it says that the device is lost.

    The driver answers from its own books: the device need not be awake or work.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = parse_number(file.read(MAX_VALUE_BYTES))
    except OSError as fault:
        if fault.errno in _LOST:
            raise
        return None
    return size if size is not None and size >= 0 else None


def _with_sensors(gpu: Gpu, folder: str) -> Gpu:
    percent = read_number(f"{folder}/gpu_busy_percent")
    if percent is not None and 0 <= percent <= _FULL_PERCENT:
        gpu = replace(gpu, utilization_ratio=percent / _FULL_PERCENT)
    hwmon = _hwmon(folder)
    if hwmon is None:
        return gpu
    return replace(
        gpu,
        temperature_celsius=_temperature(hwmon),
        power_watts=_watts(f"{hwmon}/power1_average", f"{hwmon}/power1_input"),
        power_limit_watts=_watts(f"{hwmon}/power1_cap") or None,  # 0 is no limit that is known
    )


def _hwmon(folder: str) -> str | None:
    """The folder of the sensors; its number changes when the driver is loaded again."""
    try:
        names = sorted(os.listdir(f"{folder}/hwmon"))
    except OSError:
        return None
    return f"{folder}/hwmon/{names[0]}" if names else None


def _temperature(hwmon: str) -> float | None:
    """Degrees at the edge of the die, else at its hottest spot.

    That is the order of rocm-smi, so that both show the same: most devices tell the edge, and some
    of data centres the hottest spot only. The third sensor is that of the memory.
    """
    labels = {read_text(f"{hwmon}/temp{number}_label"): number for number in (1, 2, 3)}
    for label in ("edge", "junction"):
        if label in labels:
            millidegrees = read_number(f"{hwmon}/temp{labels[label]}_input")
            if millidegrees is not None:
                return millidegrees / 1000
    return None


def _watts(*paths: str) -> float | None:
    """The first that tells: new devices have the power of now only, old ones an average only."""
    for path in paths:
        watts = parse_watts(read_small(path, MAX_VALUE_BYTES))
        if watts is not None:
            return watts
    return None
