"""How fast the agent answers that a managed server runs, and how fast it starts one again."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.deaths import spread
from benchmarks.managed_servers import managed_config, none_left
from benchmarks.programs import NotMeasurableError, await_running, free_port, started_agent
from benchmarks.result import Result
from benchmarks.rows import ENSURE_HEALTHY, MANAGED_RESTART
from benchmarks.scraper import exchange
from benchmarks.session import PROBE_SECONDS
from benchmarks.statistic import median

if TYPE_CHECKING:
    from benchmarks.session import Session

SERVERS: Final = 8
"""As many as a host has GPUs."""

PAUSE_SECONDS: Final = 0.01
"""Longest pause between two requests: they meet the agent at any moment of its rhythm."""

ANSWER_SECONDS: Final = 30.0

DELAY_SECONDS: Final = 2.0
"""The default of `restart.delay`, and the shortest that is allowed."""

WINDOW_SECONDS: Final = 1.0
"""After so long of running its restarts are forgotten, so that no delay is a doubled one."""

RESTARTS: Final = {"max_restarts": 1000, "window": f"{WINDOW_SECONDS:g}s"}

LOOK_SECONDS: Final = 0.002
UNSEEN_SECONDS: Final = 30.0
"""A server that is not started again by then never is."""

_REQUEST: Final = (
    b"POST /api/v1/servers/s0/ensure-healthy HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)


def measure_health(session: Session) -> list[Result]:
    """Asks for a server that runs, each time on a new connection, as a command does."""
    folder = session.folder / "ensure-healthy"
    config = managed_config(folder, [free_port() for _ in range(SERVERS)], "10s")
    with none_left(folder), started_agent(folder, config) as it:
        await_running(it, SERVERS)
        time.sleep(PROBE_SECONDS)
        seconds = []
        for number in range(session.scale.health_requests):
            time.sleep(PAUSE_SECONDS * spread(number))
            seconds.append(_seconds_to_answer(folder / "state" / "control.sock"))
    note = (
        f"{len(seconds)} requests, one after another, to an agent with {SERVERS} managed servers, "
        "each with a connection of its own"
    )
    return [Result(ENSURE_HEALTHY, tuple(1000 * s for s in seconds), notes=(note,))]


def _seconds_to_answer(path: Path) -> float:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        began = time.perf_counter()
        connection.connect(os.fspath(path))
        answer = exchange(connection, _REQUEST)
        seconds = time.perf_counter() - began
    if answer.status != 200 or b'"state":"running"' not in answer.body:
        raise NotMeasurableError(f"ensure-healthy was answered with {answer.status}")
    return seconds


def measure_restart(session: Session) -> list[Result]:
    """Kills the main processes of managed servers one after another, several times each."""
    folder = session.folder / "managed-restart"
    ports = [free_port() for _ in range(SERVERS)]
    beyond: list[float] = []
    stills: list[float] = []
    with none_left(folder):
        config = managed_config(folder, ports, "1s", RESTARTS)
        with started_agent(folder, config) as it:
            mains = Mains(it.pid)
            for _ in range(math.ceil(session.scale.restarts / SERVERS)):
                await_running(it, SERVERS)
                time.sleep(2 * WINDOW_SECONDS)
                for port in ports:
                    time.sleep(spread(len(beyond)) * WINDOW_SECONDS)
                    seconds, still_seconds = _seconds_to_next(mains, port)
                    beyond.append(seconds - DELAY_SECONDS)
                    stills.append(still_seconds)
    note = (
        f"{len(beyond)} deaths by SIGKILL of a main process, one at a time, of {SERVERS} servers "
        f"with a delay of {DELAY_SECONDS:g} s; from the end of the process, as the kernel tells "
        f"it, to the exec of the next one, looked for every {LOOK_SECONDS * 1000:g} ms. The end is "
        "judged, and what is left of the launch killed, within the delay. Meanwhile this program, "
        f"which has nothing else to do, stood still for {1000 * max(stills):.0f} ms at most, "
        f"median {1000 * median(stills):.0f} ms: what the machine did to both"
    )
    return [Result(MANAGED_RESTART, tuple(1000 * s for s in beyond), notes=(note,))]


def _seconds_to_next(mains: Mains, port: int) -> tuple[float, float]:
    """From the end of a main process to the next one, and the longest time between two looks."""
    killed = mains.find(port)
    if killed is None:
        raise NotMeasurableError("a server that runs has no main process")
    pidfd = os.pidfd_open(killed)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], UNSEEN_SECONDS)
    finally:
        os.close(pidfd)
    died = looked = time.perf_counter()
    still_seconds = 0.0
    while mains.find(port) in {None, killed}:
        if looked - died > UNSEEN_SECONDS:
            raise NotMeasurableError(f"a server was not started again in {UNSEEN_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
        now = time.perf_counter()
        looked, still_seconds = now, max(still_seconds, now - looked)
    return time.perf_counter() - died, still_seconds


class Mains:
    """Main processes of managed servers: children of the agent that execute one."""

    def __init__(self, agent_pid: int) -> None:
        self._agent_pid = agent_pid
        self._agent_line = _read(agent_pid, "cmdline")
        self._ports: dict[int, str] = {}
        self._others: set[int] = set()

    def find(self, port: int) -> int | None:
        """The newest one that was told to listen there, a zombie too while it is not replaced."""
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208
        self._others &= pids
        self._ports = {pid: of for pid, of in self._ports.items() if pid in pids}
        for pid in pids - self._others - self._ports.keys():
            self._look(pid)
        found = [pid for pid, of in self._ports.items() if of == str(port)]
        return max(found, default=None)

    def _look(self, pid: int) -> None:
        stat, line = _read(pid, "stat"), _read(pid, "cmdline")
        is_child = stat.rpartition(")")[2].split()[1:2] == [str(self._agent_pid)]
        words = line.split("\0")
        if is_child and line in {"", self._agent_line}:
            # It has not executed anything yet; there is no line during an exec.
            return
        if is_child and "--port" in words:
            self._ports[pid] = words[words.index("--port") + 1]
        else:
            self._others.add(pid)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
