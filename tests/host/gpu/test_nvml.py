"""NVIDIA's devices through the real nvidia-ml-py, on a library that says what a test wants."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_nvml import (
    GIB,
    FakeDevice,
    FakeDriver,
    FakeInstance,
    FakeMemory,
    FakeProcess,
)
from vllm_agent.host.gpu import nvml_library
from vllm_agent.host.gpu.nvml import MAX_CELSIUS, MAX_WATTS, NvmlReader
from vllm_agent.host.gpu.nvml_library import Code
from vllm_agent.host.gpu.nvml_xids import MAX_XIDS
from vllm_agent.host.gpu.reader import DriverError, NoDriverError
from vllm_agent.observations import Gpu, GpuFault, GpuProcess, GpuVendor, Instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNKNOWN = 999
ALL_ONES = 0xFFFFFFFF
NO_TEXT = b"\xff\xfe".decode(errors="surrogateescape")
NOW = Instant(12.0, 1700000000.0)
FIRST = FakeDevice(uuid="GPU-first", bus_id="00000000:01:00.0")
SECOND = FakeDevice(uuid="GPU-second", bus_id="00000000:02:00.0")
SLICE = FakeInstance(
    uuid="MIG-small",
    gpu_instance=7,
    memory=FakeMemory(total_bytes=10 * GIB, used_bytes=GIB),
    processes=(FakeProcess(71, GIB),),
)
HALF = FakeInstance(uuid="MIG-half", gpu_instance=2, name="NVIDIA H100 80GB HBM3 MIG 3g.40gb")
CUT = replace(
    FIRST,
    has_mig=True,
    utilization_percent=None,
    processes=(FakeProcess(1, GIB),),
    instances=(SLICE, None, HALF),
)


@pytest.fixture
def driver(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The driver that pynvml finds in this process; nothing may be left open in the end."""
    for name, value in fake_driver.environment().items():
        monkeypatch.setenv(name, value)
    library = ctypes.CDLL(str(fake_driver.library))
    yield fake_driver
    fake_driver.recover()
    assert library.nvmlShutdown() == Code.UNINITIALIZED
    assert library.fake_event_sets() == 0


@pytest.fixture
def reader(driver: FakeDriver) -> Iterator[NvmlReader]:
    """A reader with an open library; the clock always says NOW."""
    driver.show(FIRST, SECOND)
    reader = NvmlReader(lambda: NOW)
    reader.open()
    yield reader
    reader.close()


@pytest.fixture
def told() -> list[GpuFault]:
    return []


def gpus(reader: NvmlReader) -> tuple[Gpu, ...]:
    return reader.read((), lambda _: None)


def faults(reader: NvmlReader) -> tuple[GpuFault, ...]:
    told: list[GpuFault] = []
    reader.read((), told.append)
    return tuple(told)


def show_first(driver: FakeDriver, field: str, value: object) -> None:
    """The first device alone, with this value of this field."""
    changes: dict[str, Any] = {field: value}
    driver.show(replace(FIRST, **changes))


def event_sets(driver: FakeDriver) -> int:
    return int(ctypes.CDLL(str(driver.library)).fake_event_sets())


@contextmanager
def hanging(driver: FakeDriver, function: str, call: Callable[[], object]) -> Iterator[None]:
    """A call that hangs in this function while the block runs, and ends after it."""
    driver.hang(function)
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    yield
    driver.recover()
    thread.join(5)
    assert not thread.is_alive()


def reopen(reader: NvmlReader) -> None:
    reader.close()
    reader.open()


# What a device says.


def test_every_field(driver, reader):
    memory = FakeMemory(total_bytes=80 * GIB, used_bytes=30 * GIB, reserved_bytes=GIB)
    device = FakeDevice(
        uuid="GPU-5f0d6c5e-0000-0000-0000-000000000000",
        bus_id="00000000:C1:00.0",
        name="NVIDIA H100 80GB HBM3",
        memory=memory,
        utilization_percent=37,
        temperature_celsius=61,
        power_milliwatts=345_600,
        power_limit_milliwatts=700_000,
        ecc_corrected=12,
        ecc_uncorrected=3,
        processes=(FakeProcess(4711, 29 * GIB),),
    )
    driver.show(device)
    assert gpus(reader) == (
        Gpu(
            index="0",
            uuid="GPU-5f0d6c5e-0000-0000-0000-000000000000",
            vendor=GpuVendor.NVIDIA,
            name="NVIDIA H100 80GB HBM3",
            driver_version="570.86.15",
            pci_bus_id="00000000:C1:00.0",
            memory_total_bytes=80 * GIB,
            memory_used_bytes=30 * GIB,
            memory_free_bytes=49 * GIB,
            utilization_ratio=0.37,
            temperature_celsius=61,
            power_watts=345.6,
            power_limit_watts=700.0,
            ecc_corrected_errors=12,
            ecc_uncorrected_errors=3,
            processes=(GpuProcess(4711, 29 * GIB),),
        ),
    )


