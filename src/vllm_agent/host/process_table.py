"""Every process of the host at one moment, read once for all who ask at about the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import Instant

CACHE_SECONDS: Final = 0.5
"""A list is good for this long: when an agent starts it follows many launches at once, and a list
of 1,000 processes takes 10 ms. What came later is added when discovery tells of it."""


class ProcessTable:
    """The processes of the host, as far as `proc` shows them."""

    def __init__(self, proc: Proc, clock: Callable[[], Instant]) -> None:
        self._proc = proc
        self._clock = clock
        self._stats: list[ProcessStat] = []
        self._read_at: Instant | None = None

    def now(self) -> Sequence[ProcessStat]:
        """All processes; some may have ended since."""
        now = self._clock()
        if self._read_at is None or now.since(self._read_at) > CACHE_SECONDS:
            stats = (self._proc.stat(pid) for pid in self._proc.pids())
            self._stats = [stat for stat in stats if stat is not None]
            self._read_at = now
        return self._stats

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Processes that are new since."""
        if self._read_at is not None and self._clock().since(self._read_at) <= CACHE_SECONDS:
            self._stats = [*self._stats, *stats]
        else:
            self._stats, self._read_at = [], None
