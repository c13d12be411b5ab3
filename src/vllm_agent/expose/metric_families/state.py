"""Families on what a server is and what state it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import label_value
from vllm_agent.expose.metric_families.declare import counter, gauge, one, running_counter
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ALIVE_PHASES, ServerState

if TYPE_CHECKING:
    from vllm_agent.expose.family import Family, Samples, ServerMoment
    from vllm_agent.snapshot import ServerSnapshot

# Walking an Enum is slow, and a scrape does it for every server.
_STATES: Final = tuple(ServerState)
_FAILURE_STATES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})


def _server_info(server: ServerSnapshot) -> Samples:
    values = (
        server.mode,
        label_value(server.model_name or ""),
        label_value(server.url),
        label_value(server.version or ""),
        "true" if server.is_discovered else "false",
    )
    return ((values, 1.0),)


def _state(server: ServerSnapshot) -> Samples:
    current = server.life.state
    return [((state,), float(state is current)) for state in _STATES]


def _state_seconds(moment: ServerMoment) -> Samples:
    current = moment.server.life.state
    return [
        ((state,), seconds)
        for state, seconds in moment.state_time.seconds.items()
        if seconds or state is current
    ]


def _desired_seconds(moment: ServerMoment) -> Samples:
    is_wanted = moment.server.policy.is_wanted
    return one(moment.state_time.desired_seconds) if is_wanted else ()


def _available_seconds(moment: ServerMoment) -> Samples:
    is_wanted = moment.server.policy.is_wanted
    return one(moment.state_time.available_seconds) if is_wanted else ()


def _failure_reason(server: ServerSnapshot) -> Samples:
    if server.life.state not in _FAILURE_STATES:
        return ()
    return (((server.life.reason or Reason.UNKNOWN,), 1.0),)


def _sleeping(server: ServerSnapshot) -> Samples:
    return one(server.life.is_sleeping) if server.life.phase in ALIVE_PHASES else ()


STATE_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    gauge(
        "server_info",
        "What is known about the server; always 1. Values are the last known ones, or empty.",
        _server_info,
        *("mode", "model_name", "url", "version", "discovered"),
    ),
    gauge(
        "server_state",
        "Whether the server is in this state; exactly one state is 1.",
        _state,
        "state",
    ),
    gauge(
        "server_state_entered_timestamp_seconds",
        "When the server entered its current state, in unix time.",
        lambda server: one(server.life.entered.unix_seconds),
    ),
    counter(
        "server_state_transitions_total",
        "Changes of state since the server was first seen; continues after a restart of the agent.",
        lambda server: [
            ((old, new), count) for (old, new), count in server.life.tally.transitions.items()
        ],
        *("from", "to"),
    ),
    gauge(
        "server_failure_reason",
        "Why the server failed or crashed; always 1, and only while it is failed or crashed.",
        _failure_reason,
        "reason",
    ),
    gauge(
        "server_desired_up",
        "Whether the server is wanted up: 0 in maintenance or when stopped on request. Absent "
        "where nobody said so: a discovered server that no systemd unit or container keeps up.",
        lambda server: one(server.desired_up),
    ),
    gauge(
        "server_sleeping",
        "Whether the server says that its engine sleeps.",
        _sleeping,
    ),
)

STATE_TIME_FAMILIES: Final[tuple[Family[ServerMoment], ...]] = (
    running_counter(
        "server_state_seconds_total",
        "Time spent in this state.",
        _state_seconds,
        "state",
    ),
    running_counter(
        "server_desired_seconds_total",
        "Time during which the server was wanted up; absent where nobody said that it is.",
        _desired_seconds,
    ),
    running_counter(
        "server_available_seconds_total",
        "Time during which the server was wanted up and running.",
        _available_seconds,
    ),
)