@pytest.mark.parametrize(
    ("unsupported", "absent"),
    [
        (
            {"memory": None},
            {"memory_total_bytes", "memory_used_bytes", "memory_free_bytes"},
        ),
        ({"utilization_percent": None}, {"utilization_ratio"}),
        ({"temperature_celsius": None}, {"temperature_celsius"}),
        ({"power_milliwatts": None}, {"power_watts"}),
        ({"power_limit_milliwatts": None}, {"power_limit_watts"}),
        ({"ecc_corrected": None}, {"ecc_corrected_errors"}),
        ({"ecc_uncorrected": None}, {"ecc_uncorrected_errors"}),
        ({"processes": None}, {"processes"}),
        ({"has_mig": None, "has_events": False}, set()),
    ],
    ids=lambda names: "-".join(sorted(names)),
)
def test_what_a_device_does_not_support_is_none_and_not_told(
    driver, reader, caplog, unsupported, absent
):
    full = asdict(gpus(reader)[0])
    driver.show(replace(FIRST, **unsupported))
    (gpu,) = gpus(reader)
    assert asdict(gpu) == {**full, **dict.fromkeys(absent)}
    assert not caplog.records


def test_driver_that_does_not_tell_reserved_memory_apart(driver, reader):
    driver.show(
        replace(FIRST, memory=FakeMemory(total_bytes=10, used_bytes=4, reserved_bytes=None))
    )
    (gpu,) = gpus(reader)
    assert (gpu.memory_total_bytes, gpu.memory_used_bytes, gpu.memory_free_bytes) == (10, 4, 6)


@pytest.mark.parametrize(
    ("code", "used_bytes"),
    [
        (Code.FUNCTION_NOT_FOUND, 5),
        (Code.NOT_SUPPORTED, 5),
        (Code.ARGUMENT_VERSION_MISMATCH, 5),
        (UNKNOWN, None),
        (Code.NO_PERMISSION, None),
    ],
)
def test_reserved_memory_is_taken_for_used_only_where_that_is_all_the_driver_has(
    driver, reader, code, used_bytes
):
    memory = FakeMemory(total_bytes=10, used_bytes=4, reserved_bytes=1)
    driver.show(replace(FIRST, memory=memory))
    assert gpus(reader)[0].memory_used_bytes == 4
    driver.fail(code, "nvmlDeviceGetMemoryInfo_v2")
    assert gpus(reader)[0].memory_used_bytes == used_bytes


@pytest.mark.parametrize(
    ("most", "absent"),
    [
        (("utilization_percent", 100), "utilization_ratio"),
        (("temperature_celsius", int(MAX_CELSIUS)), "temperature_celsius"),
        (("power_milliwatts", int(MAX_WATTS) * 1000), "power_watts"),
        (("power_limit_milliwatts", int(MAX_WATTS) * 1000), "power_limit_watts"),
    ],
)
def test_value_that_is_no_measurement_is_unknown_and_told_once(
    driver, reader, caplog, most, absent
):
    field, bound = most
    show_first(driver, field, bound)
    full = asdict(gpus(reader)[0])
    assert full[absent] is not None
    for value in (bound + 1, ALL_ONES):
        show_first(driver, field, value)
        assert asdict(gpus(reader)[0]) == {**full, absent: None}
    assert len(caplog.records) == 1


def test_temperature_below_all_that_is_possible_is_unknown(driver, reader):
    driver.fail(Code.FUNCTION_NOT_FOUND, "nvmlDeviceGetTemperature")
    seen = []
    for celsius in (-50, -51):
        driver.show(replace(FIRST, temperature_celsius=ALL_ONES + 1 + celsius))  # as it is signed
        seen.append(gpus(reader)[0].temperature_celsius)
    assert seen == [-50, None]


