"""Why a server could not be started."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason


class StartError(Exception):
    """A start came to nothing; `detail` is a sentence that says why and what to do, no secret."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
