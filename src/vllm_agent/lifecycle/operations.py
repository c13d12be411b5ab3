"""What an operator asked of a managed server came to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.states import IDLE_PHASES, SERVABLE_PHASES, Phase

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.server_life import ServerLife

_FAILED_STARTS: Final = frozenset({Phase.REFUSED, Phase.BACKOFF, Phase.GAVE_UP})


class Outcome(StrEnum):
    """What a request came to."""

    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    UNDER_WAY = "under_way"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to: a sentence on it, and the reason where it failed."""

    outcome: Outcome
    message: str
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of a server, and how many starts and launches it had had then.

    `model` is the one to serve, None for the configured one.
    """

    wish: Wish
    attempts: int
    launches: int
    model: str | None = None

    @classmethod
    def made(cls, wish: Wish, life: ServerLife) -> Request:
        """A request at the time at which `life` had taken note of it."""
        asked = life.management
        if asked is None:
            return cls(wish, 0, life.tally.launches)
        return cls(wish, asked.attempts, life.tally.launches, asked.model)


def answer(life: ServerLife, request: Request) -> Answer | None:
    """What `request` came to by now; None while that is open."""
    management = life.management
    if management is None:
        return None
    if management.is_leaving:
        return Answer(Outcome.SUPERSEDED, "the agent ends")
    if management.is_goal_up is (request.wish is Wish.STOP):
        other = "start" if management.is_goal_up else "stop"
        return Answer(Outcome.SUPERSEDED, f"a later request to {other} it took its place")
    if request.wish is Wish.STOP:
        return _stopped(life)
    if management.model != request.model:
        return Answer(Outcome.SUPERSEDED, "a later request for another model took its place")
    return _started(life, request)


def needs_start(life: ServerLife) -> bool:
    """Whether a managed server comes up only if an operator asks for it."""
    management = life.management
    if management is None or life.phase is Phase.UNOBSERVED:
        return False
    is_held_back = life.phase is Phase.ABSENT and life.is_in_maintenance
    return not management.is_goal_up or life.phase is Phase.GAVE_UP or is_held_back


def answer_on_health(life: ServerLife) -> Answer | None:
    """Whether a managed server that is to be up serves; None while that is open."""
    management = life.management
    if management is None or management.replacement is not None:
        return None
    if life.phase is Phase.READY:
        return Answer(Outcome.DONE, "it is running")
    if management.is_leaving or not management.is_goal_up:
        return Answer(Outcome.SUPERSEDED, "it was asked to stop")
    if life.phase is Phase.GAVE_UP:
        return Answer(Outcome.FAILED, life.detail, life.reason)
    return None


def still_open(life: ServerLife) -> Answer:
    """What is told when the time of a request is over before there is an answer."""
    return Answer(Outcome.UNDER_WAY, _said(life), life.reason)


def answer_on_leaving(life: ServerLife) -> Answer | None:
    """Whether nothing is left of a managed server; None while something is."""
    management = life.management
    if management is None or (life.phase in IDLE_PHASES and management.is_clear):
        return Answer(Outcome.DONE, "nothing of it is left")
    return None


def report_on_health(life: ServerLife) -> Answer:
    """Whether a server that is only watched serves."""
    if life.phase is Phase.READY:
        return Answer(Outcome.DONE, "it is running")
    return Answer(Outcome.FAILED, _said(life), life.reason)


def _said(life: ServerLife) -> str:
    return f"it is {life.state}: {life.detail}" if life.detail else f"it is {life.state}"


def _stopped(life: ServerLife) -> Answer | None:
    management = life.management
    if life.phase is Phase.OVERDUE:
        return Answer(Outcome.FAILED, life.detail, life.reason)
    if management is None or life.phase is not Phase.ABSENT or not management.is_clear:
        return None
    return Answer(Outcome.DONE, "it is stopped")


def _started(life: ServerLife, request: Request) -> Answer | None:
    management = life.management
    if life.phase is Phase.OVERDUE:
        return Answer(Outcome.FAILED, life.detail, life.reason)
    if management is None or management.replacement is not None:
        return None
    has_tried = management.attempts > request.attempts
    if life.phase in _FAILED_STARTS and has_tried:
        return Answer(Outcome.FAILED, life.detail, life.reason)
    is_new = life.tally.launches > request.launches
    if life.phase in SERVABLE_PHASES and (is_new or request.wish is Wish.START):
        return Answer(Outcome.DONE, "it is there")
    return None
