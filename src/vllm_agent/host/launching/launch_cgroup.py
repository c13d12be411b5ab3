"""A cgroup of its own for each launch, where the agent may make one below its own.

A process can leave its session and lose its parent, and cannot leave its cgroup without being
allowed to. Only version 2 counts: there SIGKILL to all of a group is one write, which no fork
escapes (Linux 5.14). No controller is asked for, so that limits and counts stay those of the agent.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.host.oom_kills import LAUNCH_PREFIX
from vllm_agent.host.proc import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import ProcessId

MAX_MEMBERS_BYTES: Final = 1024 * 1024
"""Read of cgroup.procs: 100,000 processes."""

ROOT: Final = Path("/sys/fs/cgroup")
"""Where version 2 is mounted; below it, in `unified`, where version 1 is too."""


class LaunchCgroup:
    """The group of one launch. All of this may wait for a lock of the kernel: use a thread."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    @classmethod
    def made(cls, proc: Proc, process: ProcessId, root: Path = ROOT) -> Self | None:
        """A new group with that process in it; None where the agent may not make one.

        What the process has started before stays where it is.
        """
        path = _place(proc, os.getpid(), process, root)
        if path is None:
            return None
        group = cls(path)
        try:
            os.mkdir(path)
            group._write("cgroup.procs", str(process.pid))
        except OSError:
            group.remove()
            return None
        return group

    @classmethod
    def found(cls, proc: Proc, process: ProcessId, root: Path = ROOT) -> Self | None:
        """The group that this agent, or one before it in the same cgroup, made for a launch."""
        path = _place(proc, os.getpid(), process, root)
        return cls(path) if path is not None and os.path.isdir(path) else None

    def pids(self) -> frozenset[int]:
        """Who is in it, zombies included."""
        lines = (
            line
            for folder in self._folders()
            for line in (read_small(f"{folder}/cgroup.procs", MAX_MEMBERS_BYTES) or b"").split()
        )
        # A process of another PID namespace is 0.
        return frozenset(int(line) for line in lines) - {0}

    def kill(self) -> None:
        """Sends SIGKILL to all that is in it; an older Linux does nothing."""
        with contextlib.suppress(OSError):
            self._write("cgroup.kill", "1")

    def remove(self) -> None:
        """Removes it if no process lives in it."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _folders(self) -> Iterator[str]:
        """The group and those that somebody made below it, the innermost first."""
        for folder, _, _ in os.walk(self._path, topdown=False):
            yield folder

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(f"{self._path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode("ascii"))
        finally:
            os.close(descriptor)


def _place(proc: Proc, agent_pid: int, process: ProcessId, root: Path) -> str | None:
    """Where the group of that launch is, or would be; the same for every agent in this cgroup."""
    mounts = (root, root / "unified")
    mount = next((m for m in mounts if os.path.exists(m / "cgroup.controllers")), None)
    paths = (line[3:] for line in (proc.cgroup(agent_pid) or "").splitlines() if line[:3] == "0::")
    path = next(paths, None)
    # A path that begins with `..` is outside of what is mounted here.
    if mount is None or path is None or ".." in path.split("/"):
        return None
    return f"{mount}{path.rstrip('/')}/{LAUNCH_PREFIX}-{process.pid}-{process.start_ticks}"
