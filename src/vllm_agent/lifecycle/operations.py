"""What an operator asked of a managed server came to. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason


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
