"""A stand-in for NVIDIA's driver library, which real programs load, and what it is told to say.

The library answers from a file whose lines `FakeState.lines` writes. It looks at the file at each
call, so that a running program sees a change at once, also one that is hanging in a call.

A program sees it through `FakeDriver.environment()`. The process of a test can load it before
pynvml does, with `ctypes.CDLL(driver.library)`: the loader then gives pynvml the same one, because
it knows it by its soname. FAKE_NVML_STATE must then be in `os.environ`.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY_NAME = "libnvidia-ml.so.1"
STATE_VARIABLE = "FAKE_NVML_STATE"
EVERY_FUNCTION = "*"
GIB = 1 << 30
_SOURCE = Path(__file__).with_name("fake_nvml.c")
_NO_INSTANCE = -1


def build(folder: Path) -> Path:
    """Compiles the library and returns the folder, which belongs on LD_LIBRARY_PATH."""
    options = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")
    target = folder / LIBRARY_NAME
    soname = f"-Wl,-soname,{LIBRARY_NAME}"
    subprocess.run(["cc", *options, soname, "-o", target, _SOURCE], check=True)
    return folder


@dataclass(frozen=True, slots=True)
class FakeProcess:
    """A process that holds memory; None where the driver does not know how much."""

    pid: int
    used_bytes: int | None
    is_compute: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeMemory:
    """The memory of a device; the reserved part is in neither of the other two.

    `free_bytes` is what remains, unless told. Without `reserved_bytes` the driver is one of those
    that have only the first version of the call.
    """

    total_bytes: int = 80 * GIB
    used_bytes: int = 0
    reserved_bytes: int | None = GIB // 2
    free_bytes: int | None = None

    def words(self) -> str:
        """Total, used, free, reserved."""
        free = self.free_bytes
        if free is None:
            free = self.total_bytes - self.used_bytes - (self.reserved_bytes or 0)
        return f"{self.total_bytes} {self.used_bytes} {free} {_number(self.reserved_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInstance:
    """A MIG instance; its slot is its place in `FakeDevice.instances`."""

    uuid: str
    gpu_instance: int
    compute_instance: int = 0
    name: str = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    memory: FakeMemory = field(default_factory=lambda: FakeMemory(total_bytes=10 * GIB))
    processes: tuple[FakeProcess, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeDevice:
    """A device; its index is its place in `FakeState.devices`. None is "not supported"."""

    uuid: str
    bus_id: str = "00000000:01:00.0"
    name: str = "NVIDIA H100 80GB HBM3"
    is_lost: bool = False
    memory: FakeMemory | None = field(default_factory=FakeMemory)
    utilization_percent: int | None = 0
    temperature_celsius: int | None = 40
    power_milliwatts: int | None = 100_000
    power_limit_milliwatts: int | None = 700_000
    ecc_corrected: int | None = 0
    ecc_uncorrected: int | None = 0
    processes: tuple[FakeProcess, ...] | None = ()
    has_events: bool = True
    has_mig: bool | None = False
    instances: tuple[FakeInstance | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeXid:
    """An XID of a device, or of an instance of it; a greater sequence number is a later event."""

    sequence: int
    device: int
    xid: int
    gpu_instance: int = _NO_INSTANCE
    compute_instance: int = _NO_INSTANCE


@dataclass(frozen=True, slots=True)
class FakeError:
    """What a function returns instead of its answer; of one device only, where it names one."""

    function: str
    code: int
    device: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeState:
    """Everything the driver knows.

    Functions are named by their symbol, such as nvmlEventSetWait_v2; the start of the library is
    nvmlInitWithFlags, whichever form of it a program calls. Where the driver `is_slow_to_load`, its
    library is not loaded before that ends.
    """

    driver_version: str = "570.86.15"
    devices: tuple[FakeDevice, ...] = ()
    xids: tuple[FakeXid, ...] = ()
    errors: tuple[FakeError, ...] = ()
    hanging: frozenset[str] = frozenset()
    is_slow_to_load: bool = False

    def lines(self) -> Iterator[str]:
        """The file that the library reads."""
        yield f"driver {self.driver_version}"
        for index, device in enumerate(self.devices):
            yield from _device_lines(index, device)
        for xid in self.xids:
            instance = f"{xid.gpu_instance} {xid.compute_instance}"
            yield f"xid {xid.sequence} {xid.device} {instance} {xid.xid}"
        for error in self.errors:
            yield f"error {error.function} {error.code} {error.device}"
        for function in sorted(self.hanging):
            yield f"hang {function}"
        if self.is_slow_to_load:
            yield "slow to load"


class FakeDriver:
    """The driver that programs with its environment see. Each change is seen by their next call."""

    def __init__(self, library_folder: Path, state_file: Path) -> None:
        self.library = library_folder / LIBRARY_NAME
        self.state_file = state_file
        self.state = FakeState()
        self._written_at_ns = 0
        self._write()

    def environment(self) -> dict[str, str]:
        """What a program that shall see this driver needs in its environment."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            STATE_VARIABLE: str(self.state_file),
        }

    def show(self, *devices: FakeDevice) -> None:
        """These are the devices from now on."""
        self._change(replace(self.state, devices=devices))

    def change(self, index: int, device: FakeDevice) -> None:
        """Puts another device in the place of one."""
        devices = list(self.state.devices)
        devices[index] = device
        self.show(*devices)

    def fault(
        self,
        device: int,
        *xids: int,
        gpu_instance: int = _NO_INSTANCE,
        compute_instance: int = _NO_INSTANCE,
    ) -> None:
        """XIDs happen, in this order; whoever is registered is told of each once."""
        events = tuple(
            FakeXid(
                sequence=sequence,
                device=device,
                xid=xid,
                gpu_instance=gpu_instance,
                compute_instance=compute_instance,
            )
            for sequence, xid in enumerate(xids, len(self.state.xids) + 1)
        )
        self._change(replace(self.state, xids=(*self.state.xids, *events)))

    def fail(self, code: int, function: str = EVERY_FUNCTION, *, device: int = -1) -> None:
        """A function, or every one, returns this code until `recover`."""
        error = FakeError(function, code, device)
        self._change(replace(self.state, errors=(*self.state.errors, error)))

    def hang(self, function: str = EVERY_FUNCTION) -> None:
        """A function, or every one, does not return until `recover`."""
        self._change(replace(self.state, hanging=self.state.hanging | {function}))

    def be_slow_to_load(self) -> None:
        """Who loads the library waits until `recover`."""
        self._change(replace(self.state, is_slow_to_load=True))

    def recover(self) -> None:
        """No function fails or hangs any more; those that hung go on."""
        self._change(replace(self.state, errors=(), hanging=frozenset(), is_slow_to_load=False))

    def _change(self, state: FakeState) -> None:
        self.state = state
        self._write()

    def _write(self) -> None:
        text = "".join(f"{line}\n" for line in self.state.lines())
        draft = self.state_file.with_name(self.state_file.name + ".new")
        draft.write_text(text, errors="surrogateescape")
        # Two files written within one tick of the kernel's clock would have the same time, and may
        # have the same inode and size: the library could not tell them apart.
        self._written_at_ns = max(self._written_at_ns + 1, time.time_ns())
        os.utime(draft, ns=(self._written_at_ns, self._written_at_ns))
        draft.replace(self.state_file)


