"""How long after its start the agent can be scraped, with every server already seen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks.programs import (
    NODE,
    agent_command,
    answers,
    config_of,
    farm,
    free_port,
    is_installed,
    running,
    running_servers,
)
from benchmarks.result import Peer, Result
from benchmarks.rows import START
from benchmarks.scraper import NoAnswerError, Scraper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.session import Session

SERVERS: Final = 8
_LOOK_SECONDS: Final = 0.005


def measure(session: Session) -> list[Result]:
    """Starts of the agent and of node_exporter by turns."""
    own: list[float] = []
    of_peer: list[float] = []
    with farm(SERVERS) as listeners:
        ports = [listener.port for listener in listeners]
        for turn in range(session.scale.starts):
            own.append(_agent_start_seconds(session.folder / f"start-{turn}", ports))
            if is_installed(NODE):
                of_peer.append(_node_start_seconds(session.folder / f"node-{turn}"))
    peer = Peer("node_exporter", tuple(of_peer)) if of_peer else Peer.missing("node_exporter")
    note = (
        f"{len(own)} starts, each with an empty state directory, until /-/ready is 200 and "
        f"/metrics shows {SERVERS} servers running; asked every {_LOOK_SECONDS * 1000:g} ms"
    )
    return [Result(START, tuple(own), peer, notes=(note,))]


def _agent_start_seconds(folder: Path, ports: Sequence[int]) -> float:
    port = free_port()
    command = agent_command(folder, config_of(ports), port)
    began = time.perf_counter()
    with running(command, folder / "agent.log", port) as it:
        it.wait_until(
            lambda: _is_complete(port, len(ports)), "first complete scrape", _LOOK_SECONDS
        )
        return time.perf_counter() - began


def _is_complete(port: int, servers: int) -> bool:
    try:
        with Scraper(port) as scraper:
            is_ready = scraper.get("/-/ready").status == 200
            return is_ready and running_servers(scraper.get().body) == servers
    except (OSError, NoAnswerError):
        return False


def _node_start_seconds(folder: Path) -> float:
    port = free_port()
    command = [NODE, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    began = time.perf_counter()
    with running(command, folder / "node.log", port) as it:
        it.wait_until(lambda: answers(port, "/metrics"), "first scrape", _LOOK_SECONDS)
        return time.perf_counter() - began
