"""What one scrape costs, with every server looked at since the scrape before.

The agent keeps the text of a server until the next look at it. A Prometheus comes less often than
the looks, so it never meets kept text, and neither may a benchmark: the servers are probed every
second, and each agent is scraped once a second. Several agents make several samples a second.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.process import cpu_seconds
from benchmarks.programs import NODE, agent, farm, is_installed, node_exporter
from benchmarks.result import Peer, Result
from benchmarks.rows import PAGE_8, SERIES_CPU
from benchmarks.scraper import Scraper
from benchmarks.statistic import median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.programs import Program
    from benchmarks.session import Session

SERVERS: Final = 8
AGENTS: Final = 3
ROUND_SECONDS: Final = 1.02
"""Longer than the interval of the probes, which counts from the start of a look."""

SETTLE_SECONDS: Final = 2.0
AFTERWARDS_SECONDS: Final = 0.03
"""How long after an answer its cost still counts: garbage collectors run later."""


@dataclass(slots=True)
class _Scraped:
    """One program under scrapes, and what they cost it; the time between them tells its rest."""

    program: Program
    scraper: Scraper
    answer_seconds: list[float] = field(default_factory=list)
    scrape_cpu_seconds: list[float] = field(default_factory=list)
    scrape_wall_seconds: float = 0.0
    rest_cpu_seconds: float = 0.0
    rest_wall_seconds: float = 0.0
    series: int = 0
    _cpu_after: float = 0.0
    _after: float = 0.0

    def scrape(self) -> None:
        began, cpu_before = time.perf_counter(), cpu_seconds(self.program.pid)
        if self._after:
            self.rest_cpu_seconds += cpu_before - self._cpu_after
            self.rest_wall_seconds += began - self._after
        answer = self.scraper.get()
        time.sleep(AFTERWARDS_SECONDS)
        self._after, self._cpu_after = time.perf_counter(), cpu_seconds(self.program.pid)
        self.answer_seconds.append(answer.seconds)
        self.scrape_cpu_seconds.append(self._cpu_after - cpu_before)
        self.scrape_wall_seconds += self._after - began
        self.series = answer.series

    def rest_share(self) -> float:
        """CPU seconds per second without scrapes."""
        return self.rest_cpu_seconds / self.rest_wall_seconds

    def cpu_seconds_per_series(self) -> tuple[float, ...]:
        """Of each scrape, without what the program needs at rest."""
        rest = self.rest_share() * self.scrape_wall_seconds / len(self.scrape_cpu_seconds)
        return tuple((cpu - rest) / self.series for cpu in self.scrape_cpu_seconds)


def measure(session: Session) -> list[Result]:
    """Scrapes agents and node_exporter by turns."""
    with ExitStack() as stack:
        ports = [listener.port for listener in stack.enter_context(farm(SERVERS))]
        agents = [
            stack.enter_context(agent(session.folder / f"scraped-{number}", ports, "1s"))
            for number in range(AGENTS)
        ]
        nodes = []
        if is_installed(NODE):
            nodes.append(stack.enter_context(node_exporter(session.folder)))
        scraped = [
            _Scraped(program, stack.enter_context(Scraper(program.port)))
            for program in (*agents, *nodes)
        ]
        time.sleep(SETTLE_SECONDS)
        _scrape_by_turns(scraped, session.scale.small_page_rounds)
    return _results(scraped[:AGENTS], scraped[AGENTS:])


def _scrape_by_turns(scraped: Sequence[_Scraped], rounds: int) -> None:
    began = time.perf_counter()
    for turn in range(rounds * len(scraped)):
        due = began + turn * ROUND_SECONDS / len(scraped)
        time.sleep(max(0.0, due - time.perf_counter()))
        scraped[turn % len(scraped)].scrape()


def _results(own: Sequence[_Scraped], nodes: Sequence[_Scraped]) -> list[Result]:
    latencies = tuple(1000 * seconds for one in own for seconds in one.answer_seconds)
    costs = tuple(1e6 * cost for one in own for cost in one.cpu_seconds_per_series())
    cpu_mean, cpu_note = _mean(costs), f"{own[0].series} series a page; mean {_mean(costs):.2f} µs"
    page_peer = cpu_peer = Peer.missing("node_exporter")
    ratio = None
    if nodes:
        node_latencies = tuple(1000 * seconds for seconds in nodes[0].answer_seconds)
        node_costs = tuple(1e6 * cost for cost in nodes[0].cpu_seconds_per_series())
        page_peer = Peer("node_exporter", node_latencies)
        cpu_peer = Peer("node_exporter", node_costs)
        ratio = cpu_mean / _mean(node_costs)
        cpu_note += f", node_exporter: {nodes[0].series} series, mean {_mean(node_costs):.2f} µs"
    page_note = (
        f"{len(latencies)} scrapes of {len(own)} agents, each server probed since the scrape "
        f"before (interval 1 s)"
    )
    page_ms = 1000 * median([cost for one in own for cost in one.scrape_cpu_seconds])
    cpu_note = (
        f"{len(costs)} scrapes; {cpu_note}; the ratio is that of the means, in which garbage "
        f"collection counts; CPU at rest subtracted; {page_ms:.2f} ms a scrape"
    )
    return [
        Result(SERIES_CPU, costs, cpu_peer, ratio, notes=(cpu_note,)),
        Result(PAGE_8, latencies, page_peer, notes=(page_note,)),
    ]


def _mean(samples: Sequence[float]) -> float:
    return sum(samples) / len(samples)
