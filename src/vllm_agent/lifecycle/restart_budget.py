"""How many restarts a server may still need before somebody has to look. Pure.

Each launch that follows a crash, or a launch that never served, uses one unit. Loading refills
nothing: a vLLM needs longer to load than the window lasts, so a sliding window would never be hit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """Units left of `limit`, and whether a launch has needed one that was not there."""

    limit: int
    remaining: int
    is_limit_reached: bool = False

    @classmethod
    def full(cls, limit: int) -> RestartBudget:
        """A budget nobody has used yet."""
        return cls(limit, limit)

    def after_launch(self, *, needs_unit: bool) -> RestartBudget:
        """The budget once another launch was seen."""
        if not needs_unit:
            return self
        if self.remaining == 0:
            return replace(self, is_limit_reached=True)
        return replace(self, remaining=self.remaining - 1)

    def after_running(self, running_seconds: float, window_seconds: float) -> RestartBudget:
        """The budget after that long of uninterrupted running; full again after the window."""
        return self.full(self.limit) if running_seconds >= window_seconds else self

    def with_limit(self, limit: int) -> RestartBudget:
        """The same use of a budget whose limit the operator changed."""
        used = self.limit - self.remaining
        return replace(self, limit=limit, remaining=max(0, limit - used))
