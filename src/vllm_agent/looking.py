"""Looks at one server: one look at a time, and one question to its engine beside it."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.events import EngineSeen, Knocked, Looked
from vllm_agent.lifecycle.pace import is_knocked_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.look_plan import LookPlan
    from vllm_agent.observations import Instant, ProcessId
    from vllm_agent.runner_interfaces import Eyes, Processes
    from vllm_agent.snapshot import ServerSnapshot

_LOGGER: Final = logging.getLogger(__name__)


class Looking:
    """The looks at one server.

    `came` gets what each told, or `failed` when one began that a fault of ours ended; `tell` gets
    what an engine answered. `current` is the server as it is decided when a look begins.
    """

    def __init__(
        self,
        eyes: Eyes,
        processes: Processes | None,
        plan: LookPlan,
        clock: Callable[[], Instant],
        *,
        current: Callable[[], ServerSnapshot],
        came: Callable[[Looked | Knocked], None],
        failed: Callable[[Instant], None],
        tell: Callable[[Event], None],
    ) -> None:
        self._eyes = eyes
        self._processes = processes
        self._plan = plan
        self._clock = clock
        self._current = current
        self._came = came
        self._failed = failed
        self._tell = tell
        self._look: asyncio.Task[None] | None = None
        self._question: asyncio.Task[None] | None = None
        self._is_asked_again = False

    @property
    def due_seconds(self) -> float:
        """When the next look is to begin, on the monotonic clock; infinite while one goes on."""
        return self._plan.due_seconds if self._look is None else math.inf

    def start(self) -> None:
        """Begins a look; none may be under way."""
        self._is_asked_again = False
        self._look = asyncio.create_task(self._run(), name=f"look {self._current().name}")

    def now(self) -> None:
        """Begins a look, or another one as soon as `resume` is called after this one."""
        if self._look is None:
            self.start()
        else:
            self._is_asked_again = True

    def resume(self) -> None:
        """Begins the look that was asked for during the one before."""
        if self._is_asked_again and self._look is None:
            self.start()

    def ask_engine(self, process: ProcessId) -> None:
        """Asks what the engine of that launch has done, unless that is being asked."""
        if self._question is None:
            self._question = asyncio.create_task(self._ask_engine(process))

    def cancel(self) -> list[asyncio.Task[None]]:
        """Ends all of it; the tasks are what is still on its way out."""
        tasks = [task for task in (self._look, self._question) if task is not None]
        for task in tasks:
            task.cancel()
        # One that has not begun never comes to its end.
        self._look = self._question = None
        return tasks

    async def _run(self) -> None:
        began = self._clock()
        try:
            event = await self._knock_or_look(began)
        except Exception:
            # A fault of ours, not of the server: say so, and keep looking.
            _LOGGER.exception("could not look", extra={"server": self._current().name})
            self._failed(began)
        else:
            self._came(event)
        finally:
            self._look = None

    async def _ask_engine(self, process: ProcessId) -> None:
        try:
            engine = await self._eyes.ask_engine()
            if engine is not None:
                self._tell(EngineSeen(process, engine))
        finally:
            self._question = None

    async def _knock_or_look(self, now: Instant) -> Looked | Knocked:
        server = self._current()
        life = server.life
        launch = life.launch
        if (
            is_knocked_at(life, server.policy)
            and self._processes is not None
            and launch is not None
            and launch.process is not None
        ):
            knock = await self._processes.knock()
            if not knock.is_accepted:
                return Knocked(launch.process, knock)
        look = await self._eyes.look(
            ask_models=self._plan.asks_models(life, now), ask_version=self._plan.asks_version
        )
        return Looked(look)