@pytest.mark.parametrize(("field", "absent"), [("name", "name"), ("bus_id", "pci_bus_id")])
def test_text_that_is_none_is_unknown_and_told_once(driver, reader, caplog, field, absent):
    full = asdict(gpus(reader)[0])
    show_first(driver, field, NO_TEXT)
    reader = NvmlReader(lambda: NOW)
    reader.open()
    for _ in range(2):
        assert asdict(gpus(reader)[0]) == {**full, absent: None}
    reader.close()
    assert len(caplog.records) == 1


def test_device_whose_uuid_is_no_text_takes_no_other_along(driver, reader):
    driver.show(replace(FIRST, uuid=NO_TEXT), SECOND)
    assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-second"]


@pytest.mark.parametrize(
    ("function", "absent"),
    [
        ("nvmlDeviceGetName", "name"),
        ("nvmlDeviceGetPciInfo_v3", "pci_bus_id"),
        ("nvmlSystemGetDriverVersion", "driver_version"),
    ],
)
@pytest.mark.parametrize("code", [UNKNOWN, Code.NOT_SUPPORTED])
def test_what_a_device_is_called_is_asked_until_it_is_known(driver, reader, function, absent, code):
    driver.fail(code, function)
    for _ in range(2):
        assert [getattr(gpu, absent) for gpu in gpus(reader)] == [None, None]
    driver.recover()
    known = gpus(reader)
    assert None not in [getattr(gpu, absent) for gpu in known]
    driver.fail(code, function)
    assert gpus(reader) == known


def test_driver_without_the_third_form_of_the_process_lists(driver, reader):
    driver.show(
        replace(FIRST, processes=(FakeProcess(5, 50), FakeProcess(6, 60, is_compute=False)))
    )
    driver.fail(Code.FUNCTION_NOT_FOUND, "nvmlDeviceGetComputeRunningProcesses_v3")
    driver.fail(Code.FUNCTION_NOT_FOUND, "nvmlDeviceGetGraphicsRunningProcesses_v3")
    assert gpus(reader)[0].processes == (GpuProcess(5, 50), GpuProcess(6, 60))


def test_driver_without_the_first_form_of_the_temperature(driver, reader):
    driver.fail(Code.FUNCTION_NOT_FOUND, "nvmlDeviceGetTemperature")
    assert gpus(reader)[0].temperature_celsius == 40


def test_error_that_is_not_expected_is_told_once(driver, reader, caplog):
    driver.fail(UNKNOWN, "nvmlDeviceGetPowerUsage")
    for _ in range(2):
        assert [gpu.power_watts for gpu in gpus(reader)] == [None, None]
    reopen(reader)
    assert gpus(reader)[0].power_watts is None
    (record,) = caplog.records
    assert "nvmlDeviceGetPowerUsage" in vars(record).values()


def test_device_that_appears_and_goes(driver, reader):
    assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-first", "GPU-second"]
    driver.show(SECOND)
    assert [(gpu.index, gpu.uuid) for gpu in gpus(reader)] == [("0", "GPU-second")]
    driver.show()
    assert gpus(reader) == ()
    reopen(reader)
    assert gpus(reader) == ()


def test_new_driver_version_is_seen_when_the_library_is_opened_again(driver, reader):
    assert gpus(reader)[0].driver_version == "570.86.15"
    driver.state = replace(driver.state, driver_version="580.65.06")
    driver.show(FIRST)
    reopen(reader)
    assert [gpu.driver_version for gpu in gpus(reader)] == ["580.65.06"]


# Who holds memory.


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ((), ()),
        ((FakeProcess(5, None),), (GpuProcess(5, None),)),
        ((FakeProcess(5, 0),), (GpuProcess(5, 0),)),
        ((FakeProcess(5, 50), FakeProcess(5, 70, is_compute=False)), (GpuProcess(5, 70),)),
        ((FakeProcess(5, 70), FakeProcess(5, 50, is_compute=False)), (GpuProcess(5, 70),)),
        ((FakeProcess(5, None), FakeProcess(5, 50, is_compute=False)), (GpuProcess(5, 50),)),
        ((FakeProcess(5, 50), FakeProcess(5, None, is_compute=False)), (GpuProcess(5, 50),)),
        (
            (FakeProcess(6, 1, is_compute=False), FakeProcess(5, 2)),
            (GpuProcess(5, 2), GpuProcess(6, 1)),
        ),
    ],
)
def test_process_is_listed_once(driver, reader, listed, expected):
    driver.show(replace(FIRST, processes=listed))
    assert gpus(reader)[0].processes == expected


