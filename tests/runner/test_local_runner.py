"""The owner of a local server: what it follows, knocks at, keeps and publishes, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.runner.test_server_runner import FakeEyes, FakeRecorder, now
from tests.runner.virtual_time import UNIX_START, run_virtually
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import (
    EndBegan,
    EndSettled,
    LoadLooked,
    ProcessMissing,
    TreeSeen,
)
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import LifecycleMode, Phase, ServerState
from vllm_agent.observations import (
    Knock,
    Listener,
    LoadLook,
    Probe,
    ProcessId,
    ProcessTree,
    Sight,
    Sighting,
    SightKind,
    VllmCommand,
)
from vllm_agent.runner_interfaces import Watched
from vllm_agent.server_runner import ServerRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.snapshot import ServerSnapshot

INTERVAL = 10.0
LOCAL = Policy(is_local=True)
KILLED = EndingEvidence(main_wait_status=signal.SIGKILL)
TERMINATED = EndingEvidence(main_wait_status=signal.SIGTERM)


def sighting(pid: int, started_at: float = 0.0) -> Sighting:
    return Sighting(
        process=ProcessId("boot", pid, pid),
        start_seconds=UNIX_START + started_at,
        command=VllmCommand(model="org/tiny", port=8000),
        uid=0,
        session=pid,
        url="http://127.0.0.1:8000",
    )


@dataclass
class FakeProcesses:
    listens: bool = False
    followed: list[Sighting] = field(default_factory=list)
    knocks: list[float] = field(default_factory=list)
    tell: Callable[[Event], None] | None = None
    is_closed: bool = False
    is_load_watched: bool = False

    def watch_load(self) -> None:
        self.is_load_watched = True

    def leave_load(self) -> None:
        self.is_load_watched = False

    def follow(self, sighting: Sighting, tell: Callable[[Event], None]) -> None:
        self.followed.append(sighting)
        self.tell = tell

    async def knock(self) -> Knock:
        self.knocks.append(now().monotonic_seconds)
        return Knock(is_accepted=self.listens)

    def sights(self) -> tuple[Sight, ...]:
        return (Sight(SightKind.FDS, is_visible=True),)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Scene:
    runner: ServerRunner
    eyes: FakeEyes
    processes: FakeProcesses
    recorder: FakeRecorder
    published: list[ServerSnapshot]

    @property
    def phase(self) -> Phase:
        return self.runner.snapshot.life.phase

    @property
    def states(self) -> list[ServerState]:
        seen = [s.life.state for s in self.published]
        return [s for i, s in enumerate(seen) if i == 0 or seen[i - 1] is not s]

    def appear(self, process: Sighting) -> None:
        self.runner.appear(process, LOCAL)

    async def serve(self) -> None:
        self.eyes.up, self.processes.listens = UNIX_START, True
        await asyncio.sleep(1.0)
        assert self.runner.snapshot.life.state is ServerState.RUNNING


@contextlib.asynccontextmanager
async def watching(recorder: FakeRecorder | None = None) -> AsyncIterator[Scene]:
    eyes, processes = FakeEyes(up=None), FakeProcesses()
    recorder = recorder or FakeRecorder()
    published: list[ServerSnapshot] = []
    watched = Watched("a", LifecycleMode.MONITORED, "", LOCAL, INTERVAL, is_discovered=True)
    runner = ServerRunner(
        watched,
        eyes=eyes,
        processes=processes,
        recorder=recorder,
        publish=published.append,
        clock=now,
        first_looks=asyncio.Semaphore(1),
    )
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    try:
        yield Scene(runner, eyes, processes, recorder, published)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert processes.is_closed


def test_nothing_is_looked_at_before_there_is_a_process() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(100.0)
            assert scene.states == [ServerState.UNKNOWN]
            assert not scene.runner.first_look_done.is_set()
            scene.runner.tell(ProcessMissing())
            await asyncio.sleep(100.0)
            assert scene.phase is Phase.ABSENT
            assert scene.runner.first_look_done.is_set()
            assert scene.eyes.asked == []
            assert scene.processes.knocks == []

    run_virtually(main())


def test_a_loading_server_is_knocked_at_each_second_and_asked_nothing() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await asyncio.sleep(30.0)
            assert scene.states == [ServerState.UNKNOWN, ServerState.STARTING]
            pauses = {
                round(later - earlier, 3)
                for earlier, later in itertools.pairwise(scene.processes.knocks)
            }
            assert pauses == {0.9}
            assert scene.eyes.asked == []
            assert scene.runner.snapshot.life.consecutive_failures == 0
            assert scene.runner.snapshot.model_name == "org/tiny"
            assert scene.runner.snapshot.url == "http://127.0.0.1:8000"

    run_virtually(main())


def test_it_runs_within_a_second_of_serving_and_is_then_looked_at_by_the_interval() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await asyncio.sleep(30.3)
            await scene.serve()
            knocks = len(scene.processes.knocks)
            await asyncio.sleep(100.0)
            assert len(scene.processes.knocks) == knocks
            times = [at for at, _, _ in scene.eyes.asked[2:]]
            assert {round(b - a, 6) for a, b in itertools.pairwise(times)} == {INTERVAL}
            assert scene.eyes.is_holding

    run_virtually(main())


def test_the_end_of_the_main_process_is_told_at_once_and_looks_stop() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await scene.serve()
            scene.runner.tell(EndBegan(sighting(1).process))
            await asyncio.sleep(0.001)
            assert scene.states[-1] is ServerState.STOPPING
            assert not scene.eyes.is_holding
            scene.runner.tell(EndSettled(sighting(1).process, KILLED))
            await asyncio.sleep(0.001)
            assert scene.runner.snapshot.life.state is ServerState.CRASHED
            asked = len(scene.eyes.asked)
            await asyncio.sleep(1000.0)
            assert len(scene.eyes.asked) == asked

    run_virtually(main())


def test_the_next_launch_is_followed_and_starting() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await scene.serve()
            scene.runner.tell(EndSettled(sighting(1).process, TERMINATED))
            scene.processes.listens = False
            await asyncio.sleep(5.0)
            scene.appear(sighting(2, 6.0))
            await asyncio.sleep(5.0)
            assert scene.runner.snapshot.life.state is ServerState.STARTING
            assert [s.process.pid for s in scene.processes.followed] == [1, 2]
            assert scene.runner.snapshot.life.tally.launches == 2

    run_virtually(main())


def test_what_runs_is_published() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            tree = ProcessTree(process=sighting(1).process, is_main_alive=True, processes=3)
            scene.runner.tell(TreeSeen(tree))
            await asyncio.sleep(0.001)
            assert scene.published[-1].tree == tree
            assert scene.runner.snapshot.sights == (Sight(SightKind.FDS, is_visible=True),)

    run_virtually(main())


def test_a_launch_is_kept_again_once_it_served() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await asyncio.sleep(5.0)
            await scene.serve()
            kept = [launch for _, _, _, launch in scene.recorder.commits if launch is not None]
            assert [(launch.number, launch.has_served) for launch in kept] == [
                (1, False),
                (1, True),
            ]
            memory = scene.recorder.memory
            assert memory is not None
            assert (memory.process, memory.launch_has_served) == (sighting(1).process, True)
            assert (memory.is_discovered, memory.url) == (True, "http://127.0.0.1:8000")

    run_virtually(main())


def test_an_agent_that_comes_back_finds_the_same_launch_running() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder) as scene:
            scene.appear(sighting(1))
            await scene.serve()
        async with watching(recorder) as scene:
            scene.processes.listens, scene.eyes.up = True, UNIX_START
            scene.appear(sighting(1))
            await asyncio.sleep(1.0)
            assert scene.states == [ServerState.UNKNOWN, ServerState.RUNNING]
            assert scene.runner.snapshot.life.tally.launches == 1
            assert scene.processes.followed == [sighting(1)]

    run_virtually(main())


def test_a_server_that_was_forgotten_is_remembered_as_such() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            scene.runner.tell(EndSettled(sighting(1).process, KILLED))
            await asyncio.sleep(1.0)
            await scene.runner.forget()
            assert scene.recorder.memory is not None
            assert scene.recorder.memory.is_forgotten

    run_virtually(main())


def test_a_runner_that_is_begun_again_follows_its_process_again() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await scene.serve()
            runner, processes = scene.runner, scene.processes
        again = asyncio.create_task(runner.run())
        await asyncio.sleep(1.0)
        assert processes.followed == [sighting(1), sighting(1)]
        assert runner.snapshot.life.state is ServerState.RUNNING
        assert runner.snapshot.life.tally.launches == 1
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run_virtually(main())


def test_a_policy_comes_with_each_launch() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.runner.appear(sighting(1), replace(LOCAL, is_wanted=False))
            await asyncio.sleep(1.0)
            assert scene.runner.snapshot.desired_up is None
            scene.runner.appear(sighting(2), LOCAL)
            await asyncio.sleep(1.0)
            assert scene.runner.snapshot.desired_up is True

    run_virtually(main())


def test_what_a_stranger_serves_is_not_shown_as_this_server() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.appear(sighting(1))
            await scene.serve()
            shown = scene.runner.snapshot
            scene.eyes.listener, scene.eyes.models = Listener.STRANGER, ("evil",)
            await asyncio.sleep(2 * INTERVAL)
            assert scene.runner.snapshot.life.state is ServerState.STOPPING
            assert scene.runner.snapshot.model_names == shown.model_names
            health = scene.runner.snapshot.probes[Probe.HEALTH]
            assert health.requests > shown.probes[Probe.HEALTH].requests

    run_virtually(main())


# Its load.


def load_look(process: Sighting, **seen: object) -> LoadLooked:
    return LoadLooked(LoadLook(**{"process": process.process, "at": now(), "io_bytes": 0} | seen))  # type: ignore[arg-type]


def test_a_load_is_watched_from_its_first_sight_until_it_serves() -> None:
    async def main() -> None:
        async with watching() as scene:
            assert not scene.processes.is_load_watched
            scene.appear(sighting(7))
            await asyncio.sleep(0.5)
            assert scene.processes.is_load_watched
            await scene.serve()
            assert not scene.processes.is_load_watched

    run_virtually(main())


def test_a_load_that_stalls_is_watched_on_and_one_that_ends_is_not() -> None:
    async def main() -> None:
        async with watching() as scene:
            process = sighting(7)
            scene.appear(process)
            await asyncio.sleep(0.5)
            scene.runner.tell(load_look(process, has_engine=True))
            await asyncio.sleep(LOCAL.load_timeout_seconds)
            phases = [scene.phase]
            scene.runner.tell(load_look(process, has_engine=True))
            await asyncio.sleep(0.1)
            assert [*phases, scene.phase] == [Phase.LOADING, Phase.STALLED]
            assert scene.processes.is_load_watched
            scene.runner.tell(EndBegan(process.process))
            await asyncio.sleep(0.1)
            assert not scene.processes.is_load_watched

    run_virtually(main())


def test_a_load_that_goes_on_is_logged_every_15_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        async with watching() as scene:
            process = sighting(7)
            scene.appear(process)
            await asyncio.sleep(0.5)
            for _ in range(40):
                scene.runner.tell(load_look(process))
                await asyncio.sleep(1.0)

    run_virtually(main())
    told = [record for record in caplog.records if record.message == "loading"]
    assert [record.__dict__["seconds"] for record in told] == [16, 31]
    assert {record.__dict__["stage"] for record in told} == {"init"}
    assert {record.__dict__["server"] for record in told} == {"a"}


def test_how_long_a_load_took_is_remembered_when_it_serves() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder) as scene:
            process = sighting(7)
            scene.appear(process)
            await asyncio.sleep(0.5)
            scene.runner.tell(load_look(process))
            await asyncio.sleep(20.0)
            scene.runner.tell(load_look(process, shards=()))
            await scene.serve()
            history = scene.runner.snapshot.life.load_history
            assert history.count == 1
            assert history.last_seconds is not None
            assert 20.0 <= history.last_seconds <= 23.0
            assert recorder.memory is not None
            assert recorder.memory.load_history == history

    run_virtually(main())
