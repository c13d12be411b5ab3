"""Looks and the idle connection of one server, whenever they are begun and ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.runner.virtual_time import run_virtually
from vllm_agent.idle_hold import IdleHold
from vllm_agent.lifecycle.events import EngineSeen, Looked
from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.look_plan import LookPlan
from vllm_agent.looking import Looking
from vllm_agent.observations import EngineFacts, Instant, ProbeRound, ProcessId

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.snapshot import ServerSnapshot

NOW = Instant(10.0, 1_800_000_000.0)
PROCESS = ProcessId("boot", 7, 7)
ENGINE = EngineFacts(generation_tokens=1.0)


class Eyes:
    """Sees once the test lets it."""

    def __init__(self) -> None:
        self.may_see = asyncio.Event()
        self.looks = 0
        self.questions = 0
        self.is_holding = False

    async def look(self, **_: bool) -> ProbeRound:
        self.looks += 1
        await self.may_see.wait()
        return ProbeRound(NOW, NOW, ())

    async def ask_engine(self) -> EngineFacts | None:
        self.questions += 1
        await self.may_see.wait()
        return ENGINE

    async def hold(self, on_close: Callable[[float], None]) -> None:
        del on_close
        self.is_holding = True

    def release(self) -> None:
        self.is_holding = False


class Scene:
    """The looks at an external server, and what they told."""

    def __init__(self) -> None:
        self.eyes = Eyes()
        self.told: list[Event] = []
        self.failed: list[Instant] = []
        policy = Policy()
        server = SimpleNamespace(name="a", policy=policy, life=ServerLife.begun(policy, None, NOW))
        self.looking = Looking(
            self.eyes,
            None,
            LookPlan(10.0, is_local=False),
            lambda: NOW,
            current=lambda: cast("ServerSnapshot", server),
            came=self.told.append,
            failed=self.failed.append,
            tell=self.told.append,
        )


async def settle() -> None:
    await asyncio.sleep(0.001)


def test_one_look_and_one_question_at_a_time() -> None:
    async def main() -> None:
        scene = Scene()
        scene.looking.start()
        scene.looking.now()
        scene.looking.resume()
        for _ in range(2):
            scene.looking.ask_engine(PROCESS)
        await settle()
        assert (scene.eyes.looks, scene.eyes.questions) == (1, 1)
        scene.eyes.may_see.set()
        await settle()
        assert [type(event) for event in scene.told] == [Looked, EngineSeen]
        # The look that was asked for meanwhile, once.
        for _ in range(2):
            scene.looking.resume()
            await settle()
        assert scene.eyes.looks == 2

    run_virtually(main())


def test_what_was_cancelled_before_it_began_can_be_begun_again() -> None:
    """As after a fault of the runner: a server that is never looked at again would seem well."""

    async def main() -> None:
        scene = Scene()
        scene.eyes.may_see.set()
        scene.looking.start()
        scene.looking.ask_engine(PROCESS)
        await asyncio.gather(*scene.looking.cancel(), return_exceptions=True)
        assert scene.eyes.looks == 0
        assert scene.looking.due_seconds == 0.0
        scene.looking.now()
        scene.looking.ask_engine(PROCESS)
        await settle()
        assert [type(event) for event in scene.told] == [Looked, EngineSeen]

    run_virtually(main())


def test_a_fault_of_a_look_is_told_with_its_beginning(caplog: Any) -> None:
    async def main() -> None:
        scene = Scene()

        async def fail(**_: bool) -> ProbeRound:
            raise RuntimeError("a fault of the agent")

        scene.eyes.look = fail  # type: ignore[method-assign]
        scene.looking.start()
        await settle()
        assert (scene.failed, scene.told) == ([NOW], [])
        assert scene.looking.due_seconds == 0.0

    run_virtually(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_idle_connection_that_was_dropped_before_it_was_opened_can_be_kept_again() -> None:
    async def main() -> None:
        eyes = Eyes()
        hold = IdleHold(eyes, lambda: NOW, 10.0, lambda: None)
        hold.keep()
        hold.drop()
        await settle()
        assert not eyes.is_holding
        hold.keep()
        await settle()
        assert eyes.is_holding

    run_virtually(main())
