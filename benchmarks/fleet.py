"""Many external servers: CPU per probe and per server, and the page of all of them."""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.process import cpu_seconds, memory
from benchmarks.programs import (
    BLACKBOX,
    NODE,
    NotMeasurableError,
    agent,
    blackbox_exporter,
    farm,
    is_installed,
    node_exporter,
    running_servers,
)
from benchmarks.result import Peer, Result
from benchmarks.rows import (
    FLEET_200_CPU,
    FLEET_200_PAGE,
    FLEET_1000_CPU,
    FLEET_1000_PAGE,
    PROBE_CPU,
)
from benchmarks.scraper import NoAnswerError, Scraper
from benchmarks.session import PROBE_SECONDS, SCRAPE_SECONDS
from benchmarks.statistic import median
from benchmarks.turns import Scraped, cpu_note, milliseconds, scrape_by_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.programs import Program
    from benchmarks.session import Session

SMALL_FLEET: Final = 200
LARGE_FLEET: Final = 1000
SETTLE_SECONDS: Final = 2.0
PROBERS: Final = 4
"""Connections to blackbox_exporter: one probe after another on each keeps up with 200 a second."""

PATHS: Final = ("/health", "/metrics")
"""What the agent asks in every look."""

PAGE_AGENTS: Final = 4
PAGE_INTERVAL_SECONDS: Final = 4.0
"""Each of the agents is scraped once in that time: one sample a second."""

HUGE_PAGE_SECONDS: Final = 0.5

