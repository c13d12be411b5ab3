"""When to look at a server next, and when a deadline of its phase falls due. Pure.

Deadlines are derived from the phase and the time it was entered; there are no timers to keep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle import supervision
from vllm_agent.lifecycle.by_process import DYING_SECONDS
from vllm_agent.lifecycle.by_url import CRASH_AFTER_SECONDS
from vllm_agent.lifecycle.states import Phase
from vllm_agent.lifecycle.supervision import ENDING_SECONDS

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant

REFUSED_LOOK_SECONDS: Final = 1.0
"""The shortest time between looks at a port that refuses: a refusal costs its host nothing."""

DOWN_SHARE: Final = 0.1
"""A server that has been down is looked at again after this share of its time down, so that its
return is seen at most a tenth later than it could have been."""


KNOCK_SECONDS: Final = 0.9
"""A local server that loads is knocked at once a second, the look that follows included, so that
it is running within a second of serving."""

_LOADING: Final = frozenset({Phase.UNOBSERVED, Phase.UNREACHED, Phase.LOADING, Phase.STALLED})


def is_knocked_at(life: ServerLife, policy: Policy) -> bool:
    """Whether the next look begins with a bare connect: a local server that has not served yet."""
    return policy.is_local and (life.phase in _LOADING or not policy.has_http)


def next_look_seconds(
    life: ServerLife, policy: Policy, interval_seconds: float, now: Instant
) -> float:
    """Seconds from now to the next look, when nothing triggers one before; maybe infinite."""
    if policy.is_local:
        return _next_local_look_seconds(life, interval_seconds, now)
    in_phase = now.since(life.phase_entered)
    if life.phase is Phase.LOST:
        left = CRASH_AFTER_SECONDS - in_phase
        return min(REFUSED_LOOK_SECONDS, left) if left > 0 else REFUSED_LOOK_SECONDS
    if life.phase in {Phase.ABSENT, Phase.CRASHED}:
        return min(max(REFUSED_LOOK_SECONDS, in_phase * DOWN_SHARE), interval_seconds)
    return interval_seconds


def _next_local_look_seconds(life: ServerLife, interval_seconds: float, now: Instant) -> float:
    if life.launch is None or life.is_launch_over:
        return math.inf  # a process that appears is told of
    gone = life.engine_gone_since
    is_dying = gone is not None and now.since(gone) < DYING_SECONDS
    if life.phase in _LOADING or is_dying:
        return min(KNOCK_SECONDS, interval_seconds)
    return interval_seconds


def next_deadline_seconds(life: ServerLife, policy: Policy, now: Instant) -> float | None:
    """Seconds from now until time alone changes something; None if it never will."""
    due = []
    by_itself = supervision.due(life, policy, now)
    if by_itself is not None:
        due.append(by_itself.in_seconds)
    if life.phase is Phase.ENDING:
        due.append(ENDING_SECONDS - now.since(life.phase_entered))
    is_used = life.budget.remaining < life.budget.limit or life.budget.is_limit_reached
    if life.phase is Phase.READY and life.running_since is not None and is_used:
        due.append(policy.restart_window_seconds - now.since(life.running_since))
    until = life.maintenance_until_unix_seconds
    if until is not None and until != float("inf"):
        due.append(until - now.unix_seconds)
    return max(0.0, min(due)) if due else None
