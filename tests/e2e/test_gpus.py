"""GPUs as an operator sees them: real processes, the real nvidia-ml-py, a driver of our own."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.fake_nvml import FakeDevice, FakeDriver, FakeMemory, FakeProcess
from vllm_agent.demo.launch import StandIn, kill_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 1 << 30
OTHERS_BYTES = GIB
QUICK = "{interval: 1s, timeout: 300ms}"
SCRAPE_SECONDS = 1.0
"""A scrape answers in milliseconds; a driver that held it up would hold it up for ever."""


class Host:
    """Two servers of two workers each on four GPUs, and an agent that watches them."""

    def __init__(self, agent: AgentProcess, driver: FakeDriver, servers: dict[str, StandIn]):
        self.agent = agent
        self.driver = driver
        self.servers = servers
        self.pids = {name: server.worker_pids for name, server in servers.items()}

    def __getitem__(self, name: str) -> StandIn:
        return self.servers[name]

    def gpu_bytes(self, server: str) -> dict[str, float]:
        """What the server holds, by GPU."""
        return {
            dict(labels)["gpu"]: value
            for (metric, labels), value in self.agent.samples().items()
            if metric == "vllm_agent_server_gpu_memory_used_bytes" and ("server", server) in labels
        }

    def gpu(self, name: str, index: int) -> float | None:
        return self.agent.sample(name, gpu=str(index), uuid=uuid(index))

    def is_any_gpu_shown(self) -> bool:
        return any(metric.startswith("vllm_agent_gpu_") for metric, _ in self.agent.samples())

    def api(self) -> list[dict[str, Any]]:
        status, _, body = self.agent.get("/api/v1/gpus")
        assert status == 200
        gpus: list[dict[str, Any]] = json.loads(body)["gpus"]
        return gpus


def uuid(index: int) -> str:
    return f"GPU-0000000{index}"


def device(index: int, *held: tuple[int, int], **changes: Any) -> FakeDevice:
    """A device on which some processes hold memory, and others 1 GiB."""
    used = OTHERS_BYTES + sum(amount for _, amount in held)
    return FakeDevice(
        uuid=uuid(index),
        bus_id=f"00000000:0{index}:00.0",
        memory=FakeMemory(used_bytes=used),
        processes=tuple(FakeProcess(pid, amount) for pid, amount in held),
        **changes,
    )


def held_bytes(number: int) -> int:
    """How much the worker of that GPU holds."""
    return (10 + number) * GIB


@pytest.fixture
def host(fake_driver: FakeDriver, tmp_path: Path) -> Iterator[Host]:
    names = ("llama", "qwen")
    servers = {name: StandIn.start("--tensor-parallel-size", "2") for name in names}
    try:
        for server in servers.values():
            server.wait_serving()
        workers = [pid for server in servers.values() for pid in server.worker_pids]
        fake_driver.show(*(device(n, (pid, held_bytes(n))) for n, pid in enumerate(workers)))
        listed = "".join(
            f"  - {{name: {name}, match: {{port: {server.port}}}}}\n"
            for name, server in servers.items()
        )
        with AgentProcess(tmp_path, listed, gpu=QUICK, environ=fake_driver.environment()) as agent:
            for name in names:
                agent.wait_state(name, "running")
            host = Host(agent, fake_driver, servers)
            wait_until(lambda: len(host.gpu_bytes("qwen")) == 2, "GPUs are attributed")
            yield host
    finally:
        fake_driver.recover()
        for server in servers.values():
            server.close()


@pytest.mark.needs("promtool")
def test_memory_moves_to_orphans_with_their_api_server_and_a_hung_driver_hides_gpus_only(
    host: Host,
) -> None:
    agent, driver = host.agent, host.driver
    assert host.gpu_bytes("llama") == {"0": held_bytes(0), "1": held_bytes(1)}
    assert host.gpu_bytes("qwen") == {"2": held_bytes(2), "3": held_bytes(3)}
    for index in range(4):
        assert host.gpu("gpu_orphan_memory_bytes", index) == 0
        assert host.gpu("gpu_orphan_processes", index) == 0
        assert host.gpu("gpu_other_memory_bytes", index) == OTHERS_BYTES
        assert host.gpu("gpu_memory_used_bytes", index) == held_bytes(index) + OTHERS_BYTES
    assert agent.sample("collector_up", collector="gpu") == 1

    host["llama"].kill()
    wait_until(
        lambda: host.gpu("gpu_orphan_memory_bytes", 1) == held_bytes(1), "its memory is orphaned"
    )
    assert host.gpu_bytes("llama") == {}
    for index, orphans in ((0, 1), (1, 1), (2, 0), (3, 0)):
        assert host.gpu("gpu_orphan_processes", index) == orphans
        assert host.gpu("gpu_orphan_memory_bytes", index) == orphans * held_bytes(index)
        assert host.gpu("gpu_other_memory_bytes", index) == OTHERS_BYTES
    told = agent.cli("gpus").stdout
    for pid in host.pids["llama"]:
        assert str(pid) in told
    agent.wait_state("llama", "crashed")

    driver.hang()
    wait_until(
        lambda: agent.sample("collector_up", collector="gpu") == 0, "a driver that hangs is told of"
    )
    started = time.monotonic()
    page = agent.get("/metrics")[2]
    assert time.monotonic() - started < SCRAPE_SECONDS
    assert not host.is_any_gpu_shown()
    assert host.gpu_bytes("qwen") == {}
    assert agent.state("qwen") == "running"
    # Nor does it hold up what happens to servers.
    host["qwen"].kill()
    agent.wait_state("qwen", "crashed", timeout_seconds=3.0)
    subprocess.run(["promtool", "check", "metrics"], input=page, check=True)

    driver.recover()
    wait_until(host.is_any_gpu_shown, "GPUs are back with their driver")
    assert agent.sample("collector_up", collector="gpu") == 1
    assert host.gpu("gpu_orphan_memory_bytes", 3) == held_bytes(3)
    assert agent.log().count("no word from a GPU driver") == 1
    assert agent.log().count("the GPU driver answers again") == 1
    page = agent.get("/metrics")[2]
    subprocess.run(["promtool", "check", "metrics"], input=page, check=True)


def test_a_fault_of_a_gpu_is_the_reason_of_the_crash_that_follows(host: Host) -> None:
    agent = host.agent
    host.driver.fault(1, 79)
    host["llama"].kill()
    agent.wait_state("llama", "crashed")
    wait_until(lambda: agent.server("llama")["reason"] == "gpu_fault", "the reason is told")
    assert agent.sample("server_failure_reason", server="llama", reason="gpu_fault") == 1
    labels = {"gpu": "1", "uuid": uuid(1), "xid": "79"}
    assert agent.sample("gpu_xid_errors_total", **labels) == 1
    told = agent.sample("gpu_last_xid_timestamp_seconds", **labels)
    assert told is not None
    assert abs(told - time.time()) < 60
    history = agent.cli("history", "llama").stdout
    assert f"XID 79 on GPU 1 ({uuid(1)})" in history
    # The other server has no share in it.
    host["qwen"].kill()
    agent.wait_state("qwen", "crashed")
    assert agent.server("qwen")["reason"] == "signal"


def test_a_planned_stop_stays_one_whatever_the_gpu_said(host: Host) -> None:
    host.driver.fault(0, 31)
    wait_until(
        lambda: host.agent.sample("gpu_xid_errors_total", gpu="0", uuid=uuid(0), xid="31") == 1,
        "the fault is counted",
    )
    host["llama"].terminate()
    host.agent.wait_state("llama", "stopped")


def test_a_lost_gpu_takes_its_samples_along_and_no_other_s(host: Host) -> None:
    lost = device(1, (host.pids["llama"][1], held_bytes(1)), is_lost=True)
    host.driver.change(1, lost)
    wait_until(lambda: host.gpu("gpu_memory_used_bytes", 1) is None, "its samples are gone")
    assert host.gpu("gpu_memory_used_bytes", 0) is not None
    assert host.gpu_bytes("llama") == {"0": held_bytes(0)}
    assert [gpu["lost"] for gpu in host.api()] == [False, True, False, False]
    assert host.api()[1]["uuid"] == uuid(1)
    host.driver.change(1, device(1, (host.pids["llama"][1], held_bytes(1))))
    wait_until(lambda: host.gpu("gpu_memory_used_bytes", 1) is not None, "it is back")
    assert host.agent.log().count("a GPU is lost") == 1


def test_orphans_of_a_server_that_no_agent_ever_saw(
    fake_driver: FakeDriver, tmp_path: Path
) -> None:
    with StandIn.start() as server:
        server.wait_serving()
        engine, worker = server.engine_pids[0], server.worker_pids[0]
        server.kill()
        server.wait()
        fake_driver.show(device(0, (engine, GIB), (worker, 30 * GIB)))
        # Nor is this agent told to look for it: it knows them by their names alone.
        off, environ = "{enabled: false}", fake_driver.environment()
        with AgentProcess(tmp_path, discovery=off, gpu=QUICK, environ=environ) as agent:
            labels = {"gpu": "0", "uuid": uuid(0)}
            assert agent.sample("gpu_orphan_memory_bytes", **labels) == 31 * GIB
            assert agent.sample("gpu_orphan_processes", **labels) == 2
            told = agent.cli("gpus").stdout
            assert f"{engine}" in told
            assert f"{worker}" in told
            kill_all([engine, worker])
            wait_until(lambda: agent.sample("gpu_orphan_processes", **labels) == 0, "they are gone")


def test_without_a_driver_there_is_nothing_of_gpus_but_one_line(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, discovery="{enabled: false}", gpu=QUICK) as agent:
        assert agent.sample("collector_up", collector="gpu") is None
        assert not any(metric.startswith("vllm_agent_gpu_") for metric, _ in agent.samples())
        assert agent.log().count("no GPU driver was found") == 1
        assert agent.cli("gpus").returncode == 0


def test_a_driver_that_is_required_and_absent_is_a_collector_that_is_down(tmp_path: Path) -> None:
    gpu = "{nvml: required, interval: 1s}"
    with AgentProcess(tmp_path, discovery="{enabled: false}", gpu=gpu) as agent:
        assert agent.sample("collector_up", collector="gpu") == 0
        assert "libnvidia-ml.so.1" in agent.cli("doctor").stdout


def test_an_agent_ends_in_time_though_its_driver_hangs(
    fake_driver: FakeDriver, tmp_path: Path
) -> None:
    fake_driver.show(device(0))
    environ = fake_driver.environment()
    with AgentProcess(tmp_path, discovery="{enabled: false}", gpu=QUICK, environ=environ) as agent:
        fake_driver.hang()
        wait_until(lambda: agent.sample("collector_up", collector="gpu") == 0, "it hangs")
        status, seconds = agent.stop()
        assert status == 0
        assert seconds < 2
    fake_driver.recover()
