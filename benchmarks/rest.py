"""An agent left alone: CPU at rest, memory, and whether it grows."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from benchmarks.process import cpu_seconds, memory
from benchmarks.programs import NODE, agent, farm, is_installed, node_exporter
from benchmarks.result import Peer, Result
from benchmarks.rows import FLAT_MEMORY, MEMORY_8, REST_CPU_8
from benchmarks.scraper import Scraper
from benchmarks.session import SCRAPE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.programs import Program
    from benchmarks.session import Session

SERVERS: Final = 8
FAST_SCRAPE_SECONDS: Final = 5.0


def measure(session: Session) -> list[Result]:
    """An agent at the default interval beside node_exporter, both scraped as Prometheus does."""
    with ExitStack() as stack:
        ports = [listener.port for listener in stack.enter_context(farm(SERVERS))]
        programs = [stack.enter_context(agent(session.folder / "rest", ports))]
        if is_installed(NODE):
            programs.append(stack.enter_context(node_exporter(session.folder / "rest")))
        windows = rest_percent(programs, session.scale.rest_windows)
        memories = [memory(program.pid) for program in programs]
    peers = [Peer.missing("node_exporter")] * 2
    if len(programs) > 1:
        peers = [
            Peer("node_exporter", windows[1]),
            Peer("node_exporter", (memories[1].resident_mib,)),
        ]
    own = memories[0]
    rest_note = f"{len(windows[0])} windows of {SCRAPE_SECONDS:g} s, each with one scrape"
    memory_note = (
        f"proportional set {own.proportional_mib:.1f} MiB beside other agents of this run; the "
        "nearest peer in Python is beside gpu-memory"
    )
    return [
        Result(MEMORY_8, (own.resident_mib,), peers[1], notes=(memory_note,)),
        Result(REST_CPU_8, windows[0], peers[0], notes=(rest_note,)),
    ]


def rest_percent(programs: Sequence[Program], count: int) -> list[tuple[float, ...]]:
    """CPU of each program in % of a core, in windows that begin and end between two scrapes.

    What happens in the `SCRAPE_SECONDS` before the first window does not count.
    """
    with ExitStack() as stack:
        scrapers = [stack.enter_context(Scraper(program.port)) for program in programs]
        marks: list[list[float]] = [[] for _ in programs]
        began = time.perf_counter()
        for window in range(count + 2):
            for program, scraper, cpu in zip(programs, scrapers, marks, strict=True):
                cpu.append(cpu_seconds(program.pid))
                scraper.get()
            if window <= count:
                due = began + (window + 1) * SCRAPE_SECONDS
                time.sleep(max(0.0, due - time.perf_counter()))
    return [
        tuple(100 * (after - before) / SCRAPE_SECONDS for before, after in pairwise(cpu[1:]))
        for cpu in marks
    ]


def measure_growth(session: Session) -> list[Result]:
    """Memory of an agent that probes every second, early and later."""
    early, late = session.scale.flat_from_seconds, session.scale.flat_until_seconds
    with farm(SERVERS) as listeners:
        ports = [listener.port for listener in listeners]
        with agent(session.folder / "growth", ports, "1s") as watcher:
            before = _resident_after(watcher, early)
            after = _resident_after(watcher, late - early)
    note = (
        f"{before:.2f} MiB after {early:g} s, {after:.2f} MiB after {late:g} s, scraped every "
        f"{FAST_SCRAPE_SECONDS:g} s; the hour is for `make soak`"
    )
    return [Result(FLAT_MEMORY, (after - before,), notes=(note,))]


def _resident_after(watcher: Program, seconds: float) -> float:
    end = time.perf_counter() + seconds
    with Scraper(watcher.port) as scraper:
        while (left := end - time.perf_counter()) > 0:
            scraper.get()
            time.sleep(min(FAST_SCRAPE_SECONDS, left))
    return memory(watcher.pid).resident_mib
