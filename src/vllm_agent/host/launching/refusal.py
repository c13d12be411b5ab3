"""Why a start is not even tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a start lacks; `detail` is a clause for people, without secrets.

    `holder` is who has what it needs, its port or GPU memory; empty where nobody is known to.
    """

    reason: Reason
    detail: str
    holder: str = ""
