"""An event as the transition table sees it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.events import Effect
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.server_life import Ending, Launch, ServerLife
    from vllm_agent.lifecycle.transitions import Trigger


@dataclass(frozen=True, slots=True)
class Guarded:
    """The trigger that an event is, and what else its guard found out.

    `launch` and `ending` are set where they are new. `ending` may be of an older launch, or, where
    `is_amended`, one that is known already and about which more is known.
    """

    life: ServerLife
    trigger: Trigger | None = None
    reason: Reason | None = None
    detail: str = ""
    effects: tuple[Effect, ...] = ()
    launch: Launch | None = None
    ending: Ending | None = None
    is_amended: bool = False
