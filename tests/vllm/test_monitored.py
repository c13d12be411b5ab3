"""A real vLLM that nobody configured, through what happens to servers in real life."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.e2e.state_watch import StateWatch
from tests.vllm.ended import check_verdict
from tests.vllm.real_vllm import LOAD_SECONDS, RealVllm
from tests.vllm.stranger import Stranger
from tests.vllm.ways import EXPECTED
from vllm_agent.demo.launch import kill_all

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

BOUND = "Resolved architecture"
"""vLLM logs it just after it has bound its port, and long before it listens."""

STRANGER_SECONDS = 3.0
"""An agent connects to a server that loads once a second."""


def test_a_load_that_is_disturbed_and_a_neighbour(tmp_path: Path) -> None:
    """Neither a stranger on its port nor a swallowed SIGTERM ends a load.

    The death of a neighbour touches no other server, and what a killed API server leaves behind
    is counted until it is gone.
    """
    with (
        AgentProcess(tmp_path) as agent,
        StateWatch(agent.port) as watch,
        RealVllm(tmp_path) as first,
    ):
        first.wait_log(BOUND)
        with Stranger(first.port):
            time.sleep(STRANGER_SECONDS)  # that nothing happens has no event
        assert watch.states(first.name) == ["starting"]
        wait_until(lambda: len(first.engine_pids) == 1, "its engine has its title", LOAD_SECONDS)
        os.kill(first.pid, signal.SIGTERM)
        served = first.wait_serving()
        running = watch.wait(first.name, "running")
        assert watch.states(first.name) == ["starting", "running"]
        assert running.at_seconds - served < 1

        with RealVllm(tmp_path) as second:
            second.wait_log(BOUND)
            orphans = [*first.engine_pids, *first.worker_pids]
            assert len(orphans) == 2
            os.kill(first.pid, signal.SIGKILL)
            watch.wait(first.name, "crashed")
            check_verdict(agent, first.name, EXPECTED["kill_api"])
            wait_until(
                lambda: agent.sample("orphan_processes", server=first.name) == 2,
                "its orphans are counted",
            )
            kill_all(orphans)
            wait_until(
                lambda: not agent.sample("orphan_processes", server=first.name),
                "its orphans are no longer counted",
            )
            assert watch.states(second.name) == ["starting"]
            second.wait_serving()
            watch.wait(second.name, "running")
            assert second.terminate() == 0
            watch.wait(second.name, "stopped")
            check_verdict(agent, second.name, EXPECTED["term"])


@pytest.mark.long
def test_a_port_that_is_taken_at_the_end_of_the_load(tmp_path: Path) -> None:
    """VLLM 0.32 says that its startup is complete, does not listen and lives on: it never ran."""
    with (
        AgentProcess(tmp_path) as agent,
        StateWatch(agent.port) as watch,
        RealVllm(tmp_path) as server,
    ):
        server.wait_log(BOUND)
        with Stranger(server.port):
            server.wait_log("Application startup complete.")
            time.sleep(STRANGER_SECONDS)  # that nothing happens has no event
        assert watch.states(server.name) == ["starting"]
        os.kill(server.pid, signal.SIGKILL)
        watch.wait(server.name, "crashed")
        check_verdict(agent, server.name, EXPECTED["kill_api"])


def test_the_agent_comes_and_goes(tmp_path: Path) -> None:
    """A launch is counted once however often the agent starts, and one that it missed too."""
    agent = AgentProcess(tmp_path)
    with RealVllm(tmp_path) as server:
        server.wait_serving()
        for _ in range(2):
            with agent:
                agent.wait_state(server.name, "running")
                assert _tally(agent, server.name) == (1, 0, 0)
        assert server.terminate() == 0
        server.start()
        server.wait_log(BOUND)
        with agent:
            agent.wait_state(server.name, "starting")
            server.wait_serving()
            agent.wait_state(server.name, "running")
            assert _tally(agent, server.name) == (2, 1, 0)


def _tally(agent: AgentProcess, name: str) -> tuple[int, int, int]:
    """Launches, restarts and crashes of a server."""
    view = agent.server(name)
    return view["launches"], sum(view["restarts"].values()), sum(view["crashes"].values())
