"""How late a new vLLM is seen, and what each one costs the agent."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.deaths import spread
from benchmarks.local_servers import await_serving, start_server
from benchmarks.process import cpu_seconds, memory
from benchmarks.programs import (
    NotMeasurableError,
    config_of,
    free_port,
    local_server,
    running_servers,
    started_agent,
)
from benchmarks.result import Result
from benchmarks.rows import LAUNCH_CPU, LAUNCH_MEMORY, NEW_SERVER
from benchmarks.scraper import Scraper
from benchmarks.session import PROBE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.programs import Program
    from benchmarks.session import Session

MODEL: Final = "tiny"
UNSEEN_SECONDS: Final = 30.0
"""A launch that is not shown by then was missed; a whole sweep of discovery takes half of that."""

SPREAD_SECONDS: Final = 1.0
"""Launches come at any moment of the agent's rhythm, which is shorter than this."""

LOOK_SECONDS: Final = 0.002

FEW_SERVERS: Final = 8
MANY_SERVERS: Final = 32
BATCHES: Final = 2
FOLLOW_SECONDS: Final = PROBE_SECONDS
"""After a launch serves, its processes are looked at more often for so long."""


def measure_sight(session: Session) -> list[Result]:
    """Starts tiny programs, one after another, that have the command line of a vLLM."""
    folder = session.folder / "new-server"
    seen = []
    with started_agent(folder, "") as watcher:
        for number in range(session.scale.launches):
            time.sleep(SPREAD_SECONDS * spread(number))
            seen.append(_seconds_unseen(watcher, folder, free_port()))
    note = (
        f"{len(seen)} launches, one at a time, of a shell with the arguments of `vllm serve`; no "
        f"server is configured; asked every {LOOK_SECONDS * 1000:g} ms"
    )
    return [Result(NEW_SERVER, tuple(seen), notes=(note,))]


def _seconds_unseen(watcher: Program, folder: Path, port: int) -> float:
    path = f"/api/v1/servers/{MODEL}@{port}"
    with Scraper(watcher.port, path, is_compressed=False) as scraper:
        scraper.get()
        began = time.perf_counter()
        with _launch(folder, port):
            while True:
                answer = scraper.get()
                passed = time.perf_counter() - began
                if b'"state":"starting"' in answer.raw_body or passed > UNSEEN_SECONDS:
                    return passed
                time.sleep(LOOK_SECONDS)


@contextmanager
def _launch(folder: Path, port: int) -> Iterator[None]:
    """A process that has the arguments of a vLLM and waits; to a shell, `serve` is a script."""
    (folder / "serve").write_text("read forever\n", encoding="utf-8")
    command = ["vllm", "serve", MODEL, "--port", str(port)]
    with subprocess.Popen(command, executable="/bin/sh", cwd=folder, stdin=subprocess.PIPE):
        yield


def measure_cost(session: Session) -> list[Result]:
    """An agent that follows a few servers is given more of them."""
    folder = session.folder / "launch-cost"
    more = (MANY_SERVERS - FEW_SERVERS) // BATCHES
    costs, ports = [], [free_port() for _ in range(MANY_SERVERS)]
    with ExitStack() as stack:
        few = [stack.enter_context(start_server(folder, port)) for port in ports[:FEW_SERVERS]]
        await_serving(few)
        config = config_of(ports, server=local_server)
        watcher = stack.enter_context(started_agent(folder, config))
        time.sleep(FOLLOW_SECONDS)
        rest_of_few = _rest_share(watcher)
        memory_of_few = _memory_after_scrape(watcher, FEW_SERVERS)
        for number in range(BATCHES):
            began, cpu = time.perf_counter(), cpu_seconds(watcher.pid)
            batch = ports[FEW_SERVERS + number * more :][:more]
            started = [stack.enter_context(start_server(folder, port)) for port in batch]
            await_serving(started)
            time.sleep(FOLLOW_SECONDS)
            costs.append((cpu_seconds(watcher.pid) - cpu, time.perf_counter() - began))
        rest_of_many = _rest_share(watcher)
        memory_of_many = _memory_after_scrape(watcher, MANY_SERVERS)
    rest = (rest_of_few + rest_of_many) / 2
    cpu_note = (
        f"{BATCHES} times {more} launches of four processes at once, until {FOLLOW_SECONDS:g} s "
        f"after they serve, less CPU at rest: {100 * rest_of_few:.2f} % of a core with "
        f"{FEW_SERVERS} servers, {100 * rest_of_many:.2f} % with {MANY_SERVERS}"
    )
    memory_note = (
        f"{memory_of_few:.1f} MiB with {FEW_SERVERS} servers, {memory_of_many:.1f} MiB with "
        f"{MANY_SERVERS}"
    )
    each = 1024 * (memory_of_many - memory_of_few) / (MANY_SERVERS - FEW_SERVERS)
    per_launch = tuple(1000 * (cpu - rest * wall) / more for cpu, wall in costs)
    return [
        Result(LAUNCH_CPU, per_launch, notes=(cpu_note,)),
        Result(LAUNCH_MEMORY, (each,), notes=(memory_note,)),
    ]


def _rest_share(watcher: Program) -> float:
    cpu = cpu_seconds(watcher.pid)
    time.sleep(PROBE_SECONDS)
    return (cpu_seconds(watcher.pid) - cpu) / PROBE_SECONDS


def _memory_after_scrape(watcher: Program, count: int) -> float:
    with Scraper(watcher.port) as scraper:
        if (up := running_servers(scraper.get().body)) != count:
            raise NotMeasurableError(f"{up} of {count} servers were running")
    return memory(watcher.pid).resident_mib
