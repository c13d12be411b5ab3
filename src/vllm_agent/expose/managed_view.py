"""What is asked of a managed server, and how far the agent is with it. Pure."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypedDict

from vllm_agent.expose.json_text import duration, timestamp
from vllm_agent.lifecycle.states import Phase
from vllm_agent.lifecycle.supervision import next_restart

if TYPE_CHECKING:
    from vllm_agent.lifecycle.management import StopOutcome
    from vllm_agent.snapshot import ServerSnapshot

_CREDENTIALS: Final = re.compile(r"://[^/]*@")

PHASE_WORDS: Final = MappingProxyType(
    {
        Phase.PREPARING: "the agent checks what it needs, and starts it",
        Phase.TERMINATING: "the agent sent SIGTERM",
        Phase.KILLING: "the agent sent SIGKILL",
        Phase.BACKOFF: "the agent will start it again",
        Phase.REFUSED: "the agent will try again to start it",
        Phase.GAVE_UP: "the agent starts it no more until an operator does",
    }
)
"""What the agent is about with a managed server, in phases that only these have."""


class StopView(TypedDict):
    """How the last stop went, until nothing of the launch was left; `is_forced` is by SIGKILL."""

    launch: int
    seconds: float | None
    is_forced: bool


class ManagedView(TypedDict):
    """What is asked of a managed server, and how far the agent is with it.

    `goal` is `up` or `down`, as an operator wants it. `phase` is finer than the state. `model` is
    the one to serve, null where the configuration was not read yet, `model_before` the one that it
    replaced, until the new one has served. `attempts` counts the starts that this agent tried.
    `next_restart_timestamp_seconds` is null where none is planned, `last_stop` where this agent
    stopped nothing. `is_dry_run` is whether restarts are only told of.
    """

    goal: str
    phase: str
    model: str | None
    model_before: str | None
    next_restart_timestamp_seconds: float | None
    attempts: int
    last_stop: StopView | None
    is_dry_run: bool


def managed_view(server: ServerSnapshot) -> ManagedView | None:
    """What is asked of a managed server; None for one that is only watched."""
    asked = server.life.management
    if asked is None:
        return None
    return ManagedView(
        goal="up" if asked.is_goal_up else "down",
        phase=server.life.phase,
        model=_shown(wanted_model(server)),
        model_before=_shown(asked.model_before),
        next_restart_timestamp_seconds=timestamp(next_restart_unix_seconds(server)),
        attempts=asked.attempts,
        last_stop=None if asked.last_stop is None else _stop_view(asked.last_stop),
        is_dry_run=server.policy.is_dry_run,
    )


def wanted_model(server: ServerSnapshot) -> str | None:
    """The model that a managed server is started with; None where that is not known."""
    asked = server.life.management
    return (None if asked is None else asked.model) or server.policy.model


def shown_model(model: str) -> str:
    """A model without the credentials that the address of an object store may hold."""
    return _CREDENTIALS.sub("://", model)


def next_restart_unix_seconds(server: ServerSnapshot) -> float | None:
    """When the agent starts it again by itself; None where it does not plan to."""
    life = server.life
    # The plan follows from what was decided, at whatever time it is looked at.
    planned = next_restart(life, server.policy, life.phase_entered)
    return None if planned is None else planned.unix_seconds


def _shown(model: str | None) -> str | None:
    return None if model is None else shown_model(model)


def _stop_view(stop: StopOutcome) -> StopView:
    return StopView(
        launch=stop.launch_number, seconds=duration(stop.seconds), is_forced=stop.is_forced
    )
