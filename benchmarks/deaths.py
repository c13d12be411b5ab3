"""How long a death stays unseen: by the agent, and by a blackbox_exporter scraped at intervals."""

from __future__ import annotations

import heapq
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from benchmarks.programs import (
    BLACKBOX,
    NotMeasurableError,
    agent,
    blackbox_exporter,
    farm,
    is_installed,
)
from benchmarks.result import Peer, Result
from benchmarks.rows import EXTERNAL_DEATH
from benchmarks.scraper import Scraper
from benchmarks.session import SCRAPE_SECONDS
from benchmarks.statistic import median, p99

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.programs import Listener
    from benchmarks.session import Session

SETTLE_SECONDS: Final = 2.0
UNSEEN_SECONDS: Final = 15.0
"""A death that is not shown by then was missed."""

MIN_GAP_SECONDS: Final = 0.02
MAX_GAP_SECONDS: Final = 0.12

PEER_SCRAPE_SECONDS: Final = 1.0
"""The peer is measured at this interval and scaled to that of a Prometheus: what passes before a
scrape is proportional to the interval."""

_GOLDEN_SHARE: Final = 0.6180339887


def measure(session: Session) -> list[Result]:
    """Kills servers one after another, each with SIGKILL and once only."""
    count = session.scale.deaths
    with farm(count, has_processes=True) as listeners:
        seen, looks = _watched_by_agent(session, listeners)
    peer = Peer.missing("blackbox_exporter")
    note = (
        f"{count} deaths by SIGKILL, one at a time, of {count} servers with a process each, probe "
        f"interval 10 s; /metrics of all of them polled without pause, resolution one answer: "
        f"median {median(looks) * 1000:.1f} ms, p99 {p99(looks) * 1000:.1f} ms"
    )
    if is_installed(BLACKBOX):
        with farm(count, has_processes=True) as listeners:
            unseen = _watched_by_blackbox(session, listeners)
        scale = SCRAPE_SECONDS / PEER_SCRAPE_SECONDS
        peer = Peer(
            f"blackbox_exporter at {SCRAPE_SECONDS:g} s", tuple(1000 * scale * s for s in unseen)
        )
        note += (
            f". blackbox_exporter probes once per scrape; measured at a scrape interval of "
            f"{PEER_SCRAPE_SECONDS:g} s: median {median(unseen):.2f} s, p99 {p99(unseen):.2f} s; "
            f"shown for {SCRAPE_SECONDS:g} s, times {scale:g}"
        )
    samples = tuple(1000 * seconds for seconds in seen)
    return [Result(EXTERNAL_DEATH, samples, peer, notes=(note,))]


def spread(number: int) -> float:
    """The share of [0, 1) for the n-th draw: even for any count, and no multiple of any rhythm."""
    return number * _GOLDEN_SHARE % 1


def gap_seconds(number: int) -> float:
    """How long nothing happens before the n-th death."""
    return MIN_GAP_SECONDS + spread(number) * (MAX_GAP_SECONDS - MIN_GAP_SECONDS)


def _watched_by_agent(
    session: Session, listeners: Sequence[Listener]
) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the answer that shows it, and those that one answer takes."""
    ports = [listener.port for listener in listeners]
    seen: list[float] = []
    looks: list[float] = []
    with (
        agent(session.folder / "deaths", ports) as watcher,
        Scraper(watcher.port, is_compressed=False) as scraper,
    ):
        time.sleep(SETTLE_SECONDS)
        for number, listener in enumerate(listeners):
            time.sleep(gap_seconds(number))
            failed = f'vllm_agent_server_state{{server="s{number}",state="failed"}} 1'.encode()
            died = time.perf_counter()
            os.kill(listener.pid, signal.SIGKILL)
            while True:
                answer = scraper.get()
                passed = time.perf_counter() - died
                looks.append(answer.seconds)
                if failed in answer.raw_body or passed > UNSEEN_SECONDS:
                    break
            seen.append(passed)
    return seen, looks


def _watched_by_blackbox(session: Session, listeners: Sequence[Listener]) -> list[float]:
    """Seconds from each kill to the scrape that shows it, at `PEER_SCRAPE_SECONDS`."""
    count = len(listeners)
    began = time.perf_counter() + PEER_SCRAPE_SECONDS
    scrapes = [(began + PEER_SCRAPE_SECONDS * n / count, n) for n in range(count)]
    kills = [(began + PEER_SCRAPE_SECONDS * (1 + spread(n)), n) for n in range(count)]
    due = [(moment, True, n) for moment, n in kills] + [(moment, False, n) for moment, n in scrapes]
    heapq.heapify(due)
    died: dict[int, float] = {}
    unseen: list[float] = []
    with (
        blackbox_exporter(session.folder / "deaths-blackbox") as prober,
        Scraper(prober.port) as scraper,
    ):
        while due:
            moment, is_kill, number = heapq.heappop(due)
            time.sleep(max(0.0, moment - time.perf_counter()))
            if is_kill:
                died[number] = time.perf_counter()
                os.kill(listeners[number].pid, signal.SIGKILL)
                continue
            is_up = _is_up(scraper, listeners[number])
            if number in died and not is_up:
                unseen.append(time.perf_counter() - died[number])
            elif not is_up:
                raise NotMeasurableError("blackbox_exporter missed a server that was alive")
            else:
                heapq.heappush(due, (moment + PEER_SCRAPE_SECONDS, False, number))
    return unseen


def _is_up(scraper: Scraper, listener: Listener) -> bool:
    path = f"/probe?module=http_2xx&target=http://127.0.0.1:{listener.port}/health"
    return b"\nprobe_success 1" in scraper.get(path).body
