"""Who holds the GPUs, told of the processes of a real vLLM by a driver told what to say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.fake_nvml import FakeDevice, FakeDriver, FakeMemory, FakeProcess
from tests.vllm.prepare import default_cache
from tests.vllm.real_vllm import LOAD_SECONDS, RealVllm
from vllm_agent.demo.launch import kill_all, session_pids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

GIB = 1 << 30
GPU = "{interval: 1s}"
SCRIPT = """
import sys, time
from vllm import LLM
if __name__ == "__main__":
    llm = LLM(sys.argv[1], max_model_len=2048, enforce_eager=True)
    print("loaded", flush=True)
    time.sleep(3600)
"""
COMPONENTS = 2
"""An EngineCore and a worker: one process more than on a GPU, where the engine is the worker."""


@contextlib.contextmanager
def _llm_script(folder: Path) -> Iterator[int]:
    """A program that uses vLLM without a server; gives its PID once the model is loaded."""
    program, log = folder / "offline.py", folder / "offline.log"
    program.write_text(SCRIPT)
    cache = default_cache()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [cache / "venv/bin/python", program, cache / "model"],
            stdout=output,
            stderr=output,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    # Reaped at once, as a shell does.
    threading.Thread(target=process.wait, daemon=True).start()
    try:
        wait_until(lambda: b"loaded" in log.read_bytes(), "the script has loaded", LOAD_SECONDS)
        yield process.pid
    finally:
        kill_all(session_pids(process.pid))
        process.wait()


def _device(index: int, pids: list[int]) -> FakeDevice:
    return FakeDevice(
        uuid=f"GPU-{index}",
        memory=FakeMemory(used_bytes=len(pids) * GIB),
        processes=tuple(FakeProcess(pid, GIB) for pid in pids),
    )


def test_servers_their_orphans_and_a_script_without_a_server(
    fake_driver: FakeDriver, tmp_path: Path
) -> None:
    """What a real vLLM calls its processes tells orphans, and those below a script are none."""
    environ = fake_driver.environment()
    blind = tmp_path / "blind"
    blind.mkdir()
    with (
        AgentProcess(tmp_path, gpu=GPU, environ=environ) as agent,
        # One that looks for no server knows orphans by their names alone.
        AgentProcess(blind, discovery="{enabled: false}", gpu=GPU, environ=environ) as stranger,
        RealVllm(tmp_path) as server,
        _llm_script(tmp_path) as script,
    ):
        server.wait_serving()
        agent.wait_state(server.name, "running")
        parts = [*server.engine_pids, *server.worker_pids]
        others = session_pids(script, "VLLM::")
        assert len(parts) == len(others) == COMPONENTS
        fake_driver.show(_device(0, parts), _device(1, others))

        def held(agent: AgentProcess, name: str, gpu: int, **labels: str) -> float | None:
            return agent.sample(name, gpu=str(gpu), uuid=f"GPU-{gpu}", **labels)

        def orphans() -> set[float | None]:
            agents = (agent, stranger)
            return {held(each, "gpu_orphan_processes", gpu) for each in agents for gpu in (0, 1)}

        holding = {"server": server.name}
        wait_until(
            lambda: held(agent, "server_gpu_memory_used_bytes", 0, **holding) == COMPONENTS * GIB,
            "its memory is the server's",
        )
        wait_until(lambda: orphans() == {0}, "nobody is an orphan")
        assert held(agent, "gpu_other_memory_bytes", 1) == COMPONENTS * GIB

        os.kill(server.pid, signal.SIGKILL)
        os.kill(script, signal.SIGKILL)
        wait_until(lambda: orphans() == {COMPONENTS}, agent.cli("gpus").stdout)
        assert held(agent, "gpu_orphan_memory_bytes", 0) == COMPONENTS * GIB
        assert held(agent, "server_gpu_memory_used_bytes", 0, **holding) is None
