"""Stand-in servers that nobody configured: found, followed, and judged when they end."""

from __future__ import annotations

import shlex
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from tests.e2e.state_watch import StateWatch
from tests.standin.conftest import wait_log
from tests.vllm.ended import Ended, check_verdict, end
from tests.vllm.stranger import Stranger
from tests.vllm.streaming_clients import SERVED_NAME
from tests.vllm.ways import EXPECTED, WAYS, Way
from vllm_agent.demo.launch import StandIn, command_line, free_port, kill_all, session_pids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEED = 4.0
"""Endings are this much faster than those of a real vLLM."""

AT_ONCE = 8
"""Servers that an agent watches at once here; they sleep nearly all of the time."""

LOAD_SECONDS = 0.5
PATIENCE_SECONDS = 1.0
BOUND = "Resolved architecture"
"""Logged just after the port is bound, and before it listens."""

STRANGER_SECONDS = 1.5
"""An agent connects to a server that loads once a second."""

DISCOVERY = "{max_servers: 200}"
"""Whatever else runs on this machine displaces none of these."""

NAMED = ("--served-model-name", SERVED_NAME)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that was told nothing: it finds every server by itself."""
    with AgentProcess(tmp_path_factory.mktemp("agent"), discovery=DISCOVERY) as agent:
        yield agent


@pytest.fixture(scope="module")
def watch(agent: AgentProcess) -> Iterator[StateWatch]:
    with StateWatch(agent.port) as watch:
        yield watch


@pytest.fixture(scope="module")
def endings(
    watch: StateWatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Way, Future[Ended]]]:
    """What comes of each way to end a server."""
    logs = tmp_path_factory.mktemp("logs")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {way: pool.submit(_end, way, watch, logs / way.id) for way in WAYS}
        pool.shutdown(cancel_futures=True)


def _end(way: Way, watch: StateWatch, log: Path) -> Ended:
    arguments = list(way.arguments)
    if "--shutdown-timeout" in arguments:
        arguments[1] = str(float(arguments[1]) / SPEED)
    load = ("--load-seconds", str(LOAD_SECONDS), "--speed", str(SPEED))
    started = time.monotonic()
    with StandIn.start(*NAMED, *load, *arguments, log=log) as server:
        server.wait_serving()
        return end(
            server,
            way,
            watch,
            started_seconds=started,
            served_seconds=time.monotonic(),
            patience_seconds=PATIENCE_SECONDS,
        )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
def test_each_way_to_end_is_judged(
    way: Way, endings: dict[Way, Future[Ended]], agent: AgentProcess
) -> None:
    ended = endings[way].result()
    assert "running" in ended.states
    check_verdict(agent, ended.name, way.expected)
    assert ended.exec_to_seen_seconds < 2
    assert ended.settled_seconds - ended.gone_seconds < 2.5


def test_a_stranger_on_the_port_of_a_load(agent: AgentProcess, watch: StateWatch) -> None:
    """Found while it loads; another program's answers do not make it run, its own do."""
    with StandIn.start(*NAMED, "--load-seconds", "3") as server:
        name = f"{SERVED_NAME}@{server.port}"
        wait_log(server, BOUND)
        with Stranger(server.port):
            time.sleep(STRANGER_SECONDS)  # that nothing happens has no event
        assert watch.states(name) == ["starting"]
        server.wait_serving()
        served = time.monotonic()
        assert watch.wait(name, "running").at_seconds - served < 1
        view = agent.server(name)
        assert (view["mode"], view["discovered"]) == ("monitored", True)
        assert (view["model_name"], view["version"]) == (SERVED_NAME, "0.32.0")
        components = {("engine_core", ""), ("worker", "")}
        assert all(
            agent.sample("server_component_up", server=name, component=component, rank=rank) == 1
            for component, rank in components
        )


def test_orphans_are_counted_until_they_are_gone(agent: AgentProcess, watch: StateWatch) -> None:
    with StandIn.start(*NAMED) as server:
        name = f"{SERVED_NAME}@{server.port}"
        watch.wait(name, "running")
        orphans = [*server.engine_pids, *server.worker_pids]
        server.kill()
        server.wait()
        watch.wait(name, "crashed")
        check_verdict(agent, name, EXPECTED["kill_api"])
        wait_until(
            lambda: agent.sample("orphan_processes", server=name) == len(orphans) == 2,
            "its orphans are counted",
        )
        kill_all(orphans)
        wait_until(
            lambda: not agent.sample("orphan_processes", server=name),
            "its orphans are no longer counted",
        )


def test_a_crash_loop_reaches_the_restart_limit(agent: AgentProcess) -> None:
    """A shell starts it again and again: nobody told the agent, and it counts all the same."""
    port = free_port()
    name = f"demo@{port}"
    # A process that lives shorter than a look at the host may be missed; no vLLM does.
    crash = ("--load-seconds", "0.8", "--exit-code", "1", "--ending-after", "0.1")
    serve = shlex.join(command_line(*crash, model="/models/demo", port=port))
    loop = f"for launch in 1 2 3 4 5 6 7 8; do {serve}; sleep 0.1; done"
    shell = subprocess.Popen(["sh", "-c", loop], start_new_session=True)
    try:
        wait_until(
            lambda: agent.sample("server_restart_limit_reached", server=name) == 1,
            "the restart limit is reached",
        )
        view = agent.server(name)
        assert sum(view["crashes"].values()) >= 3
        assert view["restarts"]["outside"] >= 3
        assert view["restart_budget"]["remaining"] == 0
    finally:
        kill_all(session_pids(shell.pid))
        shell.wait()


def test_the_agent_comes_and_goes(tmp_path) -> None:
    """A launch is counted once however often the agent starts, and one that it missed too."""
    agent = AgentProcess(tmp_path, discovery=DISCOVERY)
    port = free_port()
    name = f"{SERVED_NAME}@{port}"
    with StandIn.start(*NAMED, "--speed", "10", port=port) as server:
        server.wait_serving()
        for _ in range(2):
            with agent:
                agent.wait_state(name, "running")
                assert _tally(agent, name) == (1, 0, 0)
        server.terminate()
        server.wait()
    with StandIn.start(*NAMED, port=port), agent:
        agent.wait_state(name, "running")
        assert _tally(agent, name) == (2, 1, 0)


def _tally(agent: AgentProcess, name: str) -> tuple[int, int, int]:
    """Launches, restarts and crashes of a server."""
    view = agent.server(name)
    return view["launches"], sum(view["restarts"].values()), sum(view["crashes"].values())
