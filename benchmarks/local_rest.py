"""An agent with local servers and GPUs left alone on a large host: CPU at rest, and memory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks.gpus import await_attributed, fake_driver
from benchmarks.local_servers import crowd, holders, servers
from benchmarks.process import memory
from benchmarks.programs import NODE, agent, is_installed, local_server, node_exporter
from benchmarks.rest import rest_percent
from benchmarks.result import Peer, Result
from benchmarks.rows import LOCAL_MEMORY_8, LOCAL_REST_CPU_8
from benchmarks.session import SCRAPE_SECONDS
from benchmarks.statistic import median

if TYPE_CHECKING:
    from benchmarks.session import Session

SERVERS: Final = 8
CROWD: Final = 1000


def measure(session: Session) -> list[Result]:
    """The same agent with and without a crowd of other processes, beside node_exporter."""
    folder = session.folder / "local-rest"
    with ExitStack() as stack:
        started = stack.enter_context(servers(folder, SERVERS))
        ports = [server.port for server in started]
        driver = fake_driver(folder, holders(started))
        watcher = agent(folder, ports, server=local_server, environment=driver.environment())
        programs = [stack.enter_context(watcher)]
        await_attributed(programs[0], SERVERS)
        if is_installed(NODE):
            programs.append(stack.enter_context(node_exporter(folder)))
        alone_processes = _processes()
        alone = rest_percent(programs[:1], session.scale.rest_windows)
        with crowd(CROWD):
            processes = _processes()
            windows = rest_percent(programs, session.scale.rest_windows)
            memories = [memory(program.pid) for program in programs]
    peers = [Peer.missing("node_exporter")] * 2
    if len(programs) > 1:
        peers = [
            Peer("node_exporter", windows[1]),
            Peer("node_exporter", (memories[1].resident_mib,)),
        ]
    memory_note = (
        f"proportional set {memories[0].proportional_mib:.1f} MiB beside other agents of this run, "
        f"of node_exporter {memories[1].proportional_mib:.1f} MiB"
        if len(memories) > 1
        else f"proportional set {memories[0].proportional_mib:.1f} MiB"
    )
    rest_note = (
        f"{len(windows[0])} windows of {SCRAPE_SECONDS:g} s, each with one scrape, among "
        f"{processes} processes; {median(alone[0]):.2f} % among {alone_processes}"
    )
    return [
        Result(LOCAL_MEMORY_8, (memories[0].resident_mib,), peers[1], notes=(memory_note,)),
        Result(LOCAL_REST_CPU_8, windows[0], peers[0], notes=(rest_note,)),
    ]


def _processes() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))  # noqa: PTH208  names are enough
