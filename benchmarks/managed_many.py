"""An agent with many managed servers: CPU at rest, memory, and the page of all of them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from benchmarks.managed_servers import launched_pids, managed_config, none_left
from benchmarks.process import memory
from benchmarks.programs import await_running, free_port, started_agent
from benchmarks.rest import rest_percent
from benchmarks.result import Result
from benchmarks.rows import MANAGED_50_CPU, MANAGED_50_MEMORY, MANAGED_50_PAGE
from benchmarks.scraper import Scraper
from benchmarks.session import SCRAPE_SECONDS
from benchmarks.turns import Scraped, cpu_note, milliseconds, scrape_by_turns

if TYPE_CHECKING:
    from benchmarks.session import Session

SERVERS: Final = 50

START_SECONDS: Final = 180.0
"""For all of them to serve: 150 interpreters are started at once."""

PAGE_INTERVAL_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 2.0


def measure(session: Session) -> list[Result]:
    """An agent starts all of them and is left alone; a second one takes them over."""
    folder = session.folder / "managed-many"
    ports = [free_port() for _ in range(SERVERS)]
    with none_left(folder):
        began = time.perf_counter()
        with started_agent(folder, managed_config(folder, ports, "10s")) as first:
            await_running(first, SERVERS, START_SECONDS)
            start_seconds = time.perf_counter() - began
            processes = len(launched_pids(folder))
            (windows,) = rest_percent([first], session.scale.rest_windows)
            memory_at_rest = memory(first.pid)
        began = time.perf_counter()
        interval = f"{PAGE_INTERVAL_SECONDS:g}s"
        with started_agent(folder, managed_config(folder, ports, interval)) as second:
            await_running(second, SERVERS)
            adopt_seconds = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)
            with Scraper(second.port) as scraper:
                scraped = Scraped(second, scraper)
                scrape_by_turns([scraped], session.scale.small_page_rounds, PAGE_INTERVAL_SECONDS)
    rest_note = (
        f"{len(windows)} windows of {SCRAPE_SECONDS:g} s, each with one scrape; {processes} "
        f"processes in {SERVERS} servers, which all ran {start_seconds:.0f} s after the start of "
        f"the agent, on {os.cpu_count()} cores"
    )
    page_note = (
        f"{len(scraped.answer_seconds)} scrapes of a second agent, to which all of them ran "
        f"{adopt_seconds:.1f} s after its start, each probed since the scrape before (interval "
        f"{interval}), {scraped.series} series. {cpu_note([scraped])}. The bar is that of 200 "
        "servers that are only known by their URL"
    )
    memory_note = (
        f"the bar is that of 8 servers; proportional set {memory_at_rest.proportional_mib:.1f} MiB"
    )
    return [
        Result(MANAGED_50_CPU, windows, notes=(rest_note,)),
        Result(MANAGED_50_MEMORY, (memory_at_rest.resident_mib,), notes=(memory_note,)),
        Result(MANAGED_50_PAGE, milliseconds(scraped.answer_seconds), notes=(page_note,)),
    ]
