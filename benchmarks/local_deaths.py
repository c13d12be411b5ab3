"""How long the death of a local server stays unseen, and until it is judged."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from benchmarks.deaths import (
    PEER_SCRAPE_SECONDS,
    UNSEEN_SECONDS,
    gap_seconds,
)
from benchmarks.local_servers import ORPHAN_SECONDS, await_serving, servers, start_server
from benchmarks.programs import (
    PROMETHEUS,
    NotMeasurableError,
    agent,
    await_running,
    is_installed,
    local_server,
    prometheus,
)
from benchmarks.result import NOT_INSTALLED, Peer, Result
from benchmarks.rows import LOCAL_DEATH, LOCAL_VERDICT
from benchmarks.scraper import Scraper
from benchmarks.session import SCRAPE_SECONDS
from benchmarks.statistic import median, p99

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.session import Session
    from vllm_agent.demo.launch import StandIn

SERVERS: Final = 8
"""Killed in one round, and started again for the next one: as many as a host has GPUs."""

SUPERVISOR_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Death:
    """A kill; what the kernel needs to take a process down afterwards is not the agent's time."""

    port: int
    at: float
    at_unix_seconds: float


@dataclass(slots=True)
class _Seen:
    """Seconds from each end of a process to the answers that show it; peers count from its kill."""

    deaths: list[_Death] = field(default_factory=list)
    exiting: list[float] = field(default_factory=list)
    unseen: list[float] = field(default_factory=list)
    unjudged: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    unseen_by_supervisor: list[float] = field(default_factory=list)
    unseen_by_prometheus: list[float] = field(default_factory=list)


def measure(session: Session) -> list[Result]:
    """Kills the main processes of local servers one after another, and starts them again."""
    folder = session.folder / "local-deaths"
    rounds = math.ceil(session.scale.deaths / SERVERS)
    with ExitStack() as stack:
        alive = stack.enter_context(servers(folder, SERVERS))
        ports = [server.port for server in alive]
        watcher = stack.enter_context(agent(folder, ports, server=local_server))
        prober = None
        if is_installed(PROMETHEUS):
            interval = f"{PEER_SCRAPE_SECONDS:g}s"
            prober = stack.enter_context(prometheus(folder, ports, interval))
        supervisor = stack.enter_context(_Supervisor(ports))
        scraper = stack.enter_context(Scraper(watcher.port, is_compressed=False))
        seen = _Seen()
        for number in range(rounds):
            if number:
                alive = _start_again(stack, folder, ports)
                await_running(watcher, SERVERS)
            _kill_one_by_one(seen, alive, scraper)
            time.sleep(max(SUPERVISOR_SECONDS, PEER_SCRAPE_SECONDS) + _CONNECT_SECONDS)
            for death in seen.deaths[-SERVERS:]:
                seen.unseen_by_supervisor.append(supervisor.seconds_unseen(death))
            for server in alive:
                server.close()
        if prober is not None:
            seen.unseen_by_prometheus = _unseen_by_prometheus(prober.port, seen.deaths)
    return _results(seen)


def _start_again(stack: ExitStack, folder: Path, ports: Sequence[int]) -> list[StandIn]:
    started = [stack.enter_context(start_server(folder, port)) for port in ports]
    await_serving(started)
    return started


def _kill_one_by_one(seen: _Seen, alive: Sequence[StandIn], scraper: Scraper) -> None:
    """The next one is killed once the one before is seen; verdicts may come meanwhile.

    A process counts as gone from the last look that found it exiting, so that the samples are too
    long, by one answer at most, and never too short.
    """
    unjudged: dict[int, float] = {}
    for number, server in enumerate(alive):
        due = time.perf_counter() + gap_seconds(len(seen.deaths))
        _await_verdicts(seen, unjudged, scraper, until=due)
        time.sleep(max(0.0, due - time.perf_counter()))
        running = _state_line(number, "running")
        killed = there = time.perf_counter()
        seen.deaths.append(_Death(server.port, killed, time.time()))
        server.signal(signal.SIGKILL)
        while True:
            page = _look(seen, unjudged, scraper)
            now = time.perf_counter()
            if running not in page or now - killed > UNSEEN_SECONDS:
                break
            if not _is_gone(server.pid):
                there = now
        seen.exiting.append(there - killed)
        seen.unseen.append(now - there)
        unjudged[number] = there
        server.process.wait()
    _await_verdicts(seen, unjudged, scraper, until=time.perf_counter() + UNSEEN_SECONDS)
    # What was not judged by then has no end.
    seen.unjudged += [UNSEEN_SECONDS] * len(unjudged)


