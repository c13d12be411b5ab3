"""What is asked of a managed server, and how far the agent is with it: frozen values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from vllm_agent.lifecycle.states import Initiator, Phase

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.observations import Instant


class Wish(StrEnum):
    """What an operator may ask of a managed server."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why it ended, was refused or was stopped last, and how often in a row for that reason.

    `has_served` is whether the launch that ended for it had served, `holder` who has what a refused
    start needs; empty where nobody is known to.
    """

    reason: Reason
    detail: str
    times: int = 1
    has_served: bool = False
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Why a launch that lives is to be stopped and followed by another.

    `trouble` is None where nothing is wrong with it: an operator or a new configuration wants it.
    """

    initiator: Initiator
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop under way: when it began, when SIGTERM was sent last, and whether SIGKILL was."""

    since: Instant
    signalled: Instant
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class StopOutcome:
    """How the last stop went, until nothing of the launch was left."""

    launch_number: int
    seconds: float
    is_forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Management:
    """What is asked of a managed server, and how far the agent is with it.

    `is_goal_up` is whether an operator wants it up, `model` the one that an operator chose instead
    of the configured one, `model_before` the one that it replaced, until the new one has served.
    `requests` counts what operators asked, `attempts` the starts that this
    agent tried. `initiator` is whose start is under way, or was the last. `replacement` is set
    while the launch that lives is to be followed by another, `stop` while it is being stopped.
    `is_clear` is whether nothing of a launch before is left, `is_clearing` whether that is being
    seen to, `gone_since` when the last launch
    ended or was refused: the delay counts from there. `is_leaving` is whether the agent ends and
    takes it along. `is_dry_run_told` is whether it was told what would be done but for
    `restart.dry_run`.
    """

    is_goal_up: bool = True
    model: str | None = None
    model_before: str | None = None
    requests: int = 0
    attempts: int = 0
    initiator: Initiator | None = None
    replacement: Replacement | None = None
    stop: Stop | None = None
    last_stop: StopOutcome | None = None
    is_clear: bool = True
    is_clearing: bool = False
    gone_since: Instant | None = None
    trouble: Trouble | None = None
    is_leaving: bool = False
    is_dry_run_told: bool = False

    @classmethod
    def begun(cls, memory: Memory | None) -> Management:
        """What is asked at the start of an agent, by what the agent before it knew."""
        if memory is None or memory.is_goal_up is None:
            # What is remembered was somebody else's, and may live: it is not cleared away.
            return cls()
        # Its stop was one half of a restart.
        is_replaced = memory.is_goal_up and memory.phase in {Phase.TERMINATING, Phase.KILLING}
        return cls(
            is_goal_up=memory.is_goal_up,
            model=memory.chosen_model,
            replacement=Replacement(Initiator.AGENT) if is_replaced else None,
            is_clear=memory.process is None,
        )
