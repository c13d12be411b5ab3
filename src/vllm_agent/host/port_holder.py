"""Who listens where a server wants to."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from vllm_agent.host.sockets import MAX_SOCKETS_PER_PROCESS, listening

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import VllmCommand

MAX_PROCESSES: Final = 20_000
"""Processes that are looked through: 20 µs each, in a thread."""


def port_holder(proc: Proc, pid: int, command: VllmCommand) -> str:
    """The process that listens where `command` says, as `name (PID n)`; empty if none is seen.

    `pid` is the server's, or the agent's own once that is gone. A process of the server's own tree
    may be meant: the caller knows whether it can be. It takes milliseconds: call it in a thread.
    """
    inodes = listening(proc, pid, command)
    return _holder(proc, inodes) if inodes else ""


def _holder(proc: Proc, inodes: Collection[int]) -> str:
    for pid in sorted(proc.pids())[:MAX_PROCESSES]:
        sockets = itertools.islice(proc.open_sockets(pid), MAX_SOCKETS_PER_PROCESS)
        if any(inode in inodes for _, inode in sockets):
            stat = proc.stat(pid)
            name = "" if stat is None else f"{stat.name} "
            return f"{name}(PID {pid})".strip()
    return ""
