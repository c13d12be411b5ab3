"""One server's owner: what it asks, keeps, publishes and executes, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from tests.runner.virtual_time import UNIX_START, VirtualLoop, run_virtually
from vllm_agent.idle_hold import CONNECTION_PAUSE_SECONDS
from vllm_agent.lifecycle.launches import CONFIRMING_LOOKS
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Memory, Policy
from vllm_agent.lifecycle.states import LifecycleMode, Phase, ServerState
from vllm_agent.look_plan import SLOTS_PER_INTERVAL
from vllm_agent.observations import (
    EngineFacts,
    Listener,
    MetricsFacts,
    Probe,
    ProbeCause,
    ProbeResult,
    ProbeRound,
)
from vllm_agent.runner_interfaces import Watched
from vllm_agent.server_runner import ServerRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vllm_agent.lifecycle.server_life import Ending, Launch, Transition
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

INTERVAL = 10.0


def now() -> Instant:
    return cast("VirtualLoop", asyncio.get_running_loop()).instant()


@dataclass
class FakeEyes:
    """A server as the runner sees it; `up` says which launch serves, None that nobody listens."""

    up: float | None = UNIX_START - 100
    cause: ProbeCause | None = None
    look_seconds: float = 0.0
    models: tuple[str, ...] = ("tiny",)
    asked: list[tuple[float, bool, bool]] = field(default_factory=list)
    on_close: Callable[[float], None] | None = None
    holds: list[float] = field(default_factory=list)
    broken: bool = False
    listener: Listener | None = None
    second_look: asyncio.Event = field(default_factory=asyncio.Event)
    engine: EngineFacts | None = None
    engine_asked: list[float] = field(default_factory=list)

    async def look(
        self, *, ask_models: bool, ask_metrics: bool = True, ask_version: bool = False
    ) -> ProbeRound:
        started = now()
        self.asked.append((started.monotonic_seconds, ask_models, ask_version))
        if len(self.asked) == 2:
            self.second_look.set()
        if self.broken:
            raise RuntimeError("a fault of the agent")
        up, cause = self.up, self.cause
        if self.look_seconds:
            await asyncio.sleep(self.look_seconds)
        cause = ProbeCause.REFUSED if up is None else cause
        health = ProbeResult(Probe.HEALTH, cause, 0.003, None if cause else 200, cause or "")
        if cause is not None:
            return ProbeRound(started, now(), (health,))
        results = [health, ProbeResult(Probe.METRICS, None, 0.003, 200)]
        if ask_models:
            results.append(ProbeResult(Probe.MODELS, None, 0.003, 200))
        return ProbeRound(
            started,
            now(),
            tuple(results),
            model_names=self.models if ask_models else None,
            metrics=MetricsFacts(up, None, self.models[:1]),
            version="0.32.0" if ask_version else None,
            listener=self.listener,
        )

    async def ask_engine(self) -> EngineFacts | None:
        self.engine_asked.append(now().monotonic_seconds)
        return self.engine

    @property
    def is_holding(self) -> bool:
        return self.on_close is not None

    async def hold(self, on_close: Callable[[float], None]) -> None:
        if self.on_close is None:
            self.holds.append(now().monotonic_seconds)
            self.on_close = on_close

    def release(self) -> None:
        self.on_close = None

    def close(self) -> None:
        """The peer closes the idle connection."""
        closed, self.on_close = self.on_close, None
        assert closed is not None
        closed(now().monotonic_seconds - self.holds[-1])


@dataclass
class FakeRecorder:
    memory: Memory | None = None
    commits: list[tuple[Memory, Transition | None, Ending | None, Launch | None]] = field(
        default_factory=list
    )

    async def recall(self, server: str) -> Memory | None:
        return self.memory

    async def commit(
        self,
        server: str,
        memory: Memory,
        transition: Transition | None = None,
        ending: Ending | None = None,
        launch: Launch | None = None,
    ) -> None:
        self.memory = memory
        self.commits.append((memory, transition, ending, launch))


@dataclass
class Scene:
    """A runner at work, with everything around it."""

    runner: ServerRunner
    eyes: FakeEyes
    recorder: FakeRecorder
    published: list[ServerSnapshot]

    @property
    def states(self) -> list[ServerState]:
        """The states as readers saw them, one entry a change."""
        seen = [s.life.state for s in self.published]
        return [s for i, s in enumerate(seen) if i == 0 or seen[i - 1] is not s]


@contextlib.asynccontextmanager
async def watching(
    eyes: FakeEyes | None = None, recorder: FakeRecorder | None = None
) -> AsyncIterator[Scene]:
    eyes, recorder = eyes or FakeEyes(), recorder or FakeRecorder()
    published: list[ServerSnapshot] = []
    policy = Policy(expected_model="tiny")
    watched = Watched("a", LifecycleMode.EXTERNAL, "http://a:8000", policy, INTERVAL)
    runner = ServerRunner(
        watched,
        eyes=eyes,
        recorder=recorder,
        publish=published.append,
        clock=now,
        first_looks=asyncio.Semaphore(1),
    )
    task = asyncio.create_task(runner.run())
    await runner.first_look_done.wait()
    try:
        yield Scene(runner, eyes, recorder, published)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_server_that_serves_is_running_after_the_first_look() -> None:
    async def main() -> None:
        async with watching() as scene:
            assert scene.states == [ServerState.UNKNOWN, ServerState.RUNNING]
            assert scene.runner.snapshot.model_name == "tiny"
            assert scene.runner.snapshot.version == "0.32.0"

    run_virtually(main())


def test_first_looks_take_turns() -> None:
    """Those of a thousand servers at once would time out by their own weight."""

    async def main() -> None:
        turns = asyncio.Semaphore(1)
        eyes = [FakeEyes(look_seconds=2.0), FakeEyes(look_seconds=2.0)]
        watched = Watched("a", LifecycleMode.EXTERNAL, "http://a:8000", Policy(), INTERVAL)
        runners = [
            ServerRunner(
                watched,
                eyes=one,
                recorder=FakeRecorder(),
                publish=lambda _: None,
                clock=now,
                first_looks=turns,
            )
            for one in eyes
        ]
        tasks = [asyncio.create_task(runner.run()) for runner in runners]
        for runner in runners:
            await runner.first_look_done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [one.asked[0][0] for one in eyes] == [0.0, 2.0]

    run_virtually(main())


def test_looks_keep_the_interval_however_long_an_answer_takes() -> None:
    async def main() -> None:
        async with watching(FakeEyes(look_seconds=2.0)) as scene:
            await asyncio.sleep(100)
            times = [t for t, _, _ in scene.eyes.asked][1:]
            assert len(times) >= 8
            gaps = {round(b - a, 6) for a, b in itertools.pairwise(times)}
            assert gaps == {INTERVAL}

    run_virtually(main())


def test_steady_looks_share_their_beginnings_with_those_of_other_servers() -> None:
    """A triggered look begins when it must; the rhythm after it is the common one again."""

    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(25.0371)
            scene.eyes.close()
            await asyncio.sleep(0.001)
            triggered = len(scene.eyes.asked)
            await asyncio.sleep(50)
            slot = INTERVAL / SLOTS_PER_INTERVAL
            places = [t / slot for t, _, _ in scene.eyes.asked[triggered:]]
            assert len(places) >= 4
            assert places == pytest.approx([round(place) for place in places])

    run_virtually(main())


def test_models_are_asked_once_a_minute_and_the_version_once_a_launch() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(145)
            assert sum(models for _, models, _ in scene.eyes.asked) == 3
            assert sum(version for _, _, version in scene.eyes.asked) == 1

    run_virtually(main())


def test_a_model_that_goes_missing_is_asked_for_until_the_verdict() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.eyes.models = ("another",)
            await asyncio.sleep(70 + 3 * INTERVAL)
            life = scene.runner.snapshot.life
            assert (life.state, life.reason) == (ServerState.FAILED, Reason.MODEL_MISSING)

    run_virtually(main())


def test_a_new_launch_is_asked_for_models_and_version_again() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(15)
            scene.eyes.up = UNIX_START + 15
            scene.eyes.asked.clear()
            await asyncio.sleep((CONFIRMING_LOOKS + 1) * INTERVAL)
            assert any(version for _, _, version in scene.eyes.asked)
            assert sum(models for _, models, _ in scene.eyes.asked) == 1

    run_virtually(main())


def test_a_closed_connection_is_looked_into_at_once() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(15)
            scene.eyes.up = None
            closed_at = now().monotonic_seconds
            scene.eyes.close()
            await asyncio.sleep(0.001)
            assert scene.runner.snapshot.life.state is ServerState.FAILED
            assert scene.eyes.asked[-1][0] == pytest.approx(closed_at)

    run_virtually(main())


def test_a_close_during_a_look_leads_to_a_second_look() -> None:
    """The look under way may have been answered before the server went."""

    async def main() -> None:
        async with watching(FakeEyes(look_seconds=0.5)) as scene:
            await scene.eyes.second_look.wait()
            scene.eyes.close()
            scene.eyes.up = None
            await asyncio.sleep(1.1)
            assert scene.runner.snapshot.life.state is ServerState.FAILED

    run_virtually(main())


def test_a_refusal_becomes_a_crash_after_ten_seconds_and_is_dated_back() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(15)
            scene.eyes.up = None
            scene.eyes.close()
            gone_at = now().unix_seconds
            await asyncio.sleep(9.9)
            assert scene.runner.snapshot.life.state is ServerState.FAILED
            await asyncio.sleep(0.2)
            life = scene.runner.snapshot.life
            assert life.state is ServerState.CRASHED
            assert list(life.tally.last_crash_unix_seconds.values()) == [pytest.approx(gone_at)]

    run_virtually(main())


def test_an_idle_connection_that_keeps_closing_is_no_loop() -> None:
    async def main() -> None:
        async with watching() as scene:
            for _ in range(50):
                await asyncio.sleep(1)
                if scene.eyes.on_close is not None:
                    scene.eyes.close()
            assert len(scene.eyes.asked) <= 2 * 50 / INTERVAL + 2
            assert scene.states == [ServerState.UNKNOWN, ServerState.RUNNING]

    run_virtually(main())


def test_a_long_lived_connection_is_opened_again_at_once() -> None:
    async def main() -> None:
        async with watching() as scene:
            await asyncio.sleep(CONNECTION_PAUSE_SECONDS + 5)
            scene.eyes.close()
            await asyncio.sleep(0.001)
            assert scene.eyes.on_close is not None
            assert scene.states == [ServerState.UNKNOWN, ServerState.RUNNING]

    run_virtually(main())


def test_what_is_shown_was_committed_before() -> None:
    async def main() -> None:
        recorder, order = FakeRecorder(), []
        commit = recorder.commit

        async def slow_commit(server: str, memory: Memory, *rest: object) -> None:
            await asyncio.sleep(1)
            await commit(server, memory, *rest)  # type: ignore[arg-type] # passed through
            order.append(memory.tally.launches)

        recorder.commit = slow_commit  # type: ignore[method-assign,assignment] # a slower one
        async with watching(recorder=recorder) as scene:
            shown = [s.life.tally.launches for s in scene.published]
            assert order == [1]
            assert shown == [0, 1]

    run_virtually(main())


def test_an_unchanged_server_is_not_written_again() -> None:
    async def main() -> None:
        async with watching() as scene:
            before = len(scene.recorder.commits)
            await asyncio.sleep(100)
            assert len(scene.eyes.asked) > 5
            assert len(scene.recorder.commits) == before

    run_virtually(main())


def test_maintenance_is_committed_when_the_call_returns_and_ends_by_itself() -> None:
    async def main() -> None:
        async with watching() as scene:
            await scene.runner.set_maintenance(now().unix_seconds + 30)
            assert scene.runner.snapshot.life.is_desired is False
            assert scene.recorder.commits[-1][0].maintenance_until_unix_seconds is not None
            await asyncio.sleep(30.01)
            assert scene.runner.snapshot.life.is_desired is True

    run_virtually(main())


def test_maintenance_is_heard_while_a_look_is_under_way() -> None:
    async def main() -> None:
        async with watching(FakeEyes(look_seconds=4.0)) as scene:
            await scene.eyes.second_look.wait()
            before = now().monotonic_seconds
            await scene.runner.set_maintenance(float("inf"))
            assert now().monotonic_seconds == before

    run_virtually(main())


def test_an_end_in_maintenance_is_stopped() -> None:
    async def main() -> None:
        async with watching() as scene:
            await scene.runner.set_maintenance(float("inf"))
            scene.eyes.up = None
            scene.eyes.close()
            await asyncio.sleep(60)
            assert scene.states[-1] is ServerState.STOPPED
            assert not scene.runner.snapshot.life.tally.crashes

    run_virtually(main())


def test_a_fault_of_the_agent_is_logged_and_looking_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with watching(FakeEyes(broken=True)) as scene:
            assert scene.runner.is_faulty
            scene.eyes.broken = False
            await asyncio.sleep(INTERVAL + 0.1)
            assert not scene.runner.is_faulty
            assert scene.runner.snapshot.life.state is ServerState.RUNNING

    run_virtually(main())
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == ["could not look"]


def test_each_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with watching() as scene:
            scene.eyes.up = None
            scene.eyes.close()
            await asyncio.sleep(60)

    run_virtually(main())
    lines = [(r.levelname, getattr(r, "to", None)) for r in caplog.records]
    assert lines == [("INFO", "running"), ("WARNING", "failed"), ("ERROR", "crashed")]


def test_counters_go_on_after_a_restart_of_the_agent() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder=recorder) as scene:
            scene.eyes.up = None
            scene.eyes.close()
            await asyncio.sleep(15)
        async with watching(FakeEyes(up=UNIX_START + 14), recorder) as scene:
            tally = scene.runner.snapshot.life.tally
            assert tally.launches == 2
            assert sum(tally.crashes.values()) == 1

    run_virtually(main())


def test_a_crashed_server_stays_crashed_over_a_restart_of_the_agent() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder=recorder) as scene:
            scene.eyes.up = None
            scene.eyes.close()
            await asyncio.sleep(15)
        async with watching(FakeEyes(up=None), recorder) as scene:
            life = scene.runner.snapshot.life
            assert life.phase is Phase.CRASHED
            assert sum(life.tally.crashes.values()) == 1

    run_virtually(main())


def test_a_crash_looks_the_same_after_a_restart_of_the_agent() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder=recorder) as scene:
            scene.eyes.up = None
            scene.eyes.close()
            await asyncio.sleep(15)
            before = scene.runner.snapshot
        await asyncio.sleep(300)
        async with watching(FakeEyes(up=None), recorder) as scene:
            after = scene.runner.snapshot
            assert after.life.entered.unix_seconds == before.life.entered.unix_seconds
            assert after.life.last_ending == before.life.last_ending is not None
            for snapshot in scene.published:
                assert (snapshot.model_name, snapshot.version) == ("tiny", "0.32.0")

    run_virtually(main())


def test_running_goes_on_over_a_restart_of_the_agent() -> None:
    async def main() -> None:
        recorder = FakeRecorder()
        async with watching(recorder=recorder) as scene:
            before = scene.runner.snapshot
        await asyncio.sleep(300)
        async with watching(recorder=recorder) as scene:
            after = scene.runner.snapshot
            assert after.life.entered.unix_seconds == before.life.entered.unix_seconds

    run_virtually(main())


def test_a_new_name_of_the_model_is_committed_once() -> None:
    async def main() -> None:
        async with watching() as scene:
            scene.eyes.models = ("tiny-2", "tiny")
            scene.recorder.commits.clear()
            await asyncio.sleep(145)
            assert [c[0].model_name for c in scene.recorder.commits] == ["tiny-2"]

    run_virtually(main())


def test_cancelling_in_the_middle_of_a_look_leaves_no_task_behind() -> None:
    async def main() -> None:
        async with watching(FakeEyes(look_seconds=4.0)) as scene:
            await scene.eyes.second_look.wait()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        assert rest == set()

    run_virtually(main())