@pytest.mark.parametrize("code", [Code.NOT_SUPPORTED, UNKNOWN])
@pytest.mark.parametrize(
    ("missing", "processes"), [("Compute", None), ("Graphics", (GpuProcess(5, 50),))]
)
def test_processes_are_unknown_without_those_that_compute(driver, reader, missing, processes, code):
    both = (FakeProcess(5, 50), FakeProcess(6, 60, is_compute=False))
    driver.show(replace(FIRST, processes=both))
    for form in ("v2", "v3"):
        driver.fail(code, f"nvmlDeviceGet{missing}RunningProcesses_{form}")
    assert gpus(reader)[0].processes == processes


# A device that is lost.


def test_lost_device_keeps_its_identity_only_and_the_others_go_on(driver, reader):
    first, second = gpus(reader)
    driver.show(replace(FIRST, is_lost=True), SECOND)
    identity = Gpu(
        index="0",
        uuid="GPU-first",
        vendor=GpuVendor.NVIDIA,
        name=first.name,
        driver_version="570.86.15",
        pci_bus_id="00000000:01:00.0",
        is_lost=True,
    )
    assert gpus(reader) == (identity, second)
    reopen(reader)
    assert gpus(reader) == (identity, second)
    driver.show(FIRST, SECOND)
    assert gpus(reader) == (first, second)


@pytest.mark.parametrize(
    ("code", "function"),
    [
        (Code.GPU_IS_LOST, "nvmlDeviceGetUUID"),
        (Code.GPU_IS_LOST, "nvmlDeviceGetMemoryInfo_v2"),
        (Code.GPU_IS_LOST, "nvmlDeviceGetGraphicsRunningProcesses_v3"),
        (Code.RESET_REQUIRED, "nvmlDeviceGetMemoryInfo_v2"),
        (UNKNOWN, "nvmlDeviceGetHandleByIndex_v2"),
        (Code.NO_PERMISSION, "nvmlDeviceGetHandleByIndex_v2"),
    ],
)
def test_device_is_lost_wherever_that_is_said(driver, reader, code, function):
    gpus(reader)
    driver.fail(code, function, device=0)
    assert [gpu.is_lost for gpu in gpus(reader)] == [True, False]
    driver.recover()
    assert [gpu.is_lost for gpu in gpus(reader)] == [False, False]


def test_lost_device_that_never_said_what_it_is_is_left_out_and_told_once(driver, reader, caplog):
    driver.show(replace(FIRST, is_lost=True), SECOND)
    for _ in range(2):
        assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-second"]
    (record,) = caplog.records
    assert vars(record)["gpu"] == 0


def test_lost_device_is_not_shown_under_the_name_of_one_that_took_another_number(driver, reader):
    gpus(reader)
    driver.show(SECOND, replace(FIRST, is_lost=True))
    assert [(gpu.index, gpu.uuid, gpu.is_lost) for gpu in gpus(reader)] == [
        ("0", "GPU-second", False)
    ]


# MIG.


def test_mig_instances_carry_the_memory_and_the_processes(driver, reader):
    driver.show(CUT, SECOND)
    parent, small, half, second = gpus(reader)
    assert parent.uuid == "GPU-first"
    assert parent.parent_uuid is None
    assert parent.memory_total_bytes is None
    assert parent.memory_used_bytes is None
    assert parent.memory_free_bytes is None
    assert parent.processes is None
    assert parent.utilization_ratio is None
    assert (parent.temperature_celsius, parent.power_watts) == (40, 100.0)
    assert (parent.ecc_corrected_errors, parent.ecc_uncorrected_errors) == (0, 0)
    assert small == Gpu(
        index="0:0",
        uuid="MIG-small",
        vendor=GpuVendor.NVIDIA,
        name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        driver_version="570.86.15",
        pci_bus_id="00000000:01:00.0",
        parent_uuid="GPU-first",
        memory_total_bytes=10 * GIB,
        memory_used_bytes=GIB,
        memory_free_bytes=9 * GIB - GIB // 2,
        processes=(GpuProcess(71, GIB),),
    )
    assert (half.index, half.uuid, half.processes) == ("0:2", "MIG-half", ())
    assert (second.uuid, second.memory_total_bytes) == ("GPU-second", 80 * GIB)


