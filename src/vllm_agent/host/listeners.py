"""Who listens on a TCP port of this host, for a message to people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vllm_agent.host.proc import Proc
from vllm_agent.host.sockets import listening_tcp


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that holds a listening socket."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (PID {self.pid})"


def find_listener(port: int, proc: Path = Path("/proc")) -> Listener | None:
    """The process that listens on `port`; None if nobody does or its fds may not be read."""
    there = Proc(proc)
    inodes = listening_tcp(there, os.getpid(), port)
    if not inodes:
        return None
    for pid in there.pids():
        if any(inode in inodes for _, inode in there.open_sockets(pid)):
            stat = there.stat(pid)
            return None if stat is None else Listener(pid, stat.name)
    return None
