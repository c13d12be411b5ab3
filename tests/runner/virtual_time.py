"""An event loop whose time passes only when nothing else is left to do: no test sleeps."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_agent.observations import Instant

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")
UNIX_START = 1_800_000_000.0


class _Selector(selectors.DefaultSelector):
    """Answers at once and moves the time to where the loop wanted to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("the loop would wait for ever")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time, beginning at 0."""

    def __init__(self) -> None:
        self.clockwork = _Selector()
        super().__init__(self.clockwork)

    def time(self) -> float:
        return self.clockwork.now

    def instant(self) -> Instant:
        """The moment on both clocks."""
        return Instant(self.clockwork.now, UNIX_START + self.clockwork.now)


def run_virtually(main: Coroutine[Any, Any, _T]) -> _T:
    """Runs `main` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
