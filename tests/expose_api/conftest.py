"""The two web applications over a snapshot that a test can swap, with a fake history and clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.expose.snapshots import NOW, agent, crashed_server, server
from vllm_agent.expose.http_api import control_app, read_app
from vllm_agent.store import History

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.test_utils import TestClient

    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot


@dataclass
class FakeAgent:
    """What the applications read and ask for; `show` publishes a new snapshot."""

    snapshot: AgentSnapshot = field(default_factory=lambda: agent(server(), crashed_server()))
    past: History = field(default_factory=History)
    fault: Exception | None = None
    is_stuck: bool = False
    asked_history: list[tuple[str, int]] = field(default_factory=list)
    asked_maintenance: list[tuple[str, float | None]] = field(default_factory=list)

    def show(self, *servers: ServerSnapshot, **changes: Any) -> None:
        generation = self.snapshot.generation + 1
        self.snapshot = replace(agent(*servers), generation=generation, **changes)

    def current(self) -> AgentSnapshot:
        return self.snapshot

    async def history(self, name: str, limit: int) -> History:
        self.asked_history.append((name, limit))
        if self.fault is not None:
            raise self.fault
        return self.past

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


@pytest.fixture
def fake() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
async def reader(fake: FakeAgent, aiohttp_client: Callable[..., Awaitable[TestClient]]):
    app = read_app(fake.current, lambda: NOW, fake.history, fake.metrics, "/custom")
    return await aiohttp_client(app)


@pytest.fixture
async def control(fake: FakeAgent, aiohttp_client: Callable[..., Awaitable[TestClient]]):
    app = control_app(
        fake.current, lambda: NOW, fake.history, fake.metrics, "/metrics", fake.maintenance
    )
    return await aiohttp_client(app)
