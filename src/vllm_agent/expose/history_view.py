"""The past of a server as the API tells it: transitions, launches and how they ended. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NotRequired, TypedDict

from vllm_agent.expose.advice import advice_on_ending
from vllm_agent.expose.json_text import timestamp

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Ending, Transition
    from vllm_agent.snapshot import ServerSnapshot
    from vllm_agent.store import History, LaunchRecord

MAX_HISTORY_LIMIT: Final = 1000
"""Entries of each kind that one question may get: as many as the store keeps of a server."""


class EndingView(TypedDict):
    """How a launch ended; `rule` is the number of the ending rule that decided.

    `advice` is null where there is no reason. `holder` is who held what the launch needed, its port
    or GPU memory, null where nobody is known to. `bundle` is the file on the agent's host in which
    the evidence is kept, null where it is not. `log` are the last lines of its log that matter:
    only in the history, and only on the control socket, for users may have written them.
    """

    launch: int
    timestamp_seconds: float | None
    state: str
    reason: str | None
    rule: int
    evidence: list[str]
    exit_code: int | None
    signal: int | None
    holder: str | None
    advice: str | None
    bundle: str | None
    log: NotRequired[list[str]]


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


def history_view(server: ServerSnapshot, history: History, *, with_logs: bool) -> HistoryView:
    """The past of one server; `with_logs` is for readers who may see what its users wrote."""
    return HistoryView(
        server=server.name,
        transitions=[_transition_view(transition) for transition in history.transitions],
        launches=[_launch_view(server, record, with_logs=with_logs) for record in history.launches],
    )


def ending_view(server: ServerSnapshot, ending: Ending) -> EndingView:
    """How one launch of the server ended, without lines of its log."""
    return EndingView(
        launch=ending.launch_number,
        timestamp_seconds=timestamp(ending.at.unix_seconds),
        state=ending.state,
        reason=ending.reason,
        rule=ending.rule,
        evidence=list(ending.evidence),
        exit_code=ending.exit_code,
        signal=ending.signal,
        holder=ending.holder or None,
        advice=advice_on_ending(server, ending),
        bundle=ending.bundle or None,
    )


def _transition_view(transition: Transition) -> TransitionView:
    return TransitionView(
        timestamp_seconds=timestamp(transition.at.unix_seconds),
        from_state=transition.from_state,
        to_state=transition.to_state,
        from_phase=transition.from_phase,
        to_phase=transition.to_phase,
        reason=transition.reason,
        detail=transition.detail,
        launch=transition.launch_number,
    )


def _launch_view(server: ServerSnapshot, record: LaunchRecord, *, with_logs: bool) -> LaunchView:
    launch, ending = record.launch, record.ending
    view = None if ending is None else ending_view(server, ending)
    if view is not None and ending is not None and with_logs:
        view["log"] = list(ending.log)
    return LaunchView(
        number=launch.number,
        first_seen_timestamp_seconds=timestamp(launch.first_seen.unix_seconds),
        process_start_time_seconds=timestamp(launch.start_seconds),
        has_served=launch.has_served,
        ending=view,
    )
