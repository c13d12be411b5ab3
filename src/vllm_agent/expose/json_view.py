"""The shape of the API: the agent and its servers as values that JSON can express. Pure.

JSON has no infinity: a maintenance without an end is `in_maintenance` with a null end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

import vllm_agent
from vllm_agent.expose.advice import advice_on_server
from vllm_agent.expose.history_view import EndingView, ending_view
from vllm_agent.expose.json_text import duration, timestamp
from vllm_agent.expose.load_view import LoadView, load_view
from vllm_agent.expose.managed_view import ManagedView, managed_view
from vllm_agent.expose.process_view import ProcessView, SightView, process_view, sight_views
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ALIVE_PHASES, Initiator, ServerState

if TYPE_CHECKING:
    from vllm_agent.lifecycle.restart_budget import RestartBudget
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import ProbeResult
    from vllm_agent.snapshot import AgentSnapshot, CollectorSnapshot, ProbeStats, ServerSnapshot

MAX_MAINTENANCE_SECONDS: Final = 366 * 24 * 3600.0
"""A year: whoever plans further means a maintenance without an end."""

_FAILURE_STATES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})


class BudgetView(TypedDict):
    """How many restarts are left before somebody has to look."""

    limit: int
    remaining: int
    window_seconds: float | None
    limit_reached: bool


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


class ServerView(ProcessView):
    """One server, complete.

    `url` is null where nobody can connect to it (a headless node, another network). `desired_up` is
    null where nobody said whether it should be up, `load` where this agent saw no load, `managed`
    where the agent only watches it.
    """

    name: str
    mode: str
    url: str | None
    discovered: bool
    state: str
    state_entered_timestamp_seconds: float | None
    reason: str | None
    detail: str
    advice: str | None
    desired_up: bool | None
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
    load: LoadView | None
    managed: ManagedView | None
    consecutive_failures: int
    last_check_timestamp_seconds: float | None
    probes: dict[str, ProbeView]


class CollectorView(TypedDict):
    """Whether one of the agent's own sources works."""

    name: str
    up: bool
    detail: str


class AgentView(TypedDict):
    """The agent itself.

    `discovered` is how many vLLM servers the last look at the host found, null where it is blind or
    off. `sights` is what the agent may see of the host. `config_file` is null where there is none.
    """

    version: str
    ready: bool
    started_timestamp_seconds: float | None
    config_file: str | None
    discovered: int | None
    sights: list[SightView]
    collectors: list[CollectorView]


class ServersView(TypedDict):
    """The answer that lists every server."""

    agent: AgentView
    servers: list[ServerView]


class ErrorText(TypedDict):
    """What went wrong, as a word for programs and as sentences for people."""

    code: str
    message: str
    hint: str


class ErrorView(TypedDict):
    """The answer to a request that could not be served."""

    error: ErrorText


def agent_view(agent: AgentSnapshot) -> AgentView:
    """The agent itself, without its servers."""
    return AgentView(
        version=vllm_agent.__version__,
        ready=agent.is_ready,
        started_timestamp_seconds=timestamp(agent.started.unix_seconds),
        config_file=agent.config_file,
        discovered=agent.discovered,
        sights=sight_views(agent.sights),
        collectors=[collector_view(source) for source in agent.collectors],
    )


def collector_view(source: CollectorSnapshot) -> CollectorView:
    """One of the agent's own sources."""
    return CollectorView(name=source.name, up=source.is_up, detail=source.detail)


def server_view(server: ServerSnapshot) -> ServerView:
    """One server, complete."""
    life = server.life
    reason = reason_of(life)
    is_alive = life.phase in ALIVE_PHASES
    return ServerView(
        name=server.name,
        mode=server.mode,
        url=server.url or None,
        discovered=server.is_discovered,
        state=life.state,
        state_entered_timestamp_seconds=timestamp(life.entered.unix_seconds),
        reason=reason,
        detail=life.detail,
        advice=None if reason is None else advice_on_server(server, reason),
        desired_up=server.desired_up,
        in_maintenance=life.maintenance_until_unix_seconds is not None,
        maintenance_until_timestamp_seconds=timestamp(life.maintenance_until_unix_seconds),
        sleeping=life.is_sleeping if is_alive else None,
        model_name=server.model_name,
        model_names=list(server.model_names),
        version=server.version,
        process_start_time_seconds=(
            timestamp(life.launch.start_seconds)
            if life.launch is not None and is_alive and not life.is_load_balanced
            else None
        ),
        launches=life.tally.launches,
        restarts={who: life.tally.restarts.get(who, 0) for who in Initiator},
        crashes={str(why): count for why, count in life.tally.crashes.items()},
        last_crash_timestamp_seconds={
            why: timestamp(at) for why, at in life.tally.last_crash_unix_seconds.items()
        },
        restart_budget=_budget_view(life.budget, server.policy.restart_window_seconds),
        last_ending=None if life.last_ending is None else ending_view(server, life.last_ending),
        load=load_view(server),
        managed=managed_view(server),
        **process_view(server),
        consecutive_failures=life.consecutive_failures,
        last_check_timestamp_seconds=(
            None if server.last_check is None else timestamp(server.last_check.unix_seconds)
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


def error_view(code: str, message: str, hint: str) -> ErrorView:
    """The answer to a request that could not be served."""
    return ErrorView(error=ErrorText(code=code, message=message, hint=hint))


def _budget_view(budget: RestartBudget, window_seconds: float) -> BudgetView:
    return BudgetView(
        limit=budget.limit,
        remaining=budget.remaining,
        window_seconds=duration(window_seconds),
        limit_reached=budget.is_limit_reached,
    )


def _probe_view(stats: ProbeStats) -> ProbeView:
    result: ProbeResult | None = stats.last_result
    return ProbeView(
        success=None if result is None else result.is_success,
        cause=None if result is None else result.cause,
        detail="" if result is None else result.detail,
        http_status=None if result is None else result.http_status,
        duration_seconds=None if result is None else duration(result.duration_seconds),
        last_success_timestamp_seconds=timestamp(stats.last_success_unix_seconds),
        requests=stats.requests,
        failures={str(cause): count for cause, count in stats.failures.items()},
    )