_PROBES: Final = re.compile(rb"^vllm_agent_probe_requests_total\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class _Windows:
    """CPU in windows of one interval each, of the agent and of its peer at the same time."""

    servers: int
    probes_per_window: float = 0.0
    own_cpu_seconds: list[float] = field(default_factory=list)
    peer_cpu_seconds: list[float] = field(default_factory=list)
    peer_probes: list[int] = field(default_factory=list)
    page_seconds: list[float] = field(default_factory=list)
    resident_mib: float = 0.0

    def own_core_percent(self) -> tuple[float, ...]:
        return tuple(100 * seconds / PROBE_SECONDS for seconds in self.own_cpu_seconds)

    def peer_core_percent(self) -> tuple[float, ...]:
        """At the rate of the agent."""
        pairs = zip(self.peer_cpu_seconds, self.peer_probes, strict=True)
        return tuple(
            100 * seconds / PROBE_SECONDS * self.probes_per_window / probes
            for seconds, probes in pairs
        )

    def own_cpu_per_probe(self) -> tuple[float, ...]:
        return tuple(seconds / self.probes_per_window for seconds in self.own_cpu_seconds)

    def peer_cpu_per_probe(self) -> tuple[float, ...]:
        pairs = zip(self.peer_cpu_seconds, self.peer_probes, strict=True)
        return tuple(seconds / probes for seconds, probes in pairs)


def measure(session: Session) -> list[Result]:
    """200 servers, then 1,000 of them, served by one process whose CPU does not count."""
    with farm(LARGE_FLEET) as listeners:
        ports = [listener.port for listener in listeners]
        small = _probe(session, ports[:SMALL_FLEET], huge_scrapes=0)
        scraped = _scrape_pages(session, ports[:SMALL_FLEET])
        large = _probe(session, ports, huge_scrapes=session.scale.huge_page_scrapes)
    return [
        _probe_cost(large, small),
        _small_fleet_cpu(small),
        _small_fleet_page(scraped),
        _flatness(large, small),
        _large_fleet_page(large),
    ]


def _probe(session: Session, ports: Sequence[int], *, huge_scrapes: int) -> _Windows:
    windows = _Windows(len(ports))
    folder = session.folder / f"fleet-{len(ports)}"
    with (
        agent(folder, ports) as watcher,
        Scraper(watcher.port) as scraper,
    ):
        with _probing(folder, ports) as prober:
            time.sleep(SETTLE_SECONDS)
            probes_before = _probes(scraper)
            _take_windows(windows, watcher, prober, scraper, session.scale.windows)
            probes = _probes(scraper) - probes_before
        windows.probes_per_window = probes / session.scale.windows
        windows.resident_mib = memory(watcher.pid).resident_mib
        for _ in range(huge_scrapes):
            windows.page_seconds.append(scraper.get().seconds)
            time.sleep(HUGE_PAGE_SECONDS)
        if (up := running_servers(scraper.get().body)) != len(ports):
            raise NotMeasurableError(f"{up} of {len(ports)} servers were running at the end")
    return windows


def _take_windows(
    windows: _Windows, watcher: Program, prober: _Prober | None, scraper: Scraper, count: int
) -> None:
    began = time.perf_counter()
    next_scrape = began + SCRAPE_SECONDS / 2
    for number in range(count):
        cpu_before = cpu_seconds(watcher.pid)
        peer_before = prober.cpu_and_probes() if prober is not None else (0.0, 0)
        end = began + (number + 1) * PROBE_SECONDS
        while next_scrape < end:
            time.sleep(max(0.0, next_scrape - time.perf_counter()))
            windows.page_seconds.append(scraper.get().seconds)
            next_scrape += SCRAPE_SECONDS
        time.sleep(max(0.0, end - time.perf_counter()))
        windows.own_cpu_seconds.append(cpu_seconds(watcher.pid) - cpu_before)
        if prober is not None:
            cpu, probes = prober.cpu_and_probes()
            windows.peer_cpu_seconds.append(cpu - peer_before[0])
            windows.peer_probes.append(probes - peer_before[1])


def _probes(scraper: Scraper) -> float:
    return sum(float(value) for value in _PROBES.findall(scraper.get().body))


class _Prober:
    """Drives blackbox_exporter as the agent probes: each path of each target once per interval."""

    def __init__(self, program: Program, ports: Sequence[int]) -> None:
        self._program = program
        self._ports = ports
        self._ended = threading.Event()
        self._counts = [0] * PROBERS
        self._failures = 0
        self._threads = [
            threading.Thread(target=self._probe, args=(number,)) for number in range(PROBERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def cpu_and_probes(self) -> tuple[float, int]:
        """What it has used so far, and for how many probes.

        Raises:
            NotMeasurableError: it called a target down that was not.
        """
        if self._failures:
            raise NotMeasurableError(f"blackbox_exporter failed {self._failures} probes")
        return cpu_seconds(self._program.pid), sum(self._counts)

    def _probe(self, number: int) -> None:
        targets = [
            f"/probe?module=http_2xx&target=http://127.0.0.1:{port}{path}"
            for port in self._ports[number::PROBERS]
            for path in PATHS
        ]
        pause = PROBE_SECONDS / len(targets)
        due = time.perf_counter()
        with Scraper(self._program.port) as scraper:
            while not self._ended.wait(max(0.0, due - time.perf_counter())):
                target = targets[self._counts[number] % len(targets)]
                due += pause
                try:
                    is_up = b"\nprobe_success 1" in scraper.get(target).body
                except (OSError, NoAnswerError):
                    is_up = False
                self._failures += not is_up
                self._counts[number] += 1


@contextmanager
def _probing(folder: Path, ports: Sequence[int]) -> Iterator[_Prober | None]:
    if not is_installed(BLACKBOX):
        yield None
        return
    with blackbox_exporter(folder) as program:
        prober = _Prober(program, ports)
        prober.start()
        try:
            yield prober
        finally:
            prober.stop()


def _scrape_pages(session: Session, ports: Sequence[int]) -> list[Scraped]:
    """Scrapes agents with all these servers, each probed again in between, and node_exporter."""
    interval = f"{PAGE_INTERVAL_SECONDS:g}s"
    with ExitStack() as stack:
        programs = [
            stack.enter_context(agent(session.folder / f"page-{number}", ports, interval))
            for number in range(PAGE_AGENTS)
        ]
        if is_installed(NODE):
            programs.append(stack.enter_context(node_exporter(session.folder / "page")))
        scraped = [
            Scraped(program, stack.enter_context(Scraper(program.port))) for program in programs
        ]
        time.sleep(SETTLE_SECONDS)
        scrape_by_turns(scraped, session.scale.large_page_rounds, PAGE_INTERVAL_SECONDS)
    return scraped


def _peer(samples: tuple[float, ...]) -> Peer:
    return Peer("blackbox_exporter", samples) if samples else Peer.missing("blackbox_exporter")


def _probe_cost(large: _Windows, small: _Windows) -> Result:
    own, peer = large.own_cpu_per_probe(), large.peer_cpu_per_probe()
    ratios = [ours / theirs for ours, theirs in zip(own, peer, strict=False)]
    note = (
        f"{len(own)} windows of {PROBE_SECONDS:g} s, {large.probes_per_window:.0f} probes each; "
        f"all CPU of the agent over its probes, with a scrape every {SCRAPE_SECONDS:g} s; a look "
        f"(/health, and /metrics of 55 kB) costs {2e6 * median(own):.0f} µs"
    )
    if peer:
        per_probe = 1e6 * median(small.own_cpu_per_probe())
        of_peer = 1e6 * median(small.peer_cpu_per_probe())
        note += (
            f". blackbox_exporter at the same time, same targets, paths and rate, http_2xx; with "
            f"{small.servers} servers {per_probe:.0f} µs beside {of_peer:.0f} µs"
        )
    return Result(
        PROBE_CPU,
        tuple(1e6 * seconds for seconds in own),
        _peer(tuple(1e6 * seconds for seconds in peer)),
        median(ratios) if ratios else None,
        (note,),
    )


def _small_fleet_cpu(small: _Windows) -> Result:
    note = (
        f"{len(small.own_cpu_seconds)} windows of {PROBE_SECONDS:g} s; "
        f"resident memory {small.resident_mib:.0f} MiB"
    )
    return Result(
        FLEET_200_CPU, small.own_core_percent(), _peer(small.peer_core_percent()), notes=(note,)
    )


def _small_fleet_page(scraped: Sequence[Scraped]) -> Result:
    own, nodes = scraped[:PAGE_AGENTS], scraped[PAGE_AGENTS:]
    latencies = milliseconds(seconds for one in own for seconds in one.answer_seconds)
    peer = Peer.missing("node_exporter")
    if nodes:
        peer = Peer("node_exporter", milliseconds(nodes[0].answer_seconds))
    note = (
        f"{len(latencies)} scrapes of {len(own)} agents, each server probed since the scrape "
        f"before (interval {PAGE_INTERVAL_SECONDS:g} s), {own[0].series} series; node_exporter, "
        f"with a page of another size, shows what the machine did meanwhile. {cpu_note(own)}"
    )
    return Result(FLEET_200_PAGE, latencies, peer, notes=(note,))


def _flatness(large: _Windows, small: _Windows) -> Result:
    ratio = (median(large.own_cpu_seconds) / large.servers) / (
        median(small.own_cpu_seconds) / small.servers
    )
    note = (
        f"all {large.servers:,} running; {median(large.own_core_percent()):.1f} % of a core, "
        f"{small.servers} servers {median(small.own_core_percent()):.1f} %; resident memory "
        f"{large.resident_mib:.0f} MiB"
    )
    return Result(FLEET_1000_CPU, (ratio,), notes=(note,))


def _large_fleet_page(large: _Windows) -> Result:
    samples = milliseconds(large.page_seconds)
    note = (
        f"{len(samples)} scrapes, the first of them {SCRAPE_SECONDS:g} s apart and beside a "
        f"working blackbox_exporter, the others {HUGE_PAGE_SECONDS:g} s"
    )
    return Result(FLEET_1000_PAGE, samples, notes=(note,))
