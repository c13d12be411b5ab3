"""The transition table: where each trigger leads from each phase. Plain data.

Guards live in `step`, which turns rich events into these few triggers; the table has no `if`.
Docs, diagram and tests read this table.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.states import ALIVE_PHASES, IDLE_PHASES, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Trigger(StrEnum):
    """What can move a server from one phase to another."""

    PASSED = "passed"
    FAILING = "failing"
    FAILED = "failed"
    REFUSED = "refused"
    LOST = "lost"
    GONE = "gone"
    QUIET = "quiet"
    UNREACHED = "unreached"
    APPEARED = "appeared"
    WAITING = "waiting"
    STALLED = "stalled"
    PROGRESSED = "progressed"
    END_BEGAN = "end_began"
    REOPENED = "reopened"
    OVERDUE = "overdue"
    ENDED_STOPPED = "ended_stopped"
    ENDED_CRASHED = "ended_crashed"
    START = "start"
    START_REFUSED = "start_refused"
    CALLED_OFF = "called_off"
    STOP = "stop"
    KILL = "kill"
    BACKING_OFF = "backing_off"
    GIVE_UP = "give_up"


TRIGGER_MEANING: Final = MappingProxyType(
    {
        Trigger.PASSED: "a check found everything in order",
        Trigger.FAILING: "a check failed, fewer in a row than the threshold",
        Trigger.FAILED: "as many checks in a row failed as the threshold says",
        Trigger.REFUSED: "external: the port refuses, and this agent has not seen it serve",
        Trigger.LOST: "external: the port refuses, and it has served before",
        Trigger.GONE: "the port still refuses: a crash, or one that was known before",
        Trigger.QUIET: "external: the port refuses, and it is in maintenance",
        Trigger.UNREACHED: "its process listens, but no check ever reached it",
        Trigger.APPEARED: "a new process of it was seen",
        Trigger.WAITING: "its process is there, and does not serve yet",
        Trigger.STALLED: "its load made no progress for load_timeout",
        Trigger.PROGRESSED: "its load moves again",
        Trigger.END_BEGAN: "its listener closed or its main process is gone",
        Trigger.REOPENED: "it listens again: its end had not begun after all",
        Trigger.OVERDUE: "its end is not over after the time an end may take",
        Trigger.ENDED_STOPPED: "its ending was judged: asked for",
        Trigger.ENDED_CRASHED: "its ending was judged: nobody asked",
        Trigger.START: "managed: the agent begins to start it",
        Trigger.START_REFUSED: "managed: what a start needs is not there, or it failed",
        Trigger.CALLED_OFF: "managed: nothing of it is there, and an operator wants it down",
        Trigger.STOP: "managed: an operator wants it down, or another launch is to follow it",
        Trigger.KILL: "managed: it is still there after the time a stop may take",
        Trigger.BACKING_OFF: "managed: its ending was judged: nobody asked; a restart follows",
        Trigger.GIVE_UP: "managed: the restart limit is reached, or no restart would mend it",
    }
)

_P = Phase
_ALL: Final = frozenset(Phase)
_LEAVING: Final = frozenset({_P.ENDING, _P.OVERDUE})
_STOPPING: Final = frozenset({_P.TERMINATING, _P.KILLING})
_NOT_STARTED: Final = frozenset({_P.PREPARING, _P.BACKOFF, _P.REFUSED, _P.GAVE_UP})
_JUDGED: Final = _ALL - _LEAVING - _STOPPING - _NOT_STARTED

# (trigger, phases it moves, where to); every other phase stays as it is.
_MOVES: Final[tuple[tuple[Trigger, Iterable[Phase], Phase], ...]] = (
    (Trigger.PASSED, _JUDGED, _P.READY),
    (Trigger.FAILED, _JUDGED - {_P.UNREACHED, _P.STALLED}, _P.UNREADY),
    (Trigger.REFUSED, {_P.UNOBSERVED, _P.UNREADY}, _P.ABSENT),
    (Trigger.LOST, {_P.READY, _P.UNREADY}, _P.LOST),
    (Trigger.GONE, {_P.UNOBSERVED, _P.LOST}, _P.CRASHED),
    (Trigger.QUIET, {_P.UNOBSERVED, _P.READY, _P.UNREADY, _P.LOST}, _P.ABSENT),
    (Trigger.UNREACHED, {_P.UNOBSERVED, _P.LOADING}, _P.UNREACHED),
    (Trigger.APPEARED, _ALL, _P.LOADING),
    (Trigger.WAITING, {_P.UNOBSERVED, _P.UNREACHED}, _P.LOADING),
    (Trigger.STALLED, {_P.UNOBSERVED, _P.LOADING}, _P.STALLED),
    (Trigger.PROGRESSED, {_P.STALLED}, _P.LOADING),
    (Trigger.END_BEGAN, (ALIVE_PHASES | {_P.UNOBSERVED}) - _LEAVING - _STOPPING, _P.ENDING),
    (Trigger.REOPENED, _LEAVING, _P.READY),
    (Trigger.OVERDUE, {_P.ENDING, _P.KILLING}, _P.OVERDUE),
    (Trigger.ENDED_STOPPED, ALIVE_PHASES | {_P.UNOBSERVED}, _P.ABSENT),
    (Trigger.ENDED_CRASHED, ALIVE_PHASES | {_P.UNOBSERVED}, _P.CRASHED),
    (Trigger.START, IDLE_PHASES, _P.PREPARING),
    (Trigger.START_REFUSED, {_P.PREPARING}, _P.REFUSED),
    (Trigger.CALLED_OFF, (IDLE_PHASES - {_P.ABSENT}) | {_P.PREPARING}, _P.ABSENT),
    (Trigger.STOP, ALIVE_PHASES - _STOPPING, _P.TERMINATING),
    (Trigger.KILL, {_P.TERMINATING, _P.ENDING}, _P.KILLING),
    (Trigger.BACKING_OFF, ALIVE_PHASES | {_P.UNOBSERVED}, _P.BACKOFF),
    (Trigger.GIVE_UP, IDLE_PHASES | {_P.UNOBSERVED}, _P.GAVE_UP),
)


def _expand() -> Mapping[tuple[Phase, Trigger], Phase]:
    table = {(phase, trigger): phase for phase in Phase for trigger in Trigger}
    for trigger, phases, target in _MOVES:
        table.update({(phase, trigger): target for phase in phases})
    return MappingProxyType(table)


TRANSITIONS: Final = _expand()
"""(phase, trigger) → phase, complete: a cell that maps a phase to itself changes nothing."""
