"""The words of the lifecycle: modes, states, phases, stages, and which phase is which state.

Phases are what `step` works on; states are what users see. `PHASE_STATE` is the only bridge.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class LifecycleMode(StrEnum):
    """Who starts the server, and what the agent may see of it."""

    MONITORED = "monitored"
    EXTERNAL = "external"
    MANAGED = "managed"


class ServerState(StrEnum):
    """The state of a server as metrics, API, log and CLI spell it. Exactly one holds at a time."""

    UNKNOWN = "unknown"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"


class Phase(StrEnum):
    """The position of a server in its life; finer than a state."""

    UNOBSERVED = "unobserved"
    UNREACHED = "unreached"
    LOADING = "loading"
    STALLED = "stalled"
    READY = "ready"
    UNREADY = "unready"
    LOST = "lost"
    ENDING = "ending"
    OVERDUE = "overdue"
    ABSENT = "absent"
    CRASHED = "crashed"
    PREPARING = "preparing"
    TERMINATING = "terminating"
    KILLING = "killing"
    BACKOFF = "backoff"
    REFUSED = "refused"
    GAVE_UP = "gave_up"


PHASE_STATE: Final = MappingProxyType(
    {
        Phase.UNOBSERVED: ServerState.UNKNOWN,
        Phase.UNREACHED: ServerState.UNKNOWN,
        Phase.LOADING: ServerState.STARTING,
        Phase.STALLED: ServerState.FAILED,
        Phase.READY: ServerState.RUNNING,
        Phase.UNREADY: ServerState.FAILED,
        Phase.LOST: ServerState.FAILED,
        Phase.ENDING: ServerState.STOPPING,
        Phase.OVERDUE: ServerState.FAILED,
        Phase.ABSENT: ServerState.STOPPED,
        Phase.CRASHED: ServerState.CRASHED,
        Phase.PREPARING: ServerState.STARTING,
        Phase.TERMINATING: ServerState.STOPPING,
        Phase.KILLING: ServerState.STOPPING,
        Phase.BACKOFF: ServerState.CRASHED,
        Phase.REFUSED: ServerState.FAILED,
        Phase.GAVE_UP: ServerState.FAILED,
    }
)

PHASE_MEANING: Final = MappingProxyType(
    {
        Phase.UNOBSERVED: "not looked at yet, or not often enough to say",
        Phase.UNREACHED: "its process listens, but the agent never reached it",
        Phase.LOADING: "its process is alive and has not served in this launch",
        Phase.STALLED: "its process is alive and loads nothing any more",
        Phase.READY: "it serves",
        Phase.UNREADY: "it is there, but too many checks in a row failed",
        Phase.LOST: "it served, and now its port refuses connections",
        Phase.ENDING: "its end has begun and is not judged yet",
        Phase.OVERDUE: "its end has begun and takes too long",
        Phase.ABSENT: "it is not there: never seen, or its end was asked for or not watched",
        Phase.CRASHED: "it is gone and nobody asked",
        Phase.PREPARING: "managed: the agent checks what it needs, and starts it",
        Phase.TERMINATING: "managed: the agent sent SIGTERM",
        Phase.KILLING: "managed: the agent sent SIGKILL to all of it",
        Phase.BACKOFF: "managed: it is gone, nobody asked, and the agent will start it again",
        Phase.REFUSED: "managed: a start came to nothing, and the agent will try again",
        Phase.GAVE_UP: "managed: the agent starts it no more until an operator does",
    }
)

ALIVE_PHASES: Final = frozenset(
    {
        Phase.UNREACHED,
        Phase.LOADING,
        Phase.STALLED,
        Phase.READY,
        Phase.UNREADY,
        Phase.ENDING,
        Phase.OVERDUE,
        Phase.TERMINATING,
        Phase.KILLING,
    }
)
"""Phases in which the launch is known to be there."""


SERVABLE_PHASES: Final = ALIVE_PHASES - {
    Phase.ENDING,
    Phase.OVERDUE,
    Phase.TERMINATING,
    Phase.KILLING,
}
"""Phases in which the launch is there and not on its way out."""

IDLE_PHASES: Final = frozenset(
    {Phase.ABSENT, Phase.CRASHED, Phase.BACKOFF, Phase.REFUSED, Phase.GAVE_UP}
)
"""Phases in which no launch is there, and none is on its way."""


class Initiator(StrEnum):
    """Who caused a launch after the first."""

    AGENT = "agent"
    OPERATOR = "operator"
    OUTSIDE = "outside"