def test_device_that_is_cut_anew_and_made_whole(driver, reader):
    driver.show(CUT)
    assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-first", "MIG-small", "MIG-half"]
    driver.show(replace(CUT, instances=(HALF,)))
    assert [(gpu.index, gpu.uuid) for gpu in gpus(reader)][1:] == [("0:0", "MIG-half")]
    driver.show(replace(CUT, instances=()))
    assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-first"]
    driver.show(FIRST)
    (whole,) = gpus(reader)
    assert whole.memory_total_bytes == 80 * GIB


def test_lost_device_loses_its_instances(driver, reader):
    driver.show(CUT)
    gpus(reader)
    driver.show(replace(CUT, is_lost=True))
    assert [(gpu.uuid, gpu.is_lost) for gpu in gpus(reader)] == [("GPU-first", True)]


# XIDs.


def test_xid_is_reported_once_and_dated(driver, reader):
    driver.fault(0, 31)
    assert faults(reader) == ()  # what was before the reader is not its business
    driver.fault(1, 79)
    assert faults(reader) == (GpuFault("GPU-second", 79, NOW),)
    assert faults(reader) == ()


def test_several_xids_in_order_also_the_same_again(driver, reader):
    faults(reader)
    driver.fault(0, 13, 13, 31)
    driver.fault(1, 43)
    assert [(fault.uuid, fault.xid) for fault in faults(reader)] == [
        ("GPU-first", 13),
        ("GPU-first", 13),
        ("GPU-first", 31),
        ("GPU-second", 43),
    ]


def test_storm_of_xids_is_taken_in_parts_and_does_not_hide_another_device(driver, reader):
    faults(reader)
    storm = range(1, MAX_XIDS + 7)
    driver.fault(0, *storm)
    driver.fault(1, 79)
    assert [fault.xid for fault in faults(reader)] == [*storm[:MAX_XIDS], 79]
    assert [fault.xid for fault in faults(reader)] == [*storm[MAX_XIDS:]]


def test_xids_after_the_library_was_opened_again(driver, reader):
    faults(reader)
    driver.fault(0, 13)
    assert [fault.xid for fault in faults(reader)] == [13]
    reopen(reader)
    assert faults(reader) == ()
    driver.fault(0, 31)
    assert [fault.xid for fault in faults(reader)] == [31]


def test_xid_is_told_before_a_reading_that_fails(driver, reader, told):
    faults(reader)
    driver.fault(0, 48)
    driver.fail(UNKNOWN, "nvmlDeviceGetCount_v2")
    with pytest.raises(DriverError):
        reader.read((), told.append)
    assert [fault.xid for fault in told] == [48]


def test_xid_is_told_before_a_call_that_hangs(driver, reader, told):
    faults(reader)
    driver.fault(0, 79)
    with hanging(driver, "nvmlDeviceGetTemperature", lambda: reader.read((), told.append)):
        assert [fault.xid for fault in told] == [79]
    assert [fault.xid for fault in told] == [79]


def test_xid_is_told_before_the_wait_for_the_next_one(driver, reader, told):
    faults(reader)
    driver.fault(0, 79)

    def read() -> None:
        def tell(fault: GpuFault) -> None:
            told.append(fault)
            driver.hang("nvmlEventSetWait_v2")

        reader.read((), tell)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert [fault.xid for fault in told] == [79]
    driver.recover()
    thread.join(5)
    assert not thread.is_alive()


def test_xid_of_the_first_reading_that_hangs(driver, reader):
    with hanging(driver, "nvmlDeviceGetTemperature", lambda: gpus(reader)):
        driver.fault(0, 79)
    assert [fault.xid for fault in faults(reader)] == [79]


def test_xid_of_the_device_that_it_loses(driver, reader, told):
    faults(reader)
    driver.fault(0, 79)
    driver.show(replace(FIRST, is_lost=True), SECOND)
    read = reader.read((), told.append)
    assert [gpu.is_lost for gpu in read] == [True, False]
    assert [fault.xid for fault in told] == [79]


