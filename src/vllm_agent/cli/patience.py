"""How long `wait` waits: a bound that was asked for, or as long as a load makes progress. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.load_bar import load_of
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm_agent.expose.json_view import ServerView

DEFAULT_SECONDS: Final = 300.0
"""As long as a load may go without progress."""

_ENDED: Final = frozenset({ServerState.STOPPING, ServerState.STOPPED, ServerState.CRASHED})


class Patience:
    """Ends at a moment of the monotonic clock; times are on that clock.

    A bound that was asked for is one. The default is not: whoever waits for a server to run waits
    on while it loads, and `DEFAULT_SECONDS` from the last progress on. Only the first load is
    waited for like that: what ends and starts again may do so for ever.
    """

    def __init__(
        self, asked_seconds: float | None, states: Collection[ServerState], now_seconds: float
    ) -> None:
        self._began = now_seconds
        self._deadline = now_seconds + (DEFAULT_SECONDS if asked_seconds is None else asked_seconds)
        self._bears_a_load = asked_seconds is None and ServerState.RUNNING in states
        self._last_progress: float | None = None
        self._has_loaded = False
        self._is_moving = False

    def note(self, server: ServerView | None, now_seconds: float) -> None:
        """What was seen of the server; None where the agent did not tell."""
        load = None if server is None else load_of(server)
        self._is_moving = load is not None and load["stalled"] is False
        if load is not None:
            self._has_loaded = True
            progress = load["last_progress_timestamp_seconds"] or 0.0
            is_new = self._last_progress is not None and progress > self._last_progress
            if self._bears_a_load and is_new:
                self._deadline = now_seconds + DEFAULT_SECONDS
            self._last_progress = progress
        if self._has_loaded and server is not None and server["state"] in _ENDED:
            self._bears_a_load = False

    def rest_seconds(self, now_seconds: float) -> float:
        """How long it still lasts: 0 when it is over, without an end while a load moves."""
        if self._bears_a_load and self._is_moving:
            return math.inf
        return max(0.0, self._deadline - now_seconds)

    def spent_seconds(self, now_seconds: float) -> float:
        """How long it has lasted."""
        return now_seconds - self._began
