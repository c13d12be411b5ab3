"""GPUs for the programs under measurement: a library of NVIDIA's driver that answers from a file.

It costs less than a real driver, whose calls go to the kernel and to the device.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from benchmarks.programs import NotMeasurableError
from benchmarks.scraper import Scraper
from tests.fake_nvml import GIB, FakeDevice, FakeDriver, FakeMemory, FakeProcess, build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.programs import Program

DEVICES: Final = 8
PROCESSES: Final = 64
COMPILER: Final = "cc"

USED_BYTES: Final = 64 * GIB
"""Of each device, by the processes that hold it in equal parts."""

_HELD: Final = b"vllm_agent_server_gpu_memory_used_bytes{"


def fake_driver(folder: Path, holders: Sequence[Sequence[int]]) -> FakeDriver:
    """A driver with one device for each group of PIDs, which hold its memory.

    Raises:
        NotMeasurableError: there is no compiler to build it with.
    """
    if shutil.which(COMPILER) is None:
        raise NotMeasurableError(f"{COMPILER} is not installed, for the fake driver: make deps")
    folder.mkdir(parents=True, exist_ok=True)
    driver = FakeDriver(build(folder), folder / "nvml_state")
    driver.show(*(_device(index, pids) for index, pids in enumerate(holders)))
    return driver


def in_turn(pids: Sequence[int]) -> list[Sequence[int]]:
    """The processes as holders of `DEVICES` devices, as many on each."""
    return [pids[index::DEVICES] for index in range(DEVICES)]


def await_attributed(agent: Program, count: int) -> None:
    """Waits until the agent shows that so many servers hold memory of a device.

    Raises:
        NotMeasurableError: it does not.
    """
    with Scraper(agent.port) as scraper:
        agent.wait_until(
            lambda: scraper.get().body.count(b"\n" + _HELD) == count,
            f"memory of {count} devices is attributed to servers",
        )


def _device(index: int, pids: Sequence[int]) -> FakeDevice:
    each = USED_BYTES // max(1, len(pids))
    return FakeDevice(
        uuid=f"GPU-{index:08x}-0000-4000-8000-000000000000",
        bus_id=f"00000000:{index + 1:02x}:00.0",
        memory=FakeMemory(used_bytes=USED_BYTES),
        utilization_percent=90,
        processes=tuple(FakeProcess(pid, each) for pid in pids),
    )
