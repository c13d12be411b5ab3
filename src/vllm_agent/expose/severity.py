"""Which servers people have to see first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

BY_SEVERITY: Final = (
    ServerState.CRASHED,
    ServerState.FAILED,
    ServerState.UNKNOWN,
    ServerState.STOPPED,
    ServerState.STOPPING,
    ServerState.STARTING,
    ServerState.RUNNING,
)
"""Every state: what is wrong, what may be wrong, what is under way, what is well."""

_RANKS: Final = {str(state): rank for rank, state in enumerate(BY_SEVERITY)}


def worst_first(servers: Iterable[T], state_of: Callable[[T], str]) -> list[T]:
    """The servers by severity, and in the given order where that is equal."""
    return sorted(servers, key=lambda server: _RANKS.get(state_of(server), 0))
