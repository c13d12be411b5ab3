"""Work that goes on when the client that asked for it goes away."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)


class Outlasting:
    """What clients asked for and what is not done yet.

    `expected` are the exceptions that only say why something was not done.
    """

    def __init__(self, *expected: type[Exception]) -> None:
        self._expected = expected
        self._under_way: set[asyncio.Task[Any]] = set()

    async def result_of(self, work: Coroutine[Any, Any, T], patience_seconds: float) -> T | None:
        """What comes of `work`, or None when patience ends first; either way it goes on."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=patience_seconds)
        except asyncio.CancelledError:
            task.add_done_callback(self._tell_nobody)
            raise
        if done:
            return task.result()
        task.add_done_callback(self._tell_nobody)
        return None

    def _tell_nobody(self, task: asyncio.Task[Any]) -> None:
        """The client that would have been told is gone."""
        if task.cancelled() or task.exception() is None:
            return
        if not isinstance(task.exception(), self._expected):
            _LOGGER.error("could not do what was asked", exc_info=task.exception())