def test_wait_that_fails_for_a_lost_device_does_not_hide_the_others(driver, reader):
    faults(reader)
    driver.show(replace(FIRST, is_lost=True), SECOND)
    driver.fault(0, 79)
    driver.fault(1, 13)
    driver.fail(Code.GPU_IS_LOST, "nvmlEventSetWait_v2", device=0)
    assert [fault.xid for fault in faults(reader)] == [13]
    assert event_sets(driver) == 1
    driver.recover()
    driver.show(FIRST, SECOND)
    faults(reader)  # listens to it again
    driver.fault(0, 31)
    assert [fault.xid for fault in faults(reader)] == [31]


def test_device_without_events(driver, reader, caplog):
    driver.show(replace(FIRST, has_events=False))
    driver.fail(UNKNOWN, "nvmlEventSetCreate")
    faults(reader)
    assert not caplog.records  # no set was made for it
    driver.recover()
    driver.show(replace(FIRST, has_events=False), SECOND)
    faults(reader)
    driver.fault(0, 79)
    driver.fault(1, 13)
    assert [fault.uuid for fault in faults(reader)] == ["GPU-second"]


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("nvmlDeviceGetSupportedEventTypes", UNKNOWN),
        ("nvmlEventSetCreate", UNKNOWN),
        ("nvmlDeviceRegisterEvents", UNKNOWN),
        ("nvmlDeviceRegisterEvents", Code.NOT_SUPPORTED),
        ("nvmlDeviceRegisterEvents", Code.GPU_IS_LOST),
        ("nvmlDeviceRegisterEvents", Code.RESET_REQUIRED),
    ],
)
def test_device_that_could_not_be_listened_to_once(driver, reader, function, code):
    driver.fail(code, function)
    for _ in range(2):
        assert faults(reader) == ()
        assert event_sets(driver) == 0
    driver.recover()
    assert faults(reader) == ()
    driver.fault(0, 13)
    assert [fault.xid for fault in faults(reader)] == [13]


@pytest.mark.parametrize(
    ("gpu_instance", "compute_instance", "uuid"),
    [
        (7, 0, "MIG-small"),
        (7, -1, "MIG-small"),
        (2, 0, "MIG-left"),
        (2, 1, "MIG-right"),
        (2, -1, None),
        (9, 0, None),
        (-1, -1, None),
    ],
)
def test_xid_of_a_mig_instance(driver, reader, gpu_instance, compute_instance, uuid):
    left = replace(HALF, uuid="MIG-left")
    right = replace(HALF, uuid="MIG-right", compute_instance=1)
    driver.show(SECOND, replace(CUT, instances=(SLICE, left, right)))
    faults(reader)
    driver.fault(1, 13, gpu_instance=gpu_instance, compute_instance=compute_instance)
    assert faults(reader) == (GpuFault("GPU-first", 13, NOW, uuid),)


# The library and the driver as a whole.


def test_library_that_is_slow_to_load_stops_no_other_thread(fake_driver):
    fake_driver.show(FIRST)
    fake_driver.be_slow_to_load()
    program = (
        "import pathlib, threading, time\n"
        "from vllm_agent.host.gpu.nvml import NvmlReader\n"
        "reader = NvmlReader()\n"
        "opening = threading.Thread(target=reader.open, daemon=True)\n"
        "opening.start()\n"
        "while 'libnvidia-ml' not in pathlib.Path('/proc/self/maps').read_text():\n"
        "    time.sleep(0.001)\n"
        "print('loading', flush=True)\n"
        "opening.join()\n"
        "print(reader.read((), print)[0].uuid)\n"
    )
    environment = {**os.environ, **fake_driver.environment()}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    with process, killed_after(10.0, process):
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        fake_driver.recover()
        assert process.stdout.read() == "GPU-first\n"


