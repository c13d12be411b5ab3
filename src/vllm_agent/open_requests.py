"""Requests of operators that wait for what comes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.operations import Answer, Outcome

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable

    from vllm_agent.lifecycle.server_life import ServerLife


_NO_OWNER: Final = Answer(
    Outcome.SUPERSEDED, "its configuration changed, or the agent ends: look at its status"
)


class OpenRequests:
    """Whoever waits until the life of one server answers a question."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[ServerLife], Answer | None], Future[Answer]]] = []
        self.is_ended = False

    async def answered(self, of: Callable[[ServerLife], Answer | None], life: ServerLife) -> Answer:
        """Waits for the first committed life, from `life` on, of which there is an answer."""
        known = _NO_OWNER if self.is_ended else of(life)
        if known is not None:
            return known
        future: Future[Answer] = asyncio.get_running_loop().create_future()
        entry = (of, future)
        self._waiting.append(entry)
        try:
            return await future
        finally:
            self._waiting.remove(entry)

    def end(self) -> None:
        """Answers everybody, now and later: nobody owns the server any more."""
        self.is_ended = True
        for _, future in self._waiting:
            if not future.done():
                future.set_result(_NO_OWNER)

    def committed(self, life: ServerLife) -> None:
        """Answers whom `life` answers."""
        for of, future in self._waiting:
            known = None if future.done() else of(life)
            if known is not None:
                future.set_result(known)
