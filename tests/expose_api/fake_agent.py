"""What the web applications read and ask for, in the hands of a test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.expose.snapshots import agent, crashed_server, server
from vllm_agent.expose.api_writes import CannotForgetError
from vllm_agent.lifecycle.operations import Answer, Outcome
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import History

if TYPE_CHECKING:
    from vllm_agent.lifecycle.management import Wish
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot


DONE = Answer(Outcome.DONE, "it is there")
WORKING = (CollectorSnapshot("probes", is_up=True), CollectorSnapshot("store", is_up=True))


@dataclass
class FakeAgent:
    """A snapshot that can be swapped, a history, and a note of what was asked.

    What is asked of a server comes to `came`, and the servers are `became` then. With `may_go_on`
    it is under way until that is set.
    """

    snapshot: AgentSnapshot = field(
        default_factory=lambda: agent(server(), crashed_server(), collectors=WORKING)
    )
    past: History = field(default_factory=History)
    pasts: dict[str, History] = field(default_factory=dict)
    fault: Exception | None = None
    is_stuck: bool = False
    asked_history: list[tuple[str, int]] = field(default_factory=list)
    asked_maintenance: list[tuple[str, float | None]] = field(default_factory=list)
    asked_forget: list[str] = field(default_factory=list)
    comes_back: bool = False
    asked: list[tuple[str, Wish, str | None]] = field(default_factory=list)
    asked_health: list[tuple[str, float]] = field(default_factory=list)
    came: Answer | Exception = DONE
    became: tuple[ServerSnapshot, ...] = ()
    reloads: int = 0
    cannot_reload: Exception | None = None
    under_way: asyncio.Event | None = None
    may_go_on: asyncio.Event | None = None

    def show(self, *servers: ServerSnapshot, **changes: Any) -> None:
        generation = self.snapshot.generation + 1
        self.snapshot = agent(*servers, generation=generation, **{"collectors": WORKING, **changes})

    def current(self) -> AgentSnapshot:
        return self.snapshot

    async def history(self, name: str, limit: int) -> History:
        self.asked_history.append((name, limit))
        if self.fault is not None:
            raise self.fault
        return self.pasts.get(name, self.past)

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text="the metrics\n")

    async def maintenance(self, name: str, until: float | None) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        self.asked_maintenance.append((name, until))
        servers = [
            replace(s, life=replace(s.life, maintenance_until_unix_seconds=until))
            if s.name == name
            else s
            for s in self.snapshot.servers
        ]
        self.show(*servers)

    async def forget(self, name: str) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        self.asked_forget.append(name)
        if self.comes_back:
            raise CannotForgetError(f"{name} has come back")
        self.show(*(s for s in self.snapshot.servers if s.name != name))

    async def ask(self, server: str, wish: Wish, model: str | None) -> Answer:
        await self._do_slowly()
        self.asked.append((server, wish, model))
        return self._come()

    async def ensure_healthy(self, server: str, timeout_seconds: float) -> Answer:
        await self._do_slowly()
        self.asked_health.append((server, timeout_seconds))
        return self._come()

    async def reload(self) -> None:
        await self._do_slowly()
        if self.cannot_reload is not None:
            raise self.cannot_reload
        self.reloads += 1

    async def _do_slowly(self) -> None:
        if self.under_way is not None:
            self.under_way.set()
        if self.may_go_on is not None:
            await self.may_go_on.wait()

    def _come(self) -> Answer:
        if self.became:
            self.show(*self.became)
        if isinstance(self.came, Exception):
            raise self.came
        return self.came
