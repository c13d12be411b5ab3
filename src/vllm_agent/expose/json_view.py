"""The shape of the API: snapshots and history as values that JSON can express, and its bounds.

What is unknown is null, never 0. Times are unix seconds, to the millisecond. JSON has no infinity:
a maintenance without an end is `in_maintenance` with a null end.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final, TypedDict

import vllm_agent
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.states import ALIVE_PHASES, Initiator, ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.restart_budget import RestartBudget
    from vllm_agent.lifecycle.server_life import Ending, ServerLife, Transition
    from vllm_agent.observations import ProbeResult
    from vllm_agent.snapshot import AgentSnapshot, ProbeStats, ServerSnapshot
    from vllm_agent.store import History, LaunchRecord

MAX_HISTORY_LIMIT: Final = 1000
"""Entries of each kind that one question may get: as many as the store keeps of a server."""

MAX_MAINTENANCE_SECONDS: Final = 366 * 24 * 3600.0
"""A year: whoever plans further means a maintenance without an end."""

_FAILURE_STATES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})
_TIMESTAMP_DIGITS: Final = 3
_DURATION_DIGITS: Final = 6


class BudgetView(TypedDict):
    """How many restarts are left before somebody has to look."""

    limit: int
    remaining: int
    window_seconds: float | None
    limit_reached: bool


class EndingView(TypedDict):
    """How a launch ended; `rule` is the number of the ending rule that decided."""

    launch: int
    timestamp_seconds: float | None
    state: str
    reason: str | None
    rule: int
    evidence: list[str]
    exit_code: int | None
    signal: int | None


class ProbeView(TypedDict):
    """The last result of one kind of probe, and what it came to since the agent started."""

    success: bool | None
    cause: str | None
    detail: str
    http_status: int | None
    duration_seconds: float | None
    last_success_timestamp_seconds: float | None
    requests: int
    failures: dict[str, int]


class ServerView(TypedDict):
    """One server, complete."""

    name: str
    mode: str
    url: str
    discovered: bool
    state: str
    state_entered_timestamp_seconds: float | None
    reason: str | None
    detail: str
    advice: str | None
    desired_up: bool
    in_maintenance: bool
    maintenance_until_timestamp_seconds: float | None
    sleeping: bool | None
    model_name: str | None
    model_names: list[str]
    version: str | None
    process_start_time_seconds: float | None
    launches: int
    restarts: dict[str, int]
    crashes: dict[str, int]
    last_crash_timestamp_seconds: dict[str, float | None]
    restart_budget: BudgetView
    last_ending: EndingView | None
    consecutive_failures: int
    last_check_timestamp_seconds: float | None
    probes: dict[str, ProbeView]


class CollectorView(TypedDict):
    """Whether one of the agent's own sources works."""

    name: str
    up: bool
    detail: str


class AgentView(TypedDict):
    """The agent itself."""

    version: str
    ready: bool
    started_timestamp_seconds: float | None
    collectors: list[CollectorView]


class ServersView(TypedDict):
    """The answer that lists every server."""

    agent: AgentView
    servers: list[ServerView]


class TransitionView(TypedDict):
    """A change of phase; the states are equal where users see no change."""

    timestamp_seconds: float | None
    from_state: str
    to_state: str
    from_phase: str
    to_phase: str
    reason: str | None
    detail: str
    launch: int | None


class LaunchView(TypedDict):
    """One launch; `ending` is null while it runs, or if nobody saw its end."""

    number: int
    first_seen_timestamp_seconds: float | None
    process_start_time_seconds: float | None
    has_served: bool
    ending: EndingView | None


class HistoryView(TypedDict):
    """The past of one server, newest first."""

    server: str
    transitions: list[TransitionView]
    launches: list[LaunchView]


class ErrorText(TypedDict):
    """What went wrong, as a word for programs and as sentences for people."""

    code: str
    message: str
    hint: str


class ErrorView(TypedDict):
    """The answer to a request that could not be served."""

    error: ErrorText


