"""Seconds spent per state, and how many of them the server was wanted and available. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.observations import Instant


def _no_seconds() -> Mapping[ServerState, float]:
    return MappingProxyType(dict.fromkeys(ServerState, 0.0))


@dataclass(frozen=True, slots=True)
class StateTime:
    """Accumulated seconds up to `until`, by the monotonic clock."""

    until: Instant
    seconds: Mapping[ServerState, float] = field(default_factory=_no_seconds)
    desired_seconds: float = 0.0
    available_seconds: float = 0.0

    def advanced(self, state: ServerState, *, is_desired: bool, now: Instant) -> StateTime:
        """The same up to `now`, during which `state` held."""
        elapsed = max(0.0, now.since(self.until))
        wanted = elapsed if is_desired else 0.0
        return StateTime(
            until=now,
            seconds=MappingProxyType({**self.seconds, state: self.seconds[state] + elapsed}),
            desired_seconds=self.desired_seconds + wanted,
            available_seconds=self.available_seconds
            + (wanted if state is ServerState.RUNNING else 0.0),
        )
