"""Families on launches: how often, how they ended, and what is left of the restart budget."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.managed_view import next_restart_unix_seconds
from vllm_agent.expose.metric_families.declare import LOCAL_MODES, counter, gauge, one
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ALIVE_PHASES, Initiator, LifecycleMode, ServerState

if TYPE_CHECKING:
    from vllm_agent.expose.family import Family, Samples
    from vllm_agent.snapshot import ServerSnapshot

# Walking an Enum is slow, and a scrape does it for every server.
_INITIATORS: Final = tuple(Initiator)
_NO_ENDING_HAS: Final = frozenset(
    {
        *(Reason.LOAD_STALLED, Reason.UNHEALTHY, Reason.UNRESPONSIVE, Reason.UNREACHABLE),
        *(Reason.MODEL_MISSING, Reason.ENGINE_STALLED, Reason.SPAWN_FAILED),
    }
)
"""What the judgement on a process's end never comes to: reasons of a failed server, and of a start
of our own."""
_ENDINGS_HAVE: Final = tuple(reason for reason in Reason if reason not in _NO_ENDING_HAS)
# What a mode can produce; these series exist from the start, so that increase() sees the first one.
_CRASH_REASONS: Final = MappingProxyType(
    {
        LifecycleMode.EXTERNAL: (Reason.UNREACHABLE,),
        LifecycleMode.MONITORED: _ENDINGS_HAVE,
        LifecycleMode.MANAGED: _ENDINGS_HAVE,
    }
)


def _process_start(server: ServerSnapshot) -> Samples:
    life = server.life
    if life.launch is None or life.is_load_balanced or life.phase not in ALIVE_PHASES:
        return ()
    return one(life.launch.start_seconds)


def _crashes(server: ServerSnapshot) -> Samples:
    crashes = server.life.tally.crashes
    complete = _CRASH_REASONS[server.mode]
    others = [reason for reason in crashes if reason not in complete]
    return [((reason,), crashes.get(reason, 0)) for reason in (*complete, *others)]


def _last_exit(server: ServerSnapshot) -> Samples:
    ending = server.life.last_ending
    if ending is None or server.mode is LifecycleMode.EXTERNAL:
        return ()
    exit_code = "" if ending.exit_code is None else str(ending.exit_code)
    signal = "" if ending.signal is None else str(ending.signal)
    asked = "true" if ending.state is ServerState.STOPPED else "false"
    return (((exit_code, signal, asked), 1.0),)


LAUNCH_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    gauge(
        "server_process_start_time_seconds",
        "When the server's main process started, in unix time; absent behind a load balancer.",
        _process_start,
    ),
    counter(
        "server_launches_total",
        "Launches of the server that were seen, the first included.",
        lambda server: one(server.life.tally.launches),
    ),
    counter(
        "server_restarts_total",
        "Launches after the first, by who caused them.",
        lambda server: [((who,), server.life.tally.restarts.get(who, 0)) for who in _INITIATORS],
        "initiator",
    ),
    counter(
        "server_crashes_total",
        "Endings that nobody asked for, once they are settled, by reason.",
        _crashes,
        "reason",
    ),
    gauge(
        "server_last_crash_timestamp_seconds",
        "When the server last crashed for this reason, in unix time.",
        lambda server: [
            ((reason,), at) for reason, at in server.life.tally.last_crash_unix_seconds.items()
        ],
        "reason",
    ),
    gauge(
        "server_last_exit_info",
        "How the server's last launch ended; always 1. Code and signal are numbers, or empty.",
        _last_exit,
        *("exit_code", "signal", "asked"),
        modes=LOCAL_MODES,
    ),
    gauge(
        "server_restart_limit",
        "Restarts that the server may need before somebody has to look.",
        lambda server: one(server.life.budget.limit),
    ),
    gauge(
        "server_restart_window_seconds",
        "How long the server has to run for its restart budget to be full again.",
        lambda server: one(server.policy.restart_window_seconds),
    ),
    gauge(
        "server_restart_budget_remaining",
        "Restarts left of the limit.",
        lambda server: one(server.life.budget.remaining),
    ),
    gauge(
        "server_restart_limit_reached",
        "Whether the server needed a restart that its budget did not hold any more.",
        lambda server: one(server.life.budget.is_limit_reached),
    ),
    gauge(
        "server_next_restart_timestamp_seconds",
        "When the agent will start the server again, in unix time; only while that is planned.",
        lambda server: one(next_restart_unix_seconds(server)),
        modes=(LifecycleMode.MANAGED,),
    ),
)