def encode(value: Mapping[str, object] | list[Mapping[str, object]]) -> bytes:
    """The JSON text of a view, in UTF-8.

    A name from outside may hold what UTF-8 cannot express; it must not cost the answer.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def agent_view(agent: AgentSnapshot) -> AgentView:
    """The agent itself, without its servers."""
    return AgentView(
        version=vllm_agent.__version__,
        ready=agent.is_ready,
        started_timestamp_seconds=_timestamp(agent.started.unix_seconds),
        collectors=[
            CollectorView(name=source.name, up=source.is_up, detail=source.detail)
            for source in agent.collectors
        ],
    )


def server_view(server: ServerSnapshot) -> ServerView:
    """One server, complete."""
    life = server.life
    reason = reason_of(life)
    is_alive = life.phase in ALIVE_PHASES
    return ServerView(
        name=server.name,
        mode=server.mode,
        url=server.url,
        discovered=server.is_discovered,
        state=life.state,
        state_entered_timestamp_seconds=_timestamp(life.entered.unix_seconds),
        reason=reason,
        detail=life.detail,
        advice=None if reason is None else REASON_TEXT[reason].advice,
        desired_up=life.is_desired,
        in_maintenance=life.maintenance_until_unix_seconds is not None,
        maintenance_until_timestamp_seconds=_timestamp(life.maintenance_until_unix_seconds),
        sleeping=life.is_sleeping if is_alive else None,
        model_name=server.model_name,
        model_names=list(server.model_names),
        version=server.version,
        process_start_time_seconds=(
            _timestamp(life.launch.start_seconds)
            if life.launch is not None and is_alive and not life.is_load_balanced
            else None
        ),
        launches=life.tally.launches,
        restarts={who: life.tally.restarts.get(who, 0) for who in Initiator},
        crashes={str(why): count for why, count in life.tally.crashes.items()},
        last_crash_timestamp_seconds={
            why: _timestamp(at) for why, at in life.tally.last_crash_unix_seconds.items()
        },
        restart_budget=_budget_view(life.budget, server.policy.restart_window_seconds),
        last_ending=None if life.last_ending is None else _ending_view(life.last_ending),
        consecutive_failures=life.consecutive_failures,
        last_check_timestamp_seconds=(
            None if server.last_check is None else _timestamp(server.last_check.unix_seconds)
        ),
        probes={probe: _probe_view(stats) for probe, stats in server.probes.items()},
    )


def reason_of(life: ServerLife) -> Reason | None:
    """Why it is not running, where that is known of its present state.

    A server that was not looked at yet still carries the reason that the last agent left.
    """
    if life.state in _FAILURE_STATES:
        return life.reason or Reason.UNKNOWN
    return life.reason if life.phase in ALIVE_PHASES else None


def history_view(server: str, history: History) -> HistoryView:
    """The past of one server."""
    return HistoryView(
        server=server,
        transitions=[_transition_view(transition) for transition in history.transitions],
        launches=[_launch_view(record) for record in history.launches],
    )


def error_view(code: str, message: str, hint: str) -> ErrorView:
    """The answer to a request that could not be served."""
    return ErrorView(error=ErrorText(code=code, message=message, hint=hint))


def _budget_view(budget: RestartBudget, window_seconds: float) -> BudgetView:
    return BudgetView(
        limit=budget.limit,
        remaining=budget.remaining,
        window_seconds=_duration(window_seconds),
        limit_reached=budget.is_limit_reached,
    )


def _ending_view(ending: Ending) -> EndingView:
    return EndingView(
        launch=ending.launch_number,
        timestamp_seconds=_timestamp(ending.at.unix_seconds),
        state=ending.state,
        reason=ending.reason,
        rule=ending.rule,
        evidence=list(ending.evidence),
        exit_code=ending.exit_code,
        signal=ending.signal,
    )


def _probe_view(stats: ProbeStats) -> ProbeView:
    result: ProbeResult | None = stats.last_result
    return ProbeView(
        success=None if result is None else result.is_success,
        cause=None if result is None else result.cause,
        detail="" if result is None else result.detail,
        http_status=None if result is None else result.http_status,
        duration_seconds=None if result is None else _duration(result.duration_seconds),
        last_success_timestamp_seconds=_timestamp(stats.last_success_unix_seconds),
        requests=stats.requests,
        failures={str(cause): count for cause, count in stats.failures.items()},
    )


def _transition_view(transition: Transition) -> TransitionView:
    return TransitionView(
        timestamp_seconds=_timestamp(transition.at.unix_seconds),
        from_state=transition.from_state,
        to_state=transition.to_state,
        from_phase=transition.from_phase,
        to_phase=transition.to_phase,
        reason=transition.reason,
        detail=transition.detail,
        launch=transition.launch_number,
    )


def _launch_view(record: LaunchRecord) -> LaunchView:
    launch, ending = record.launch, record.ending
    return LaunchView(
        number=launch.number,
        first_seen_timestamp_seconds=_timestamp(launch.first_seen.unix_seconds),
        process_start_time_seconds=_timestamp(launch.start_seconds),
        has_served=launch.has_served,
        ending=None if ending is None else _ending_view(ending),
    )


def _timestamp(unix_seconds: float | None) -> float | None:
    return _rounded(unix_seconds, _TIMESTAMP_DIGITS)


def _duration(seconds: float) -> float | None:
    return _rounded(seconds, _DURATION_DIGITS)


def _rounded(number: float | None, digits: int) -> float | None:
    # What a server says of itself may be any number; JSON has neither infinity nor NaN.
    return None if number is None or not math.isfinite(number) else round(number, digits)
