"""The reader of NVML on a real NVIDIA GPU and its driver."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.gpu import cuda_holder
from vllm_agent.host.gpu.nvml import NvmlReader
from vllm_agent.host.gpu.reader import NoDriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_agent.observations import Gpu, GpuFault

MIB: Final = 1 << 20
ALLOCATED_BYTES: Final = 1024 * MIB
PATIENCE_SECONDS: Final = 20.0
DEADLINE_SECONDS: Final = 2.0
HOST_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h

pytestmark = pytest.mark.gpu


def gpus(reader: NvmlReader) -> tuple[Gpu, ...]:
    return reader.read((), lambda _: None)


@pytest.fixture
def reader() -> Iterator[NvmlReader]:
    reader = NvmlReader()
    try:
        reader.open()
    except NoDriverError as error:
        pytest.skip(f"no NVIDIA driver: {error}")
    try:
        if not gpus(reader):
            pytest.skip("the NVIDIA driver has no device")
        yield reader
    finally:
        reader.close()


class Holder:
    """A process with a CUDA context, under the number that the driver gives it."""

    def __init__(self, reader: NvmlReader) -> None:
        self._reader = reader
        before = set(self._held())
        self.process = subprocess.Popen(
            [sys.executable, cuda_holder.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            status = self.process.wait()
            assert status == cuda_holder.NO_CUDA
            pytest.skip("the CUDA driver has no device that it can use")
        self.pid = self._number(before)

    def do(self, line: str) -> None:
        """Tells it to do something and waits until it is done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def used_bytes(self) -> int | None:
        """What the driver says that it holds, None where it is not listed."""
        return self._held().get(self.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _held(self) -> dict[int, int | None]:
        return {
            process.pid: process.used_bytes
            for gpu in gpus(self._reader)
            for process in gpu.processes or ()
        }

    def _number(self, before: set[int]) -> int:
        """Its PID, or in a container the one process that is listed since."""
        if Path("/proc/self/ns/pid").stat().st_ino == HOST_PID_NAMESPACE:
            return self.process.pid
        new = set(self._held()) - before
        if len(new) != 1:
            self.end()
            pytest.skip("the driver does not list processes of this container")
        return new.pop()


@pytest.fixture
def holder(reader: NvmlReader) -> Iterator[Holder]:
    holder = Holder(reader)
    yield holder
    holder.end()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def devices(reader: NvmlReader) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in gpus(reader) if gpu.parent_uuid is None}


def test_memory_of_a_process_is_attributed_to_it(holder):
    context_bytes = holder.used_bytes()
    assert context_bytes is not None
    holder.do(f"allocate {ALLOCATED_BYTES}")
    used_bytes = holder.used_bytes()
    assert used_bytes is not None
    print(f"a context holds {context_bytes / MIB:.0f} MiB")
    assert used_bytes - context_bytes == pytest.approx(ALLOCATED_BYTES, rel=0.05)


def test_process_that_ended_is_listed_no_more(holder):
    assert holder.used_bytes() is not None
    holder.end()
    wait_until(lambda: holder.used_bytes() is None)


def test_what_is_used_rises_with_what_a_process_takes(reader, holder):
    before = sum(gpu.memory_used_bytes or 0 for gpu in gpus(reader))
    holder.do(f"allocate {ALLOCATED_BYTES}")
    after = sum(gpu.memory_used_bytes or 0 for gpu in gpus(reader))
    assert after - before == pytest.approx(ALLOCATED_BYTES, rel=0.05)


def test_devices_agree_with_nvml(reader):
    import pynvml  # noqa: PLC0415

    read = devices(reader)
    assert len(read) == pynvml.nvmlDeviceGetCount()
    for index, gpu in enumerate(read.values()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        assert gpu.index == str(index)
        assert gpu.uuid == pynvml.nvmlDeviceGetUUID(handle)
        assert gpu.name == pynvml.nvmlDeviceGetName(handle)
        assert gpu.driver_version == pynvml.nvmlSystemGetDriverVersion()
        if gpu.memory_total_bytes is not None:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            assert gpu.memory_total_bytes == memory.total
            assert 0 < (gpu.memory_free_bytes or 0) < memory.total


def test_devices_agree_with_nvidia_smi(reader):
    if shutil.which("nvidia-smi") is None:
        pytest.skip("nvidia-smi is not installed")
    fields = "uuid,driver_version,pci.bus_id,memory.total,enforced.power.limit"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    read = devices(reader)
    lines = done.stdout.splitlines()
    assert len(lines) == len(read)
    for line in lines:
        uuid, driver_version, bus_id, total_mib, limit_watts = line.split(", ")
        gpu = read[uuid]
        assert (gpu.driver_version, gpu.pci_bus_id) == (driver_version, bus_id)
        if gpu.memory_total_bytes is not None:
            assert gpu.memory_total_bytes / MIB == pytest.approx(float(total_mib), abs=1)
        if gpu.power_limit_watts is not None:
            assert gpu.power_limit_watts == pytest.approx(float(limit_watts), abs=0.01)


def test_pass_ends_well_before_its_deadline(reader):
    """Nothing in it waits, the look for XIDs least of all."""
    gpus(reader)
    started, cpu_started = time.monotonic(), time.process_time()
    gpus(reader)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    print(f"a pass takes {seconds * 1000:.1f} ms, of it {cpu_seconds * 1000:.1f} ms of CPU")
    assert seconds < DEADLINE_SECONDS / 4


def test_xid_of_a_kernel_that_failed_is_reported_once(reader, holder):
    gpus(reader)
    holder.do("fault")
    told: list[GpuFault] = []

    def is_told() -> bool:
        reader.read((), told.append)
        return bool(told)

    wait_until(is_told)
    xids = {fault.xid for fault in told}
    print(f"XIDs {xids}")
    assert xids <= {13, 31, 43, 45}  # of an illegal address, and of ending its channels
    holder.end()
