"""A runner of a managed server: its effects reach the launcher, and every request is answered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.runner.test_local_runner import FakeProcesses, sighting
from tests.runner.test_server_runner import FakeEyes, FakeRecorder, now
from tests.runner.virtual_time import run_virtually
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import Cleared, EndBegan, EndSettled, EvidenceKept, StartRefused
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Outcome
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import LifecycleMode, Phase, ServerState
from vllm_agent.lifecycle.supervision import QUIET_ENGINE_SECONDS
from vllm_agent.observations import EngineFacts, ProbeCause
from vllm_agent.runner_interfaces import Watched
from vllm_agent.server_runner import DROPPED_DRY_RUN, ServerRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.lifecycle.server_life import Ending
    from vllm_agent.observations import ProcessId, Sighting
    from vllm_agent.snapshot import ServerSnapshot

MANAGED = Policy(is_local=True, is_managed=True, model="tiny")
KILLED = EndingEvidence(main_wait_status=signal.SIGKILL)


@dataclass
class FakeLauncher:
    """What was asked of it, in its order; a start comes to a process a second later."""

    appear: Callable[[Sighting], None] = lambda _: None
    refusal: Reason | None = None
    alive: Sighting | None = None
    asked: list[str] = field(default_factory=list)
    adopted: list[ProcessId | None] = field(default_factory=list)
    launches: int = 0
    is_deaf: bool = False
    tell: Callable[[Event], None] = lambda _: None

    async def adopt(self, remembered: ProcessId | None) -> bool:
        self.adopted.append(remembered)
        if self.alive is not None:
            self.appear(self.alive)
        return self.alive is not None

    def start(self, attempt: int, model: str | None, tell: Callable[[Event], None]) -> None:
        self.asked.append(f"start {model}" if model else "start")
        self.tell = tell
        asyncio.get_running_loop().call_later(1.0, self._started, attempt)

    def _started(self, attempt: int) -> None:
        if self.refusal is not None:
            self.tell(StartRefused(attempt, self.refusal, "why not"))
            return
        self.launches += 1
        self.alive = sighting(self.launches, now().monotonic_seconds)
        self.appear(self.alive)

    def cancel(self) -> None:
        self.asked.append("cancel")

    def terminate(self, process: ProcessId) -> None:
        self.asked.append("terminate")
        if not self.is_deaf:
            self.end(process)

    def kill_all(self, process: ProcessId, tell: Callable[[Event], None]) -> None:
        self.asked.append("kill all")
        if self.alive is not None:
            self.end(process)
        tell(Cleared(process))

    def keep_evidence(
        self, ending: Ending, server: ServerSnapshot, tell: Callable[[Event], None]
    ) -> None:
        self.asked.append(f"keep evidence of {server.name}")
        tell(EvidenceKept(ending.launch_number, "a.json"))

    def close(self) -> None:
        self.asked.append("close")

    def end(self, process: ProcessId) -> None:
        self.alive = None
        self.tell(EndBegan(process))
        self.tell(EndSettled(process, KILLED))


@dataclass
class Scene:
    runner: ServerRunner
    eyes: FakeEyes
    launcher: FakeLauncher
    recorder: FakeRecorder
    dropped: list[str]

    @property
    def state(self) -> ServerState:
        return self.runner.snapshot.life.state

    async def serve(self) -> None:
        await asyncio.sleep(2.0)
        assert self.launcher.alive is not None
        self.eyes.up = self.launcher.alive.start_seconds
        await asyncio.sleep(1.0)
        assert self.state is ServerState.RUNNING


@contextlib.asynccontextmanager
async def managing(
    policy: Policy = MANAGED,
    recorder: FakeRecorder | None = None,
    launcher: FakeLauncher | None = None,
) -> AsyncIterator[Scene]:
    recorder, launcher = recorder or FakeRecorder(), launcher or FakeLauncher()
    serving = None if launcher.alive is None else launcher.alive.start_seconds
    eyes, processes = FakeEyes(up=serving), FakeProcesses(listens=True)
    dropped: list[str] = []
    runner = ServerRunner(
        Watched("a", LifecycleMode.MANAGED, "", policy, 10.0),
        eyes=eyes,
        processes=processes,
        launcher=launcher,
        recorder=recorder,
        publish=lambda _: None,
        clock=now,
        first_looks=asyncio.Semaphore(1),
        count_dropped=dropped.append,
    )
    launcher.appear = lambda seen: runner.appear(seen, policy)
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(0.1)
    try:
        yield Scene(runner, eyes, launcher, recorder, dropped)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_it_is_started_written_down_before_and_watched() -> None:
    async def main() -> None:
        async with managing() as scene:
            assert scene.launcher.adopted == [None]
            assert scene.launcher.asked == ["start"]
            assert scene.recorder.memory is not None
            assert scene.recorder.memory.phase is Phase.PREPARING
            await scene.serve()
        assert scene.launcher.asked == ["start", "close"]

    run_virtually(main())


def test_what_an_agent_before_started_is_adopted_by_its_process() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            recorder, alive = scene.recorder, scene.launcher.alive
        again = FakeLauncher(alive=alive)
        async with managing(recorder=recorder, launcher=again) as scene:
            assert alive is not None
            assert again.adopted == [alive.process]
            await scene.serve()
            await asyncio.sleep(60.0)
            assert again.asked == []
            assert scene.runner.snapshot.life.tally.launches == 1

    run_virtually(main())


def test_a_process_that_was_somebody_elses_is_not_asked_for() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            recorder = scene.recorder
        assert recorder.memory is not None
        recorder.memory = replace(recorder.memory, is_goal_up=None)
        async with managing(recorder=recorder) as scene:
            assert scene.launcher.adopted == [None]

    run_virtually(main())


def test_a_crash_is_kept_cleared_and_restarted() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            scene.launcher.asked.clear()
            assert scene.launcher.alive is not None
            scene.launcher.end(scene.launcher.alive.process)
            await asyncio.sleep(1.0)
            assert scene.state is ServerState.CRASHED
            assert scene.launcher.asked == ["kill all", "keep evidence of a"]
            ending = scene.runner.snapshot.life.last_ending
            assert ending is not None
            assert ending.bundle == "a.json"
            assert [e.bundle for _, _, e, _ in scene.recorder.commits if e] == ["", "a.json"]
            await asyncio.sleep(1.1)
            assert scene.launcher.asked[-1] == "start"

    run_virtually(main())


def test_requests_are_answered_with_what_came_of_them() -> None:
    async def main() -> None:
        async with managing() as scene:
            ask = scene.runner.ask
            assert (await ask(Wish.START)).outcome is Outcome.DONE
            assert (await ask(Wish.STOP)).outcome is Outcome.DONE
            assert scene.state is ServerState.STOPPED
            began = now().monotonic_seconds
            assert (await ask(Wish.RESTART)).outcome is Outcome.DONE
            assert now().monotonic_seconds == began + 1.0
            scene.launcher.refusal = Reason.PORT_IN_USE
            failed = await ask(Wish.RESTART, "org/other")
            assert (failed.outcome, failed.reason) == (Outcome.FAILED, Reason.PORT_IN_USE)
            assert failed.message == "why not"
            assert "start org/other" in scene.launcher.asked

    run_virtually(main())


def test_many_requests_at_once_each_get_an_answer() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            wishes = [Wish.STOP, Wish.START, Wish.RESTART, Wish.STOP, Wish.START, Wish.START] * 3
            answers = await asyncio.gather(*(scene.runner.ask(wish) for wish in wishes))
            told = {answer.outcome for answer in answers}
            assert told == {Outcome.DONE, Outcome.SUPERSEDED}
            assert answers[-1].outcome is Outcome.DONE
            await scene.serve()

    run_virtually(main())


def test_a_request_is_answered_when_its_server_is_watched_no_more() -> None:
    async def main() -> None:
        async with managing() as scene:
            scene.launcher.is_deaf = True
            await scene.serve()
            asked = asyncio.create_task(scene.runner.ask(Wish.STOP))
            await asyncio.sleep(1.0)
        scene.runner.close()
        assert (await asked).outcome is Outcome.SUPERSEDED
        assert (await scene.runner.ensure_healthy(1.0)).outcome is Outcome.SUPERSEDED

    run_virtually(main())


def test_ensure_healthy_answers_at_once_waits_starts_or_gives_up() -> None:
    async def main() -> None:
        async with managing() as scene:
            ensure = scene.runner.ensure_healthy
            assert (await ensure(0.0)).outcome is Outcome.UNDER_WAY
            waiting = asyncio.create_task(ensure(60.0))
            await scene.serve()
            assert (await waiting).outcome is Outcome.DONE
            began = now().monotonic_seconds
            assert (await ensure(0.0)).outcome is Outcome.DONE
            assert now().monotonic_seconds == began
            await scene.runner.ask(Wish.STOP)
            scene.launcher.refusal = Reason.MODEL_NOT_FOUND
            failed = await ensure(60.0)
            assert (failed.outcome, failed.reason) == (Outcome.FAILED, Reason.MODEL_NOT_FOUND)
            assert scene.runner.snapshot.life.phase is Phase.GAVE_UP

    run_virtually(main())


def test_an_engine_that_works_keeps_a_server_that_times_out_alive() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            scene.eyes.cause = ProbeCause.TIMEOUT
            for count in range(60):
                scene.eyes.engine = EngineFacts(iterations=float(count))
                await asyncio.sleep(10.0)
            assert len(scene.eyes.engine_asked) > 30
            assert "terminate" not in scene.launcher.asked
            await asyncio.sleep(QUIET_ENGINE_SECONDS + 20.0)
            assert "terminate" in scene.launcher.asked

    run_virtually(main())


def test_a_dry_run_is_counted() -> None:
    async def main() -> None:
        async with managing(replace(MANAGED, is_dry_run=True)) as scene:
            await scene.serve()
            assert scene.launcher.alive is not None
            scene.launcher.end(scene.launcher.alive.process)
            await asyncio.sleep(60.0)
            assert scene.dropped == [DROPPED_DRY_RUN]
            assert scene.state is ServerState.CRASHED

    run_virtually(main())


def test_leaving_waits_until_nothing_is_left() -> None:
    async def main() -> None:
        async with managing() as scene:
            await scene.serve()
            await scene.runner.leave()
            assert scene.launcher.alive is None
            assert scene.launcher.asked[-2:] == ["terminate", "kill all"]
            assert scene.recorder.memory is not None
            assert scene.recorder.memory.is_goal_up

    run_virtually(main())
