"""What the web applications read and ask for, in the hands of a test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.expose.snapshots import agent, crashed_server, server
from vllm_agent.expose.api_writes import CannotForgetError
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import History

if TYPE_CHECKING:
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot


WORKING = (CollectorSnapshot("probes", is_up=True), CollectorSnapshot("store", is_up=True))


@dataclass
class FakeAgent:
    """A snapshot that can be swapped, a history, and a note of what was asked."""

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
