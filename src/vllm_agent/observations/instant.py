"""One moment on both clocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on both clocks: monotonic for durations and deadlines, unix for people."""

    monotonic_seconds: float
    unix_seconds: float

    def since(self, earlier: Instant) -> float:
        """Seconds from `earlier` to here, by the clock that never steps."""
        return self.monotonic_seconds - earlier.monotonic_seconds
