"""Measures how a server ends, as the recording of the real one was made.

A pidfd for each process and one idle connection; at the close of the connection the
state of every process is noted, since that is what tells a stop from a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vllm.ways import act_on
from vllm_agent.demo.launch import StandIn, title

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vllm.ways import VllmProcesses

CLOSE = "close"
# include/linux/sched.h
_PF_EXITING = 0x4
_STREAMS = 4
# vLLM looks for a dead engine every 5 s; the recorded actions fell 2.9 s after the start.
_ACTION_AFTER_SECONDS = 2.9
_WAITS_FOR_WATCHDOG = frozenset({"kill_engine", "kill_worker", "segv_worker"})
# The recorded clients of this row left after 5 s; those of the others held on.
_CLIENTS_LEAVE_SECONDS = {"term-streams": 5.3}
# Longer than any recorded ending, per row: nothing more is expected afterwards.
_SLACK_SECONDS = 2.5
_ACCEPT_SECONDS = 5.0


@dataclass
class Measured:
    """Events in order, wait statuses, and who was ending when the connection closed."""

    events: list[tuple[float, str]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    ending_at_close: dict[str, bool] = field(default_factory=dict)
    survivors: set[str] = field(default_factory=set)


def measure(row: dict, speed: float) -> Measured:
    """Starts a server with the row's arguments, ends it the row's way, and watches."""
    name = row["name"].rpartition("-")[0]
    arguments = list(row["args"])
    if "--shutdown-timeout" in arguments:
        arguments[1] = str(float(arguments[1]) / speed)
    last = max(event["t"] for event in row["events"])
    with StandIn.start("--speed", str(speed), *arguments) as server:
        server.wait_serving()
        serving = time.monotonic()
        with contextlib.ExitStack() as stack:
            idle = stack.enter_context(connection_of_first_api_server(server))
            streams = _streams(server, stack) if row["streams"] else []
            if name in _WAITS_FOR_WATCHDOG and not streams:
                time.sleep(max(0.0, serving + _ACTION_AFTER_SECONDS / speed - time.monotonic()))
            watch = EndWatch(server, idle)
            leave = _CLIENTS_LEAVE_SECONDS.get(row["name"])
            if leave is not None:
                watch.at(leave / speed, partial(_close, streams))
            act_on(server, name)
            return watch.run((last + _SLACK_SECONDS) / speed, orphans=bool(row["orphans"]))


def process_name(line: str) -> str:
    """The recording's name for a command line."""
    return line if line.startswith("VLLM::") else "main"


class EndWatch:
    """Notes every exit and the close of an idle connection, from now on."""

    def __init__(self, server: VllmProcesses, idle: socket.socket) -> None:
        self._idle = idle
        self._names: dict[int, str] = {}
        self._pids: dict[str, int] = {}
        self._poll = select.poll()
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._measured = Measured()
        for pid in server.pids():
            name = process_name(title(pid))
            if "resource_tracker" in title(pid):
                continue
            pidfd = os.pidfd_open(pid)
            self._names[pidfd], self._pids[name] = name, pid
            self._poll.register(pidfd, select.POLLIN)
        self._poll.register(idle, select.POLLIN)
        self._began = time.monotonic()

    def at(self, seconds: float, callback: Callable[[], object]) -> None:
        self._later.append((seconds, callback))

    def run(self, seconds: float, *, orphans: bool) -> Measured:
        open_things = len(self._names) + 1
        while open_things and self._elapsed() < seconds:
            until = min([seconds, *(moment for moment, _ in self._later)])
            for fd, _ in self._poll.poll(max(0.0, until - self._elapsed()) * 1000 + 1):
                self._poll.unregister(fd)
                self._note(fd)
                open_things -= 1
            for entry in [entry for entry in self._later if entry[0] <= self._elapsed()]:
                self._later.remove(entry)
                entry[1]()
        self._measured.survivors = {
            name for pidfd, name in self._names.items() if not _ended(pidfd)
        }
        for pidfd in self._names:
            os.close(pidfd)
        return self._measured

    def _note(self, fd: int) -> None:
        name = self._names.get(fd, CLOSE)
        if name == CLOSE:
            self._measured.ending_at_close = {
                name: is_ending(pid) for name, pid in self._pids.items()
            }
        else:
            status = _zombie_status(self._pids[name])
            if status is not None:
                self._measured.statuses[name] = status
        self._measured.events.append((self._elapsed(), name))

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def is_ending(pid: int) -> bool:
    """Whether a process is exiting, has a KILL pending, or is gone."""
    fields = _stat(pid)
    if fields is None:
        return True
    if int(fields[6]) & _PF_EXITING:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGKILL - 1))


def _zombie_status(pid: int) -> int | None:
    """The wait status of a process that its parent has not reaped yet."""
    fields = _stat(pid)
    return int(fields[49]) if fields is not None and fields[0] == "Z" else None


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def _connect(server: VllmProcesses) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def connection_of_first_api_server(server: VllmProcesses) -> socket.socket:
    """An idle connection; with several API servers, one that the first has accepted."""
    wanted = (server.api_server_pids or [server.pid])[0]
    tried = []
    try:
        while True:
            tried.append(_connect(server))
            if _holder(tried[-1], server) == wanted:
                return tried.pop()
    finally:
        for connection in tried:
            connection.close()


def _holder(connection: socket.socket, server: VllmProcesses) -> int:
    """The process that has accepted a connection."""
    deadline = time.monotonic() + _ACCEPT_SECONDS
    local, peer = connection.getsockname()[1], connection.getpeername()[1]
    while time.monotonic() < deadline:
        inode = _inode(peer, local)
        for pid in server.api_server_pids or [server.pid]:
            if inode is not None and _holds(pid, inode):
                return pid
    raise AssertionError("nobody accepted the connection")


def _inode(local_port: int, remote_port: int) -> str | None:
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        ends = [int(end.rpartition(":")[2], 16) for end in fields[1:3]]
        if ends == [local_port, remote_port]:
            return fields[9]
    return None


def _holds(pid: int, inode: str) -> bool:
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(fd.readlink()) == f"socket:[{inode}]":
                return True
    return False


def _streams(server: VllmProcesses, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Streaming clients, at least one at each API server."""
    streams: list[socket.socket] = []
    without = set(server.api_server_pids or [server.pid])
    while without or len(streams) < _STREAMS:
        stream = stack.enter_context(_stream(server))
        without.discard(_holder(stream, server))
        streams.append(stream)
    return streams


def _close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _stream(server: VllmProcesses) -> socket.socket:
    """A client whose stream has begun."""
    body = json.dumps({"prompt": "one two", "max_tokens": 100_000, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = _connect(server)
    connection.sendall((head + body).encode())
    received = b""
    while b"data:" not in received:
        received += connection.recv(4096)
    return connection