@contextmanager
def killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_no_library_costs_no_pynvml(tmp_path):
    program = (
        "import sys\n"
        "from vllm_agent.host.gpu import nvml, nvml_library\n"
        "nvml_library.LIBRARY = 'libnvidia-nowhere.so.1'\n"
        "reader = nvml.NvmlReader()\n"
        "try:\n"
        "    reader.open()\n"
        "except nvml_library.NoDriverError as error:\n"
        "    print(error)\n"
        "reader.close()\n"
        "assert 'pynvml' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "libnvidia-nowhere.so.1" in done.stdout


def test_program_with_the_environment_sees_the_driver(fake_driver):
    fake_driver.show(FIRST)
    program = (
        "from vllm_agent.host.gpu.nvml import NvmlReader\n"
        "reader = NvmlReader()\n"
        "reader.open()\n"
        "print(reader.read((), print)[0].uuid)\n"
    )
    environment = {**os.environ, **fake_driver.environment()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "GPU-first\n"


def test_library_that_cannot_be_found(driver, monkeypatch):
    monkeypatch.setattr(nvml_library, "LIBRARY", "libnvidia-nowhere.so.1")
    with pytest.raises(NoDriverError, match=r"libnvidia-nowhere\.so\.1"):
        NvmlReader().open()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (Code.DRIVER_NOT_LOADED, NoDriverError, "not loaded"),
        (Code.LIBRARY_NOT_FOUND, NoDriverError, "Not Found"),
        (Code.LIB_RM_VERSION_MISMATCH, DriverError, "reboot, then restart the agent"),
        (Code.NO_PERMISSION, DriverError, "/dev/nvidiactl"),
        (UNKNOWN, DriverError, r"Unknown Error \(NVML code 999\)"),
    ],
)
def test_library_that_does_not_start(driver, code, kind, text):
    driver.show(FIRST)
    driver.fail(code, "nvmlInitWithFlags")
    reader = NvmlReader()
    for _ in range(2):
        with pytest.raises(kind, match=text):
            reader.open()
        reader.close()
    driver.recover()
    reader.open()
    assert [gpu.uuid for gpu in gpus(reader)] == ["GPU-first"]
    reader.close()


@pytest.mark.parametrize(
    ("code", "function"),
    [
        (Code.DRIVER_NOT_LOADED, "*"),
        (Code.UNINITIALIZED, "*"),
        (Code.UNINITIALIZED, "nvmlDeviceGetMemoryInfo_v2"),
        (Code.LIB_RM_VERSION_MISMATCH, "nvmlDeviceGetHandleByIndex_v2"),
        (Code.DRIVER_NOT_LOADED, "nvmlEventSetWait_v2"),
        (Code.GPU_IS_LOST, "nvmlDeviceGetCount_v2"),
        (UNKNOWN, "nvmlDeviceGetCount_v2"),
    ],
)
def test_driver_that_goes_and_comes_back(driver, reader, code, function):
    before = gpus(reader)
    driver.fail(code, function)
    for _ in range(2):
        with pytest.raises(DriverError):
            gpus(reader)
    reader.close()
    reader.close()
    driver.recover()
    reader.open()
    assert gpus(reader) == before


@pytest.mark.parametrize(
    "function",
    ["nvmlDeviceRegisterEvents", "nvmlDeviceGetPciInfo_v3", "nvmlSystemGetDriverVersion"],
)
def test_driver_that_goes_in_its_first_reading(driver, reader, function):
    driver.fail(Code.UNINITIALIZED, function)
    with pytest.raises(DriverError):
        gpus(reader)
    reopen(reader)
    driver.recover()
    assert len(gpus(reader)) == 2


@pytest.mark.parametrize("code", [Code.GPU_IS_LOST, Code.RESET_REQUIRED])
def test_loss_that_is_told_of_no_device(driver, code):
    driver.show(FIRST)
    driver.fail(code, "nvmlSystemGetDriverVersion")
    reader = NvmlReader()
    reader.open()
    assert [(gpu.is_lost, gpu.driver_version) for gpu in gpus(reader)] == [(False, None)]
    reader.close()


def test_close_lets_go_of_the_event_sets(driver, reader):
    faults(reader)
    assert event_sets(driver) == 2
    reader.close()
    assert event_sets(driver) == 0


def test_driver_that_hangs_and_goes_on(driver, reader):
    seen: list[Gpu] = []
    with hanging(driver, "nvmlDeviceGetUtilizationRates", lambda: seen.extend(gpus(reader))):
        assert not seen
    assert [gpu.uuid for gpu in seen] == ["GPU-first", "GPU-second"]


def test_read_while_not_open_is_a_mistake_of_the_caller(reader):
    reader.close()
    for closed in (reader, NvmlReader()):
        with pytest.raises(RuntimeError, match="is not open"):
            gpus(closed)
