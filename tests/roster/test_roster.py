"""Which server a process belongs to, which servers there are, and when they leave."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.runner.virtual_time import UNIX_START, VirtualLoop, run_virtually
from vllm_agent import roster as roster_module
from vllm_agent.config.choices import DiscoveryPage
from vllm_agent.config.discovery import DiscoveryConfig
from vllm_agent.config.model import Config, MatchConfig, ServerConfig
from vllm_agent.discovered_stay import KEEP_FAILED_SECONDS, MAX_KEPT_PER_LIVING
from vllm_agent.expose.api_writes import CannotForgetError
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.proc import CommandLine
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import EndBegan, EndSettled, Looked
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import (
    Instant,
    Knock,
    Probe,
    ProbeResult,
    ProbeRound,
    ProcessId,
    Sighting,
    VllmCommand,
)
from vllm_agent.publication import Publication
from vllm_agent.roster import LEAVE_CHECK_SECONDS, Roster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.store import Store

KILLED = EndingEvidence(main_wait_status=signal.SIGKILL)
TERMINATED = EndingEvidence(main_wait_status=signal.SIGTERM)


def now() -> Instant:
    return cast("VirtualLoop", asyncio.get_running_loop()).instant()


def sighting(pid: int, port: int = 8000, **changes: Any) -> Sighting:
    found = Sighting(
        process=ProcessId("boot", pid, pid),
        start_seconds=UNIX_START,
        command=VllmCommand(model="org/tiny", port=port),
        uid=0,
        session=pid,
        url=f"http://127.0.0.1:{port}",
    )
    return replace(found, **changes)


class FakeLocalServer:
    """Follows nothing: the test says what happens."""

    def __init__(self, *_: object) -> None:
        self.followed: list[Sighting] = []
        self.arrivals: list[object] = []
        self.is_holding = False

    def follow(self, sighting: Sighting, tell: Callable[[Event], None]) -> None:
        self.followed.append(sighting)

    def arrived(self, stats: object) -> None:
        self.arrivals.append(stats)

    async def knock(self) -> Knock:
        return Knock(is_accepted=False)

    def watch_load(self) -> None:
        """There is nothing to see of it."""

    def leave_load(self) -> None:
        """Nor now."""

    def sights(self) -> tuple[()]:
        return ()

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FakeStore:
    memories: dict[str, Memory] = field(default_factory=dict)

    async def recall(self, server: str) -> Memory | None:
        return self.memories.get(server)

    async def recall_discovered(self) -> Mapping[str, Memory]:
        return {
            name: memory
            for name, memory in self.memories.items()
            if memory.is_discovered and not memory.is_forgotten
        }

    async def commit(self, server: str, memory: Memory, *_: object) -> None:
        self.memories[server] = memory


@dataclass
class FakeProc:
    arguments: dict[int, tuple[str, ...]] = field(default_factory=dict)
    alive: set[ProcessId] = field(default_factory=set)

    def command_line(self, pid: int) -> CommandLine:
        return CommandLine(self.arguments.get(pid, ()))

    def is_alive(self, process: ProcessId) -> bool:
        return process in self.alive


@dataclass
class Scene:
    roster: Roster
    publication: Publication
    store: FakeStore
    proc: FakeProc
    dropped: list[str]

    async def find(self, *sightings: Sighting) -> None:
        for one in sightings:
            self.roster.found(one)
        await asyncio.sleep(0.01)

    async def end(self, process: Sighting, evidence: EndingEvidence = KILLED) -> None:
        for runner in self.roster.runners:
            runner.tell(EndBegan(process.process))
            runner.tell(EndSettled(process.process, evidence))
        await asyncio.sleep(0.01)

    @property
    def names(self) -> list[str]:
        return [server.name for server in self.publication.current().servers]

    def state(self, name: str) -> ServerState:
        server = self.publication.current().server(name)
        assert server is not None
        return server.life.state

    def launches(self, name: str) -> int:
        server = self.publication.current().server(name)
        assert server is not None
        return server.life.tally.launches

    def desired(self, name: str) -> bool | None:
        server = self.publication.current().server(name)
        assert server is not None
        return server.desired_up


@contextlib.asynccontextmanager
async def watching(
    *servers: ServerConfig,
    store: FakeStore | None = None,
    proc: FakeProc | None = None,
    **discovery: Any,
) -> AsyncIterator[Scene]:
    config = Config(servers=servers, discovery=DiscoveryConfig(**discovery))
    dropped: list[str] = []
    store, proc = store or FakeStore(), proc or FakeProc()
    publication = Publication(now(), tuple, dict)
    roster = Roster(
        config,
        store=cast("Store", store),
        publication=publication,
        host=LocalHost(cast("Any", proc), list, now, dropped.append),
        clock=now,
        state_dir=Path("/nonexistent"),
        environ={},
        count_dropped=dropped.append,
    )
    await roster.begin()
    leaving = asyncio.create_task(roster.leave_when_due())
    await asyncio.sleep(0)
    try:
        yield Scene(roster, publication, store, proc, dropped)
    finally:
        leaving.cancel()
        await roster.end()


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "LocalServer", FakeLocalServer)


def serving_look() -> ProbeRound:
    results = (ProbeResult(Probe.HEALTH, None, 0.01, 200), ProbeResult(Probe.MODELS, None, 0.01))
    return ProbeRound(now(), now(), results, model_names=("tiny",))


def monitored(name: str = "llama", **match: Any) -> ServerConfig:
    return ServerConfig(name=name, match=MatchConfig(**match))


def test_a_process_that_nobody_configured_becomes_a_server() -> None:
    async def main() -> None:
        async with watching() as scene:
            await scene.find(sighting(1), sighting(2, port=8001))
            assert scene.names == ["tiny@8000", "tiny@8001"]
            assert scene.state("tiny@8000") is ServerState.STARTING
            assert all(s.is_discovered for s in scene.publication.current().servers)

    run_virtually(main())


def test_the_next_process_of_a_name_is_a_launch_of_the_same_server() -> None:
    async def main() -> None:
        async with watching() as scene:
            await scene.find(sighting(1))
            await scene.end(sighting(1))
            await scene.find(sighting(2))
            assert scene.names == ["tiny@8000"]
            assert scene.launches("tiny@8000") == 2

    run_virtually(main())


def test_a_second_live_process_of_a_name_is_another_server() -> None:
    async def main() -> None:
        async with watching() as scene:
            await scene.find(sighting(1), sighting(2))
            first, second = scene.names
            assert first == "tiny@8000"
            assert second.startswith("tiny@8000~")

    run_virtually(main())


def test_a_process_that_follows_one_whose_end_has_begun_takes_its_place() -> None:
    """A stop may hang for its clients while the next launch loads already."""

    async def main() -> None:
        async with watching() as scene:
            await scene.find(sighting(1))
            for runner in scene.roster.runners:
                runner.tell(EndBegan(sighting(1).process))
            await asyncio.sleep(0.01)
            await scene.find(sighting(2))
            assert scene.names == ["tiny@8000"]
            assert scene.launches("tiny@8000") == 2

    run_virtually(main())


def test_a_configured_server_gets_the_process_that_matches() -> None:
    async def main() -> None:
        async with watching(monitored(port=8001)) as scene:
            await scene.find(sighting(1, port=8000), sighting(2, port=8001))
            assert scene.names == ["llama", "tiny@8000"]
            assert scene.launches("llama") == 1
            assert scene.roster.is_configured(sighting(2, port=8001))
            assert not scene.roster.is_configured(sighting(3, port=8002))

    run_virtually(main())


def test_a_configured_server_is_matched_by_its_arguments() -> None:
    async def main() -> None:
        proc = FakeProc(arguments={1: ("vllm", "serve", "org/other"), 2: ("vllm", "serve", "x/y")})
        async with watching(monitored(command="serve x/y"), proc=proc) as scene:
            await scene.find(sighting(1), sighting(2, port=8001))
            assert scene.launches("llama") == 1
            assert "tiny@8000" in scene.names

    run_virtually(main())


def test_a_second_process_that_matches_is_discovered_while_the_first_lives() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            await scene.find(sighting(1), sighting(2))
            assert scene.names == ["llama", "tiny@8000"]
            await scene.end(sighting(1))
            await scene.find(sighting(3))
            assert scene.launches("llama") == 2

    run_virtually(main())


def test_without_discovery_only_configured_servers_are_watched() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000), enabled=False) as scene:
            await scene.find(sighting(1), sighting(2, port=9000))
            assert scene.names == ["llama"]

    run_virtually(main())


def test_an_external_server_on_this_host_is_not_discovered_as_another() -> None:
    async def main() -> None:
        external = ServerConfig.model_validate(
            {"name": "llama", "mode": "external", "url": "http://localhost:8000"}
        )
        async with watching(external) as scene:
            await scene.find(sighting(1), sighting(2, port=8001))
            assert scene.names == ["llama", "tiny@8001"]

    run_virtually(main())


def test_a_configured_server_without_a_process_is_stopped_after_the_first_look() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            assert scene.state("llama") is ServerState.UNKNOWN
            scene.roster.first_look_over()
            await scene.roster.wait_first_looks()
            assert scene.state("llama") is ServerState.STOPPED
            assert scene.desired("llama") is True

    run_virtually(main())


def test_a_configured_server_is_unknown_where_no_process_can_be_seen() -> None:
    """It may well serve: an agent in a container with PIDs of its own cannot tell."""

    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            scene.roster.first_look_over(is_blind=True)
            await scene.roster.wait_first_looks()
            assert scene.state("llama") is ServerState.UNKNOWN

    run_virtually(main())


def test_one_whose_process_was_found_first_is_not_missing() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            old = sighting(1, start_seconds=UNIX_START - 5000.0)
            scene.roster.found(old)
            scene.roster.first_look_over()
            await scene.roster.wait_first_looks()
            assert scene.state("llama") is ServerState.STARTING

    run_virtually(main())


@pytest.mark.parametrize(
    ("page", "changes", "expected"),
    [
        (DiscoveryPage.SUPERVISED, {}, None),
        (DiscoveryPage.SUPERVISED, {"unit": "vllm.service"}, True),
        (DiscoveryPage.SUPERVISED, {"container_id": "ab" * 32}, True),
        (DiscoveryPage.ALL, {}, True),
    ],
)
def test_who_is_wanted_up(
    page: DiscoveryPage,
    changes: dict[str, Any],
    expected: bool | None,  # noqa: FBT001 - no switch, a value
) -> None:
    async def main() -> None:
        async with watching(page=page) as scene:
            await scene.find(sighting(1, **changes))
            [name] = scene.names
            assert scene.desired(name) is expected
            await scene.roster.runner(name).set_maintenance(math.inf)
            assert scene.desired(name) is False

    run_virtually(main())


def test_a_discovered_server_that_stopped_leaves_after_its_time() -> None:
    async def main() -> None:
        async with watching(forget_after_seconds=600.0) as scene:
            await scene.find(sighting(1))
            await scene.end(sighting(1), TERMINATED)
            await asyncio.sleep(600.0 - LEAVE_CHECK_SECONDS)
            assert scene.names == ["tiny@8000"]
            await asyncio.sleep(2 * LEAVE_CHECK_SECONDS)
            assert scene.names == []
            assert scene.store.memories["tiny@8000"].is_forgotten
            await scene.find(sighting(2))
            assert scene.launches("tiny@8000") == 2
            assert not scene.store.memories["tiny@8000"].is_forgotten

    run_virtually(main())


def test_a_discovered_server_that_crashed_stays_a_day() -> None:
    async def main() -> None:
        async with watching(forget_after_seconds=600.0) as scene:
            await scene.find(sighting(1))
            await scene.end(sighting(1))
            await asyncio.sleep(KEEP_FAILED_SECONDS - LEAVE_CHECK_SECONDS)
            assert scene.state("tiny@8000") is ServerState.CRASHED
            await asyncio.sleep(2 * LEAVE_CHECK_SECONDS)
            assert scene.names == []

    run_virtually(main())


def test_a_configured_server_never_leaves() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            scene.roster.first_look_over()
            await asyncio.sleep(KEEP_FAILED_SECONDS * 2)
            assert scene.names == ["llama"]

    run_virtually(main())


def test_forgetting_on_request() -> None:
    async def main() -> None:
        async with watching(monitored(port=9000)) as scene:
            await scene.find(sighting(1))
            with pytest.raises(CannotForgetError, match="it is there"):
                await scene.roster.forget("tiny@8000")
            with pytest.raises(CannotForgetError, match="configured"):
                await scene.roster.forget("llama")
            with pytest.raises(KeyError):
                await scene.roster.forget("nobody")
            await scene.end(sighting(1))
            await scene.roster.forget("tiny@8000")
            assert scene.names == ["llama"]

    run_virtually(main())


def test_discovered_servers_that_ended_are_bounded() -> None:
    async def main() -> None:
        async with watching(max_servers=1) as scene:
            for number in range(MAX_KEPT_PER_LIVING + 2):
                process = sighting(number + 1, port=8000 + number)
                await scene.find(process)
                await scene.end(process)
                await asyncio.sleep(1.0)
            await scene.find(sighting(100, port=9000))
            await asyncio.sleep(1.0)
            assert len(scene.names) == MAX_KEPT_PER_LIVING + 1
            assert "tiny@8000" not in scene.names
            assert scene.dropped == ["servers", "servers"]

    run_virtually(main())


def test_a_crash_that_pages_somebody_is_not_displaced_by_what_never_served() -> None:
    """Anybody can start processes that look like a vLLM."""

    async def main() -> None:
        async with watching(max_servers=2) as scene:
            mine = sighting(1, unit="vllm.service")
            await scene.find(mine)
            for runner in scene.roster.runners:
                runner.tell(Looked(serving_look()))
            await asyncio.sleep(0.01)
            await scene.end(mine)
            assert scene.state("vllm") is ServerState.CRASHED
            for number in range(5):
                fake = sighting(number + 10, port=9000 + number)
                await scene.find(fake)
                await scene.end(fake)
            await scene.find(sighting(100, port=9100))
            await asyncio.sleep(1.0)
            assert scene.state("vllm") is ServerState.CRASHED
            assert len(scene.names) == 3

    run_virtually(main())


def test_an_agent_that_comes_back_knows_what_was_discovered() -> None:
    async def main() -> None:
        store = FakeStore()
        async with watching(store=store) as scene:
            await scene.find(sighting(1), sighting(2, port=8001), sighting(3, port=8002))
            await scene.end(sighting(1))
        proc = FakeProc(alive={sighting(2).process})
        async with watching(store=store, proc=proc) as scene:
            # Found under its old name, whatever the name would be now.
            await scene.find(sighting(2, port=8001, unit="renamed.service"))
            scene.roster.first_look_over()
            await scene.roster.wait_first_looks()
            assert scene.names == ["tiny@8000", "tiny@8001", "tiny@8002"]
            assert scene.state("tiny@8000") is ServerState.CRASHED
            assert scene.launches("tiny@8001") == 1
            assert scene.state("tiny@8002") is ServerState.STOPPED

    run_virtually(main())


def test_a_new_process_takes_the_name_of_one_that_ended_while_no_agent_watched() -> None:
    async def main() -> None:
        store = FakeStore()
        async with watching(store=store) as scene:
            await scene.find(sighting(1))
        async with watching(store=store) as scene:
            await scene.find(sighting(2))
            assert scene.names == ["tiny@8000"]
            assert scene.launches("tiny@8000") == 2
            ending = scene.publication.current().servers[0].life.last_ending
            assert ending is not None
            assert (ending.state, ending.rule) == (ServerState.STOPPED, 0)

    run_virtually(main())


def test_what_ended_too_long_ago_is_not_shown_again() -> None:
    async def main() -> None:
        store = FakeStore()
        async with watching(store=store) as scene:
            await scene.find(sighting(1))
            await scene.end(sighting(1))
        await asyncio.sleep(KEEP_FAILED_SECONDS)
        async with watching(store=store) as scene:
            assert scene.names == []

    run_virtually(main())


def test_new_processes_are_told_to_every_local_server() -> None:
    async def main() -> None:
        async with watching(monitored(port=8000)) as scene:
            await scene.find(sighting(1), sighting(2))
            scene.roster.arrived([])
            entries = scene.roster._entries.values()
            locals_ = [cast("FakeLocalServer", entry.local) for entry in entries]
            assert [local.arrivals for local in locals_] == [[[]], [[]]]
            assert [entry.phase for entry in entries] == [Phase.LOADING, Phase.LOADING]

    run_virtually(main())
