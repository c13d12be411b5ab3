"""The two web applications over a snapshot that a test can swap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.expose.snapshots import NOW
from tests.expose_api.fake_agent import FakeAgent
from vllm_agent.expose.http_api import control_app, read_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web
    from aiohttp.test_utils import TestClient


@pytest.fixture
def fake() -> FakeAgent:
    return FakeAgent()


def reading(fake: FakeAgent, *, may_reload: bool) -> web.Application:
    return read_app(
        fake.current,
        lambda: NOW,
        fake.history,
        fake.metrics,
        "/custom",
        fake,
        may_reload=may_reload,
    )


@pytest.fixture
async def reader(fake: FakeAgent, aiohttp_client: Callable[..., Awaitable[TestClient]]):
    return await aiohttp_client(reading(fake, may_reload=False))


@pytest.fixture
async def reloader(fake: FakeAgent, aiohttp_client: Callable[..., Awaitable[TestClient]]):
    return await aiohttp_client(reading(fake, may_reload=True))


@pytest.fixture
async def control(fake: FakeAgent, aiohttp_client: Callable[..., Awaitable[TestClient]]):
    app = control_app(
        fake.current,
        lambda: NOW,
        fake.history,
        fake.metrics,
        "/metrics",
        fake.maintenance,
        fake.forget,
        fake,
    )
    return await aiohttp_client(app)
