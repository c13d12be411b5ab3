"""Scrapes several programs by turns, and accounts what each scrape costs them.

The agent keeps the text of a server until the next look at it. A Prometheus comes less often than
the looks, so it never meets kept text, and neither may a benchmark: a round is longer than the
interval of the probes, and several agents with the same servers make several samples a round.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.process import cpu_seconds
from benchmarks.statistic import median, p99

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.programs import Program
    from benchmarks.scraper import Scraper

AFTERWARDS_SECONDS: Final = 0.03
"""How long after an answer its cost still counts: garbage collectors run later."""

ROUND_MARGIN: Final = 1.02
"""A round is longer than the interval by this factor: looks jitter, and one must lie between."""


@dataclass(slots=True)
class Scraped:
    """One program under scrapes, and what they cost it; the time between them tells its rest."""

    program: Program
    scraper: Scraper
    answer_seconds: list[float] = field(default_factory=list)
    answer_cpu_seconds: list[float] = field(default_factory=list)
    series: int = 0
    _cost_seconds: list[float] = field(default_factory=list)
    _cost_wall_seconds: float = 0.0
    _rest_cpu_seconds: float = 0.0
    _rest_wall_seconds: float = 0.0
    _ended: float | None = None
    _cpu_at_end: float = 0.0

    def scrape(self) -> None:
        """One scrape as Prometheus does, and `AFTERWARDS_SECONDS` of waiting for what follows."""
        pid = self.program.pid
        began, cpu_at_begin = time.perf_counter(), cpu_seconds(pid)
        if self._ended is not None:
            self._rest_cpu_seconds += cpu_at_begin - self._cpu_at_end
            self._rest_wall_seconds += began - self._ended
        answer = self.scraper.get()
        self.answer_seconds.append(answer.seconds)
        self.answer_cpu_seconds.append(cpu_seconds(pid) - cpu_at_begin)
        time.sleep(AFTERWARDS_SECONDS)
        self._ended, self._cpu_at_end = time.perf_counter(), cpu_seconds(pid)
        self._cost_seconds.append(self._cpu_at_end - cpu_at_begin)
        self._cost_wall_seconds += self._ended - began
        self.series = answer.series

    def cpu_seconds_per_series(self) -> tuple[float, ...]:
        """Of each scrape, without what the program needs at rest; at least two are needed."""
        rest_share = self._rest_cpu_seconds / self._rest_wall_seconds
        rest_seconds = rest_share * self._cost_wall_seconds / len(self._cost_seconds)
        return tuple((cost - rest_seconds) / self.series for cost in self._cost_seconds)


def scrape_by_turns(scraped: Sequence[Scraped], rounds: int, probe_interval_seconds: float) -> None:
    """Scrapes each once a round, evenly spread; a round is a little longer than the interval."""
    pause = probe_interval_seconds * ROUND_MARGIN / len(scraped)
    began = time.perf_counter()
    for turn in range(rounds * len(scraped)):
        time.sleep(max(0.0, began + turn * pause - time.perf_counter()))
        scraped[turn % len(scraped)].scrape()


def milliseconds(seconds: Iterable[float]) -> tuple[float, ...]:
    """The same in ms."""
    return tuple(1000 * value for value in seconds)


def cpu_note(scraped: Sequence[Scraped]) -> str:
    """CPU time of the answers, which shows how much of a slow one was waiting for the machine."""
    cpu = [1000 * seconds for one in scraped for seconds in one.answer_cpu_seconds]
    return f"CPU time of an answer: median {median(cpu):.2f} ms, p99 {p99(cpu):.2f} ms"
