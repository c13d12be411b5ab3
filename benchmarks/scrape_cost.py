"""What one scrape of 8 servers costs, and how long it takes, beside node_exporter."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks.gpus import await_attributed, fake_driver
from benchmarks.local_servers import holders, servers
from benchmarks.programs import (
    NODE,
    agent,
    external_server,
    farm,
    is_installed,
    local_server,
    node_exporter,
)
from benchmarks.result import Peer, Result
from benchmarks.rows import LOCAL_PAGE_8, PAGE_8, SERIES_CPU
from benchmarks.scraper import Scraper
from benchmarks.turns import Scraped, cpu_note, milliseconds, scrape_by_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.rows import Row
    from benchmarks.session import Session

SERVERS: Final = 8
AGENTS: Final = 4
INTERVAL_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 2.0


def measure(session: Session) -> list[Result]:
    """External servers, from canned bytes."""
    with farm(SERVERS) as listeners:
        ports = [listener.port for listener in listeners]
        own, nodes = _scrape(session, "scraped", ports, external_server)
    return [_cost(own, nodes), _latency(PAGE_8, own, nodes)]


def measure_local(session: Session) -> list[Result]:
    """Local servers that hold a GPU each; processes, logs and sockets are followed as well."""
    folder = session.folder / "scraped-local"
    with servers(folder, SERVERS) as started:
        ports = [server.port for server in started]
        environment = fake_driver(folder, holders(started)).environment()
        own, nodes = _scrape(session, folder.name, ports, local_server, environment)
    return [_latency(LOCAL_PAGE_8, own, nodes)]


def _scrape(
    session: Session,
    name: str,
    ports: Sequence[int],
    server: Callable[[int, int, str], str],
    environment: Mapping[str, str] | None = None,
) -> tuple[Sequence[Scraped], Sequence[Scraped]]:
    """Scrapes agents and node_exporter by turns, each server probed again in between."""
    interval = f"{INTERVAL_SECONDS:g}s"
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                agent(session.folder / f"{name}-{number}", ports, interval, server, environment)
            )
            for number in range(AGENTS)
        ]
        if environment is not None:
            for program in programs:
                await_attributed(program, len(ports))
        if is_installed(NODE):
            programs.append(stack.enter_context(node_exporter(session.folder / name)))
        scraped = [
            Scraped(program, stack.enter_context(Scraper(program.port))) for program in programs
        ]
        time.sleep(SETTLE_SECONDS)
        scrape_by_turns(scraped, session.scale.small_page_rounds, INTERVAL_SECONDS)
    return scraped[:AGENTS], scraped[AGENTS:]


def _cost(own: Sequence[Scraped], nodes: Sequence[Scraped]) -> Result:
    costs = _microseconds_per_series(own)
    note = (
        f"{len(costs)} scrapes with CPU at rest subtracted; the ratio is that of the means, in "
        f"which garbage collection counts: {_mean(costs):.2f} µs of {own[0].series} series"
    )
    if not nodes:
        return Result(SERIES_CPU, costs, Peer.missing("node_exporter"), notes=(note,))
    of_peer = _microseconds_per_series(nodes)
    note += f", node_exporter {_mean(of_peer):.2f} µs of {nodes[0].series}"
    ratio = _mean(costs) / _mean(of_peer)
    return Result(SERIES_CPU, costs, Peer("node_exporter", of_peer), ratio, (note,))


def _latency(row: Row, own: Sequence[Scraped], nodes: Sequence[Scraped]) -> Result:
    latencies = milliseconds(seconds for one in own for seconds in one.answer_seconds)
    peer = Peer.missing("node_exporter")
    if nodes:
        peer = Peer("node_exporter", milliseconds(nodes[0].answer_seconds))
    note = (
        f"{len(latencies)} scrapes of {len(own)} agents, each server probed since the scrape "
        f"before (interval {INTERVAL_SECONDS:g} s), {own[0].series} series. {cpu_note(own)}"
    )
    return Result(row, latencies, peer, notes=(note,))


def _microseconds_per_series(scraped: Sequence[Scraped]) -> tuple[float, ...]:
    return tuple(1e6 * cost for one in scraped for cost in one.cpu_seconds_per_series())


def _mean(samples: Sequence[float]) -> float:
    return sum(samples) / len(samples)
