"""How long a discovered server that ended stays known, and which of several leaves first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.roster_entry import DOWN_PHASES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

KEEP_FAILED_SECONDS: Final = 24 * 3600.0
"""A discovered server that crashed or failed stays this long: its page must not resolve itself."""

MAX_KEPT_PER_LIVING: Final = 1
"""Discovered servers that ended, per one that may live: a crash loop under changing names must not
fill the page for a day. The oldest leave early, counted."""


def keep_seconds(state: ServerState, forget_after_seconds: float) -> float:
    """How long one that ended in `state` stays."""
    return forget_after_seconds if state is ServerState.STOPPED else KEEP_FAILED_SECONDS


def is_outdated(memory: Memory, forget_after_seconds: float, now: Instant) -> bool:
    """Whether the time of one that an agent before this one knew is over."""
    if memory.phase not in DOWN_PHASES or memory.entered_unix_seconds is None:
        return False
    state = ServerState.STOPPED if memory.phase is Phase.ABSENT else ServerState.CRASHED
    down_seconds = now.unix_seconds - memory.entered_unix_seconds
    return down_seconds >= keep_seconds(state, forget_after_seconds)


def surplus(down: Iterable[ServerSnapshot], max_living: int) -> list[str]:
    """The names of those that leave early, where `max_living` may live; who matters stays longest.

    Anybody can start processes that look like a vLLM. They serve nothing, and nobody wants them
    up, so they leave before a server whose crash somebody has to see.
    """
    names = [server.name for server in sorted(down, key=_importance)]
    return names[: max(0, len(names) - MAX_KEPT_PER_LIVING * max_living)]


def _importance(server: ServerSnapshot) -> tuple[bool, bool, bool, float, str]:
    """What makes a server that ended worth keeping, most of all that its crash pages somebody."""
    life = server.life
    is_paging = life.state is ServerState.CRASHED and bool(server.desired_up)
    entered = life.entered.unix_seconds
    return is_paging and life.has_served, life.has_served, is_paging, entered, server.name