def _device_lines(index: int, device: FakeDevice) -> Iterator[str]:
    memory = "-1 -1 -1 -1" if device.memory is None else device.memory.words()
    numbers = (
        device.utilization_percent,
        None if device.utilization_percent is None else 0,
        device.temperature_celsius,
        device.power_milliwatts,
        device.power_limit_milliwatts,
        device.ecc_corrected,
        device.ecc_uncorrected,
    )
    flags = (device.is_lost, device.has_mig, device.processes is not None, device.has_events)
    yield (
        f"device {index} {device.uuid} {device.bus_id} {' '.join(map(_number, flags))} {memory}"
        f" {' '.join(map(_number, numbers))} {device.name}"
    )
    for process in device.processes or ():
        yield _process_line(f"{index} {_NO_INSTANCE} {_NO_INSTANCE}", process)
    for slot, instance in enumerate(device.instances):
        if instance is not None:
            ids = f"{instance.gpu_instance} {instance.compute_instance}"
            words = instance.memory.words()
            yield f"instance {index} {slot} {ids} {instance.uuid} {words} {instance.name}"
            for process in instance.processes:
                yield _process_line(f"{index} {ids}", process)


def _process_line(place: str, process: FakeProcess) -> str:
    used = _number(process.used_bytes)
    return f"process {place} {process.pid} {used} {_number(process.is_compute)}"


def _number(value: int | None) -> str:
    return "-1" if value is None else str(int(value))
