"""Keeps an idle connection to a server, whose end tells at once that the server may be gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.observations import Instant
    from vllm_agent.runner_interfaces import Eyes

CONNECTION_PAUSE_SECONDS: Final = 10.0
"""An idle connection that lived shorter than this is opened again only an interval later: where
something between closes idle connections, reopening at once would be a loop."""


class IdleHold:
    """The idle connection of one server; `on_close` is called when its peer closed it."""

    def __init__(
        self,
        eyes: Eyes,
        clock: Callable[[], Instant],
        pause_seconds: float,
        on_close: Callable[[], None],
    ) -> None:
        self._eyes = eyes
        self._clock = clock
        self._pause_seconds = pause_seconds
        self._on_close = on_close
        self._connecting: asyncio.Task[None] | None = None
        self._not_before_seconds = 0.0

    def keep(self) -> None:
        """Opens it if there is none, unless it was closed a moment ago."""
        if self._eyes.is_holding:
            return
        is_allowed = self._clock().monotonic_seconds >= self._not_before_seconds
        if self._connecting is None and is_allowed:
            self._connecting = asyncio.create_task(self._connect())
            # Also of one that was cancelled before it began.
            self._connecting.add_done_callback(self._connected)

    def drop(self) -> asyncio.Task[None] | None:
        """Closes it; the task is what is still on its way out."""
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        self._eyes.release()
        return connecting

    async def _connect(self) -> None:
        await self._eyes.hold(self._closed)

    def _connected(self, _: asyncio.Task[None]) -> None:
        self._connecting = None

    def _closed(self, lived_seconds: float) -> None:
        if lived_seconds < CONNECTION_PAUSE_SECONDS:
            self._not_before_seconds = self._clock().monotonic_seconds + self._pause_seconds
        self._on_close()
