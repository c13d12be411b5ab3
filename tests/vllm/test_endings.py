"""Every way to end a real vLLM, idle and with clients that stream, judged by an agent."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.state_watch import StateWatch
from tests.vllm.ended import Ended, check_verdict, end
from tests.vllm.real_vllm import RealVllm
from tests.vllm.streaming_clients import PATIENCE_SECONDS
from tests.vllm.ways import WAYS, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

AT_ONCE = 2
"""A load keeps one core busy, and two are what a small machine has."""

SEEN_SECONDS = 2.0
RUNNING_SECONDS = 1.0
SETTLED_SECONDS = 2.0
SLACK_SECONDS = 0.5
"""Two vLLMs that load keep the agent and this process waiting for a core."""

SHORT_RUN = {
    "term-streams",
    "kill_engine-streams",
    "kill_worker-idle",
    "api2_term-idle",
    "api2_kill_child-idle",
}
"""A stop and deaths that look alike from outside, with one API server and with two."""

PARAMETERS = [
    pytest.param(way, id=way.id, marks=() if way.id in SHORT_RUN else pytest.mark.long)
    for way in WAYS
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that was told nothing: it finds every server by itself."""
    with AgentProcess(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture(scope="module")
def endings(
    request: pytest.FixtureRequest, agent: AgentProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Way, Future[Ended]]]:
    """What comes of each way that was selected, `AT_ONCE` of them at a time."""
    ways: list[Way] = [
        cast("Way", item.callspec.params["way"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test_ending.__name__
        and item.path == request.path
    ]
    folder = tmp_path_factory.mktemp("vllm")
    with StateWatch(agent.port) as watch, ThreadPoolExecutor(AT_ONCE) as pool:
        yield {way: pool.submit(_end, way, watch, folder) for way in ways}
        pool.shutdown(cancel_futures=True)


def _end(way: Way, watch: StateWatch, folder: Path) -> Ended:
    with RealVllm(folder, arguments=way.arguments) as server:
        served = server.wait_serving()
        return end(
            server,
            way,
            watch,
            started_seconds=server.started_seconds,
            served_seconds=served,
            patience_seconds=PATIENCE_SECONDS,
        )


@pytest.mark.parametrize("way", PARAMETERS)
def test_ending(
    way: Way,
    endings: dict[Way, Future[Ended]],
    agent: AgentProcess,
    write_row: Callable[[dict[str, Any]], None],
) -> None:
    ended = endings[way].result()
    write_row(_row(ended, agent.server(ended.name)))
    assert ended.states[:2] == ("starting", "running")
    check_verdict(agent, ended.name, way.expected)
    assert ended.exec_to_seen_seconds < SEEN_SECONDS
    assert ended.serving_to_running_seconds < RUNNING_SECONDS
    assert ended.settled_seconds - ended.gone_seconds < SETTLED_SECONDS + SLACK_SECONDS


def _row(ended: Ended, view: dict[str, Any]) -> dict[str, Any]:
    ending = view["last_ending"] or {}
    seen = "/".join(word for word in (view["state"], ending.get("reason")) if word)
    return {
        "way": ended.way.name,
        "clients": "streams" if ended.way.has_streams else "idle",
        "expected": str(ended.way.expected),
        "seen": seen,
        "rule": ending.get("rule"),
        "evidence": "; ".join(ending.get("evidence", ())),
        "exec to seen": round(ended.exec_to_seen_seconds, 2),
        "exec to serving": round(ended.exec_to_serving_seconds, 1),
        "serving to running": round(ended.serving_to_running_seconds, 2),
        "noticed": round(ended.noticed_seconds, 2),
        "main gone": round(ended.gone_seconds, 2),
        "settled": round(ended.settled_seconds, 2),
    }
