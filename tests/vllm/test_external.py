"""A real vLLM watched by its URL, through two lives and a death."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.vllm.real_vllm import RealVllm, reserve_port

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(900)
def test_two_lives_and_a_death(tmp_path: Path, record_property) -> None:
    """Stopped → running → failed at once → crashed after 10 s → running, with one restart."""
    port = reserve_port()
    servers = (
        f"  - {{name: real, mode: external, url: 'http://127.0.0.1:{port}', model: tiny,\n"
        "     probe: {interval: 2s, timeout: 2s}}\n"
    )
    delays: dict[str, float] = {}
    with AgentProcess(tmp_path, servers) as agent:
        assert agent.state("real") == "stopped"
        with RealVllm(tmp_path, port) as vllm:
            served = vllm.wait_serving()
            agent.wait_state("real", "running")
            delays["serving to running"] = time.monotonic() - served
            answer = agent.server("real")
            assert answer["model_name"] == "tiny"
            assert answer["version"] == "0.32.0"
            assert agent.sample("server_launches_total", server="real") == 1

            os.kill(vllm.pid, signal.SIGKILL)
            killed = time.monotonic()
            wait_until(lambda: agent.state("real") == "failed", "failed at once")
            delays["SIGKILL to failed"] = time.monotonic() - killed
            agent.wait_state("real", "crashed")
            delays["SIGKILL to crashed"] = time.monotonic() - killed
            assert 10 <= delays["SIGKILL to crashed"] < 12
            assert agent.server("real")["reason"] == "unreachable"
            assert agent.sample("server_crashes_total", server="real", reason="unreachable") == 1
            vllm.kill()

            vllm.start()
            served = vllm.wait_serving()
            agent.wait_state("real", "running")
            delays["second serving to running"] = time.monotonic() - served
            assert agent.sample("server_restarts_total", server="real", initiator="outside") == 1
            assert agent.sample("server_launches_total", server="real") == 2

            assert agent.cli("maintenance", "real", "on").returncode == 0
            assert vllm.terminate() == 0
            agent.wait_state("real", "stopped")
            assert agent.sample("server_crashes_total", server="real", reason="unreachable") == 1
    for what, seconds in delays.items():
        print(f"{what}: {seconds:.3f} s")
        record_property(what, f"{seconds:.3f}")
