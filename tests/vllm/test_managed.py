"""A real vLLM that the agent starts, restarts, stops, switches and hands over."""

from __future__ import annotations

import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_process import wait_until
from tests.e2e.managed_scene import Managed, ManagedAgent, Requests, complete
from tests.vllm.prepare import default_cache
from tests.vllm.real_vllm import LOAD_SECONDS, reserve_port
from tests.vllm.streaming_clients import SERVED_NAME, StreamingClients
from vllm_agent.demo.launch import title

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)

STOP_TIMEOUT_SECONDS = 30.0
GRACE_SECONDS = 5.0
"""What may go by between the stop's own limit and the moment when nothing is left."""


def managed(name: str, **more: Any) -> Managed:
    cache = default_cache()
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Managed(
        name=name,
        model=cache / "model",
        port=reserve_port(),
        command=(str(cache / "venv/bin/vllm"), "serve"),
        arguments=("--max-model-len", "2048", "--enforce-eager"),
        environ=settings,
        is_stand_in=False,
        served_name=SERVED_NAME,
        stop_timeout=f"{STOP_TIMEOUT_SECONDS:g}s",
        **more,
    )


def crashes(view: dict[str, Any]) -> dict[str, int]:
    return {reason: count for reason, count in view["crashes"].items() if count}


def restarts(view: dict[str, Any]) -> dict[str, int]:
    return {initiator: count for initiator, count in view["restarts"].items() if count}


def test_it_is_started_restarted_and_handed_over(tmp_path: Path) -> None:
    """Its engine dies, then its agent, while clients ask: no request of the second time fails."""
    server = managed("real")
    with ManagedAgent(tmp_path, server) as agent:
        view = agent.wait_running("real", launches=1, timeout_seconds=LOAD_SECONDS)
        assert (view["mode"], restarts(view), crashes(view)) == ("managed", {}, {})
        assert complete(server.port, SERVED_NAME)
        before = agent.pids("real")
        titles = {title(pid) for pid in before}
        assert {"VLLM::EngineCore", "VLLM::Worker"} <= titles
        print(f"processes of a launch: {sorted(titles)}")

        agent.kill_part("real", "VLLM::EngineCore")
        killed = time.monotonic()
        wait_until(lambda: agent.state("real") != "running", "its end is seen", LOAD_SECONDS)
        view = agent.wait_running("real", launches=2, timeout_seconds=LOAD_SECONDS)
        print(f"serving again {time.monotonic() - killed:.1f} s after the kill of its engine")
        assert (crashes(view), restarts(view)) == ({"engine_died": 1}, {"agent": 1})
        assert not {*before} & {*agent.pids("real")}
        assert complete(server.port, SERVED_NAME)

        main = agent.main_pid("real")
        with Requests(server.port, SERVED_NAME) as requests, StreamingClients(server.port):
            requests.wait_more()
            agent.kill()
            requests.wait_more()
            agent.start()
            view = agent.wait_running("real")
            requests.wait_more()
        assert requests.failures == []
        print(f"{requests.answers} requests answered, none failed")
        assert agent.main_pid("real") == main
        assert (view["launches"], crashes(view)) == (2, {"engine_died": 1})

        stopped = agent.done("real", "stop")
        assert agent.pids("real") == []
        print(f"stopped: {stopped['managed']['last_stop']}")
        assert (stopped["state"], crashes(stopped)) == ("stopped", {"engine_died": 1})


def test_it_is_stopped_while_it_loads_and_serves_another_model(tmp_path: Path) -> None:
    server = managed("loads")
    other = shutil.copytree(server.model, tmp_path / "other-model")
    missing = tmp_path / "missing-model"
    with ManagedAgent(tmp_path, server) as agent:
        wait_until(lambda: bool(agent.pids("loads")), "it is started")
        wait_until(
            lambda: any("Resolved architecture" in line for line in agent.told("loads")),
            "it loads",
            LOAD_SECONDS,
        )
        asked = time.monotonic()
        view = agent.done("loads", "stop")
        took = time.monotonic() - asked
        print(f"stopped while it loaded within {took:.1f} s: {view['managed']['last_stop']}")
        assert agent.pids("loads") == []
        assert took < STOP_TIMEOUT_SECONDS + GRACE_SECONDS
        assert (view["state"], crashes(view)) == ("stopped", {})

        done = agent.cli("set-model", "loads", str(other), timeout_seconds=LOAD_SECONDS)
        assert done.returncode == 0, done
        view = agent.wait_running("loads", launches=2)
        assert view["managed"]["model"] == str(other)
        assert complete(server.port, SERVED_NAME)
        (line,) = {title(agent.main_pid("loads"))}
        assert str(other) in line

        failed = agent.cli("set-model", "loads", str(missing), timeout_seconds=LOAD_SECONDS)
        told = failed.stdout + failed.stderr
        print(told)
        assert failed.returncode == 1, told
        assert "model_not_found" in told
        assert "was left as it is" in told
        assert agent.server("loads")["state"] == "running"
        assert complete(server.port, SERVED_NAME)


def test_it_is_killed_with_its_main_process(tmp_path: Path) -> None:
    """A killed API server leaves its engine behind, whose environment its title has taken."""
    server = managed("orphans")
    with ManagedAgent(tmp_path, server) as agent:
        agent.wait_running("orphans", launches=1, timeout_seconds=LOAD_SECONDS)
        before = agent.pids("orphans")
        agent.kill()
        os.kill(agent.main_pid("orphans"), signal.SIGKILL)
        agent.start()
        wait_until(lambda: not {*before} & {*agent.pids("orphans")}, "its orphans are cleared")
        view = agent.wait_running("orphans", launches=2, timeout_seconds=LOAD_SECONDS)
        assert len(agent.launches_alive("orphans")) == 1
        assert restarts(view) == {"agent": 1}
