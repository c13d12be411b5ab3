"""Every metric family of the agent, declared once: name, type, help, labels and samples.

The page, its documentation and its tests read these tables. A new family is one entry here.
Label values that others choose pass `label_value`; what is unknown yields no sample, never 0.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import vllm_agent
from vllm_agent.expose.family import PREFIX, Family, MetricType, label_value
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import (
    ALIVE_PHASES,
    Initiator,
    LifecycleMode,
    ServerState,
    Stage,
)
from vllm_agent.observations import Probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Samples, ServerMoment
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot

# Walking an Enum is slow, and a scrape does it for every server.
_STATES = tuple(ServerState)
_INITIATORS = tuple(Initiator)
_FAILURE_STATES = frozenset({ServerState.FAILED, ServerState.CRASHED})
_LATENCY_PROBES = frozenset({Probe.HEALTH})
# What a mode can produce; these series exist from the start, so that increase() sees the first one.
_ALL_REASONS = tuple(Reason)
_CRASH_REASONS = MappingProxyType({LifecycleMode.EXTERNAL: (Reason.UNREACHABLE,)})
_ALL_STAGES = tuple(Stage)
_STAGES = MappingProxyType({LifecycleMode.EXTERNAL: (Stage.NONE,)})


def _one(value: float | None) -> Samples:
    return () if value is None else (((), value),)


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


def _failure_reason(server: ServerSnapshot) -> Samples:
    if server.life.state not in _FAILURE_STATES:
        return ()
    return (((server.life.reason or Reason.UNKNOWN,), 1.0),)


def _sleeping(server: ServerSnapshot) -> Samples:
    return _one(server.life.is_sleeping) if server.life.phase in ALIVE_PHASES else ()


def _process_start(server: ServerSnapshot) -> Samples:
    life = server.life
    if life.launch is None or life.is_load_balanced or life.phase not in ALIVE_PHASES:
        return ()
    return _one(life.launch.start_seconds)


def _crashes(server: ServerSnapshot) -> Samples:
    crashes = server.life.tally.crashes
    complete = _CRASH_REASONS.get(server.mode, _ALL_REASONS)
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


def _probe_success(server: ServerSnapshot) -> Samples:
    return [
        ((probe,), float(stats.last_result is not None and stats.last_result.is_success))
        for probe, stats in server.probes.items()
    ]


def _probe_failures(server: ServerSnapshot) -> Samples:
    return [
        ((probe, cause), count)
        for probe, stats in server.probes.items()
        for cause, count in stats.failures.items()
    ]


def _probe_last_success(server: ServerSnapshot) -> Samples:
    return [
        ((probe,), stats.last_success_unix_seconds)
        for probe, stats in server.probes.items()
        if stats.last_success_unix_seconds is not None
    ]


def _load_stage(server: ServerSnapshot) -> Samples:
    if server.life.state is ServerState.STARTING:
        return ()  # it is in one of the stages, and nothing says in which
    stages = _STAGES.get(server.mode, _ALL_STAGES)
    return [((stage,), float(stage is Stage.NONE)) for stage in stages]


def _build(_agent: AgentSnapshot) -> Samples:
    return (((vllm_agent.__version__, platform.python_version()), 1.0),)


def _gauge(
    name: str, text: str, samples: Callable[[ServerSnapshot], Samples], *labels: str
) -> Family[ServerSnapshot]:
    return Family(PREFIX + name, MetricType.GAUGE, text, ("server",), labels, samples)


def _counter(
    name: str, text: str, samples: Callable[[ServerSnapshot], Samples], *labels: str
) -> Family[ServerSnapshot]:
    return Family(PREFIX + name, MetricType.COUNTER, text, ("server",), labels, samples)


def _seconds(
    name: str, text: str, samples: Callable[[ServerMoment], Samples], *labels: str
) -> Family[ServerMoment]:
    return Family(PREFIX + name, MetricType.COUNTER, text, ("server",), labels, samples)


def _agent(
    name: str,
    kind: MetricType,
    text: str,
    samples: Callable[[AgentSnapshot], Samples],
    *labels: str,
) -> Family[AgentSnapshot]:
    return Family(PREFIX + name, kind, text, (), labels, samples)


SERVER_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    _gauge(
        "server_info",
        "What is known about the server; always 1. Values are the last known ones, or empty.",
        _server_info,
        *("mode", "model_name", "url", "version", "discovered"),
    ),
    _gauge(
        "server_state",
        "Whether the server is in this state; exactly one state is 1.",
        _state,
        "state",
    ),
    _gauge(
        "server_state_entered_timestamp_seconds",
        "When the server entered its current state, in unix time.",
        lambda server: _one(server.life.entered.unix_seconds),
    ),
    _counter(
        "server_state_transitions_total",
        "Changes of state since the server was first seen; continues after a restart of the agent.",
        lambda server: [
            ((old, new), count) for (old, new), count in server.life.tally.transitions.items()
        ],
        *("from", "to"),
    ),
    _gauge(
        "server_failure_reason",
        "Why the server failed or crashed; always 1, and only while it is failed or crashed.",
        _failure_reason,
        "reason",
    ),
    _gauge(
        "server_desired_up",
        "Whether the server is wanted up: 0 in maintenance or when stopped on request.",
        lambda server: _one(server.life.is_desired),
    ),
    _gauge(
        "server_sleeping",
        "Whether the server says that its engine sleeps.",
        _sleeping,
    ),
    _gauge(
        "server_process_start_time_seconds",
        "When the server's main process started, in unix time; absent behind a load balancer.",
        _process_start,
    ),
    _counter(
        "server_launches_total",
        "Launches of the server that were seen, the first included.",
        lambda server: _one(server.life.tally.launches),
    ),
    _counter(
        "server_restarts_total",
        "Launches after the first, by who caused them.",
        lambda server: [((who,), server.life.tally.restarts.get(who, 0)) for who in _INITIATORS],
        "initiator",
    ),
    _counter(
        "server_crashes_total",
        "Endings that nobody asked for, once they are settled, by reason.",
        _crashes,
        "reason",
    ),
    _gauge(
        "server_last_crash_timestamp_seconds",
        "When the server last crashed for this reason, in unix time.",
        lambda server: [
            ((reason,), at) for reason, at in server.life.tally.last_crash_unix_seconds.items()
        ],
        "reason",
    ),
    replace(
        _gauge(
            "server_last_exit_info",
            "How the server's last launch ended; always 1. Code and signal are numbers, or empty.",
            _last_exit,
            *("exit_code", "signal", "asked"),
        ),
        modes=(LifecycleMode.MONITORED, LifecycleMode.MANAGED),
    ),
    _gauge(
        "server_restart_limit",
        "Restarts that the server may need before somebody has to look.",
        lambda server: _one(server.life.budget.limit),
    ),
    _gauge(
        "server_restart_window_seconds",
        "How long the server has to run for its restart budget to be full again.",
        lambda server: _one(server.policy.restart_window_seconds),
    ),
    _gauge(
        "server_restart_budget_remaining",
        "Restarts left of the limit.",
        lambda server: _one(server.life.budget.remaining),
    ),
    _gauge(
        "server_restart_limit_reached",
        "Whether the server needed a restart that its budget did not hold any more.",
        lambda server: _one(server.life.budget.is_limit_reached),
    ),
    _gauge(
        "probe_success",
        "Whether the last probe of this kind succeeded; 0 before the first result.",
        _probe_success,
        "probe",
    ),
    _counter(
        "probe_requests_total",
        "Probes sent.",
        lambda server: [((probe,), stats.requests) for probe, stats in server.probes.items()],
        "probe",
    ),
    Family(
        PREFIX + "probe_duration_seconds",
        MetricType.HISTOGRAM,
        "How long probes took, failed ones included.",
        ("server",),
        ("probe",),
        lambda server: [
            ((probe,), stats.durations)
            for probe, stats in server.probes.items()
            if probe in _LATENCY_PROBES
        ],
    ),
    _counter(
        "probe_failures_total",
        "Probes that failed, by cause.",
        _probe_failures,
        *("probe", "cause"),
    ),
    _gauge(
        "probe_consecutive_failures",
        "Failed checks in a row; the server is failed once they reach its threshold.",
        lambda server: _one(server.life.consecutive_failures),
    ),
    _gauge(
        "probe_last_success_timestamp_seconds",
        "When a probe of this kind last succeeded, in unix time.",
        _probe_last_success,
        "probe",
    ),
    _gauge(
        "load_stage",
        "Whether a starting server is in this stage of its load; none when it is not loading.",
        _load_stage,
        "stage",
    ),
)

MOMENT_FAMILIES: Final[tuple[Family[ServerMoment], ...]] = (
    _seconds(
        "server_state_seconds_total",
        "Time spent in this state.",
        _state_seconds,
        "state",
    ),
    _seconds(
        "server_desired_seconds_total",
        "Time during which the server was wanted up.",
        lambda moment: _one(moment.state_time.desired_seconds),
    ),
    _seconds(
        "server_available_seconds_total",
        "Time during which the server was wanted up and running.",
        lambda moment: _one(moment.state_time.available_seconds),
    ),
)

AGENT_FAMILIES: Final[tuple[Family[AgentSnapshot], ...]] = (
    _agent(
        "collector_up",
        MetricType.GAUGE,
        "Whether this source of the agent works.",
        lambda agent: [((source.name,), source.is_up) for source in agent.collectors],
        "collector",
    ),
    _agent(
        "collector_duration_seconds",
        MetricType.GAUGE,
        "How long this source took the last time.",
        lambda agent: [
            ((source.name,), source.duration_seconds)
            for source in agent.collectors
            if source.duration_seconds is not None
        ],
        "collector",
    ),
    _agent(
        "collector_last_success_timestamp_seconds",
        MetricType.GAUGE,
        "When this source last worked, in unix time.",
        lambda agent: [
            ((source.name,), source.last_success_unix_seconds)
            for source in agent.collectors
            if source.last_success_unix_seconds is not None
        ],
        "collector",
    ),
    _agent(
        "dropped_total",
        MetricType.COUNTER,
        "What a bound or an error made the agent leave out, by kind.",
        lambda agent: [((kind,), count) for kind, count in agent.dropped.items()],
        "kind",
    ),
    _agent(
        "build_info",
        MetricType.GAUGE,
        "The version of the agent and of the Python that runs it; always 1.",
        _build,
        *("version", "python_version"),
    ),
    _agent(
        "config_last_reload_successful",
        MetricType.GAUGE,
        "Whether the configuration was accepted the last time it was read.",
        lambda agent: _one(agent.is_config_load_successful),
    ),
    _agent(
        "config_last_reload_success_timestamp_seconds",
        MetricType.GAUGE,
        "When a configuration was last accepted, in unix time.",
        lambda agent: _one(agent.config_load_unix_seconds),
    ),
)
