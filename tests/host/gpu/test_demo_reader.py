"""The invented GPUs of the demonstration."""

from __future__ import annotations

import time

import pytest

from tests.host.fake_proc import FakeProc
from tests.host.gpu.scene import no_fault
from vllm_agent.host.gpu.demo import (
    DEVICES,
    FULL_SHARE,
    OTHER_BYTES,
    TOTAL_BYTES,
    WEIGHTS_SECONDS,
    WEIGHTS_SHARE,
    DemoReader,
)
from vllm_agent.observations import Gpu, GpuProcess, Instant

ENGINE = "VLLM::EngineCor"
WORKER = "VLLM::Worker_TP"
FULL_BYTES = int(TOTAL_BYTES * FULL_SHARE)


class Scene:
    """Processes that were all started at the boot, `age_seconds` ago as the reader believes."""

    def __init__(self, host: FakeProc) -> None:
        self.host = host
        self.age_seconds = 3600.0
        self.monotonic_seconds = 100.0
        self.reader = DemoReader(host.proc, self.now)

    def now(self) -> Instant:
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return Instant(self.monotonic_seconds, boot + self.age_seconds)

    def gpus(self) -> tuple[Gpu, ...]:
        self.reader.open()
        return self.reader.read(self.host.proc.pids(), no_fault)

    def holders(self) -> list[list[int]]:
        """The PIDs on each device."""
        return [[process.pid for process in gpu.processes or ()] for gpu in self.gpus()]


@pytest.fixture
def scene(tmp_path):
    return Scene(FakeProc(tmp_path))


def test_idle(scene):
    gpus = scene.gpus()
    assert [gpu.index for gpu in gpus] == ["0", "1", "2", "3"]
    assert len({gpu.uuid for gpu in gpus}) == DEVICES
    for gpu in gpus:
        assert "synthetic" in gpu.name
        assert (gpu.utilization_ratio, gpu.processes) == (0.0, ())
        assert gpu.memory_total_bytes == gpu.memory_used_bytes + gpu.memory_free_bytes
    assert [gpu.memory_used_bytes for gpu in gpus] == [OTHER_BYTES, 0, 0, 0]


def test_workers_hold_memory_and_their_engine_does_not(scene):
    scene.host.add(700, "vllm", name="vllm")
    scene.host.add(701, "VLLM::EngineCore", name=ENGINE, parent=700)
    scene.host.add(702, "VLLM::Worker_TP0", name=WORKER, parent=701)
    scene.host.add(703, "VLLM::Worker_TP1", name=WORKER, parent=701)
    scene.host.add(801, "VLLM::EngineCore", name=ENGINE, parent=800)
    scene.host.add(900, "VLLM::APIServer_1", name="VLLM::APIServer")
    assert scene.holders() == [[702], [703], [801], []]


def test_processes_that_are_not_watched_hold_nothing(scene):
    scene.host.add(801, "VLLM::EngineCore", name=ENGINE)
    scene.host.add(802, "VLLM::EngineCore", name=ENGINE)
    assert [gpu.processes != () for gpu in scene.reader.read([802], no_fault)].count(True) == 1


def test_a_zombie_holds_nothing(scene):
    scene.host.add(801, "VLLM::EngineCore", name=ENGINE)
    stat = scene.host.root / "801/stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    assert scene.holders() == [[], [], [], []]


def test_a_process_keeps_its_device_while_it_lives(scene):
    for pid in range(11, 16):
        scene.host.add(pid, name=ENGINE)
    scene.age_seconds = 1.0
    assert scene.holders() == [[11, 15], [12], [13], [14]]
    scene.host.end(11)
    scene.host.end(13)
    assert scene.holders() == [[15], [12], [], [14]]
    scene.host.add(13, name=ENGINE, start=2)  # another one with that number
    assert scene.holders() == [[15], [12], [13], [14]]


def test_memory_grows_and_then_jumps(scene):
    for pid in (11, 12):
        scene.host.add(pid, name=ENGINE, start=0)
    used = []
    for age_seconds in (-5, WEIGHTS_SECONDS / 2, WEIGHTS_SECONDS - 0.01, WEIGHTS_SECONDS + 1):
        scene.age_seconds = age_seconds
        used.append(scene.gpus()[1].memory_used_bytes / TOTAL_BYTES)
    expected = [0, WEIGHTS_SHARE / 2, WEIGHTS_SHARE, FULL_SHARE]
    assert used == pytest.approx(expected, abs=0.01)


def test_nobody_gets_more_than_is_free(scene):
    for pid in range(11, 11 + 5 * DEVICES):
        scene.host.add(pid, name=ENGINE)
    gpus = scene.gpus()
    rest = TOTAL_BYTES - OTHER_BYTES - 3 * FULL_BYTES
    held = {11: FULL_BYTES, 15: FULL_BYTES, 19: FULL_BYTES, 23: rest}
    assert gpus[0].processes == tuple(GpuProcess(pid, used) for pid, used in held.items())
    assert {gpu.memory_used_bytes for gpu in gpus} == {TOTAL_BYTES}


def test_what_a_busy_device_tells_depends_on_the_clock_only(scene):
    scene.host.add(11, name=ENGINE)
    seen = set()
    for second in range(100):
        scene.monotonic_seconds = second
        gpu = scene.gpus()[0]
        assert gpu == scene.gpus()[0]
        assert 0.3 <= gpu.utilization_ratio <= 0.9
        assert 40 < gpu.temperature_celsius < 80
        assert 100 < gpu.power_watts < gpu.power_limit_watts
        seen.add(gpu.utilization_ratio)
    assert len(seen) > 10


def test_close(scene):
    scene.reader.close()
    scene.reader.close()
    assert scene.reader.name == "demo"