def _is_gone(pid: int) -> bool:
    """Whether a child has ended; it stays a zombie, whose exit status may be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _await_verdicts(
    seen: _Seen, unjudged: dict[int, float], scraper: Scraper, *, until: float
) -> None:
    while unjudged and time.perf_counter() < until:
        _look(seen, unjudged, scraper)


def _look(seen: _Seen, unjudged: dict[int, float], scraper: Scraper) -> bytes:
    """One scrape; notes which verdicts it shows."""
    answer = scraper.get()
    now = time.perf_counter()
    seen.looks.append(answer.seconds)
    for number, died in list(unjudged.items()):
        if _state_line(number, "crashed") in answer.raw_body:
            seen.unjudged.append(now - died)
            del unjudged[number]
    return answer.raw_body


def _state_line(number: int, state: str) -> bytes:
    return f'vllm_agent_server_state{{server="s{number}",state="{state}"}} 1'.encode()


class _Supervisor:
    """Connects to each server once a second, as a script around a service does."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._refused: dict[int, list[float]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def seconds_unseen(self, death: _Death) -> float:
        """From a death to the first refusal after it.

        Raises:
            NotMeasurableError: there was none.
        """
        for refused in self._refused[death.port]:
            if refused > death.at:
                return refused - death.at
        raise NotMeasurableError("a supervisor that polls missed a death")

    def _run(self) -> None:
        pause = SUPERVISOR_SECONDS / len(self._ports)
        due = time.perf_counter()
        turn = 0
        while not self._ended.wait(max(0.0, due - time.perf_counter())):
            port = self._ports[turn % len(self._ports)]
            turn, due = turn + 1, due + pause
            with socket.socket() as probe:
                probe.settimeout(_CONNECT_SECONDS)
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    self._refused[port].append(time.perf_counter())


def _unseen_by_prometheus(port: int, deaths: Sequence[_Death]) -> list[float]:
    """Seconds from each kill to the next sample of `up`, which has to be 0."""
    with Scraper(port, "/api/v1/query?query=up%5B1h%5D", is_compressed=False) as scraper:
        found = json.loads(scraper.get().body)["data"]["result"]
    samples = {one["metric"]["instance"]: one["values"] for one in found}
    unseen = []
    for death in deaths:
        following = (
            (at, value)
            for at, value in samples.get(f"127.0.0.1:{death.port}", [])
            if at > death.at_unix_seconds
        )
        at, value = next(following, (0.0, ""))
        if value != "0":
            raise NotMeasurableError("Prometheus missed a death")
        unseen.append(at - death.at_unix_seconds)
    return unseen


def _results(seen: _Seen) -> list[Result]:
    count = len(seen.deaths)
    supervisor = Peer(
        f"poll once in {SUPERVISOR_SECONDS:g} s",
        tuple(1000 * seconds for seconds in seen.unseen_by_supervisor),
    )
    note = (
        f"{count} deaths by SIGKILL of a main process, one at a time, of {SERVERS} servers of "
        f"three processes or more, started again for each round; /metrics of all of them polled "
        f"without pause, resolution one answer: median {median(seen.looks) * 1000:.1f} ms, "
        f"p99 {p99(seen.looks) * 1000:.1f} ms. Counted from the last look that found the process "
        f"there, median {median(seen.exiting) * 1000:.0f} ms after the signal: a stand-in dies "
        f"slowly on purpose, as a process with much memory does. Beside it, from the signal, a "
        f"loop that connects to each server every {SUPERVISOR_SECONDS:g} s; "
        f"{_prometheus_note(seen.unseen_by_prometheus)}"
    )
    verdict_note = (
        f"the same deaths, until the state is crashed; engines and workers outlive their main "
        f"process by {ORPHAN_SECONDS:g} s"
    )
    return [
        Result(LOCAL_DEATH, tuple(1000 * s for s in seen.unseen), supervisor, notes=(note,)),
        Result(LOCAL_VERDICT, tuple(seen.unjudged), notes=(verdict_note,)),
    ]


def _prometheus_note(unseen: Sequence[float]) -> str:
    if not unseen:
        return f"Prometheus: {NOT_INSTALLED}"
    scale = SCRAPE_SECONDS / PEER_SCRAPE_SECONDS
    return (
        f"`up` of a Prometheus at {PEER_SCRAPE_SECONDS:g} s: median {median(unseen):.2f} s, "
        f"p99 {p99(unseen):.2f} s; at {SCRAPE_SECONDS:g} s that is {scale * median(unseen):.1f} s "
        f"and {scale * p99(unseen):.1f} s"
    )
