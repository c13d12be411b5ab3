"""A real control application on a unix socket, served from a thread, over a fake agent."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Self

from aiohttp import web

from tests.expose.snapshots import NOW
from tests.expose_api.fake_agent import FakeAgent
from vllm_agent.cli.agent_client import SOCKET_NAME
from vllm_agent.expose.http_api import control_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_agent.expose.api_errors import Endpoint


class ServedAgent(FakeAgent):
    """An agent that commands can talk to, until it is left.

    `answered` counts by status. At a path in `refused` that exception is raised. What is asked of a
    server takes `until` that holds; `is_asked` is set once it is asked.
    """

    def __init__(self, state_dir: Path) -> None:
        super().__init__()
        self.state_dir = state_dir
        self.answered: Counter[int] = Counter()
        self.refused: dict[str, type[Exception]] = {}
        self.until: Callable[[], bool] = lambda: True
        self.is_asked = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread: threading.Thread
        self._is_up = threading.Event()

    def __enter__(self) -> Self:
        self._is_up.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = control_app(
            self.current,
            lambda: NOW,
            self.history,
            self.metrics,
            "/metrics",
            self.maintenance,
            self.forget,
            self,
        )
        app.middlewares.append(self._refuse)
        app.on_response_prepare.append(self._count)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.state_dir / SOCKET_NAME)).start()
        self._is_up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _do_slowly(self) -> None:
        self.is_asked.set()
        while not self.until():  # noqa: ASYNC110 - a test on another thread says when
            await asyncio.sleep(0.01)

    @web.middleware
    async def _refuse(self, request: web.Request, handler: Endpoint) -> web.StreamResponse:
        if request.path in self.refused:
            raise self.refused[request.path]
        return await handler(request)

    async def _count(self, _: web.Request, response: web.StreamResponse) -> None:
        self.answered[response.status] += 1
