"""Counts what the kernel's OOM killer did in the cgroup of a process."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from vllm_agent.host.proc import read_small
from vllm_agent.observations import Sight, SightKind

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCH_PREFIX: Final = "vllm-agent-launch"
"""How the name of a group begins that the agent makes for a launch of its own."""

MAX_LEVELS_BETWEEN: Final = 3
"""How far below the root the cgroup may lie that an agent in a container shares with a process: a
pod of Kubernetes is three levels down."""


class OomKills:
    """The kills in the cgroup that `cgroup_text`, the text of /proc/PID/cgroup, names.

    `root` is where the cgroup file system is mounted, version 1, 2 or both. The kernel counts a
    kill before it sends it, so a read at the exit of a component knows of it; the cgroup itself is
    removed only after the last exit, and the last value that was read is kept.
    """

    def __init__(self, cgroup_text: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._path = _find(cgroup_text, root)
        self._last: int | None = None
        self._first = self.read()

    def read(self) -> int | None:
        """How many processes were killed there by now; None where nothing tells."""
        count = None if self._path is None else _oom_kill(self._path)
        # A lower count is that of another cgroup, made since under the same name.
        if count is not None and (self._last is None or count > self._last):
            self._last = count
        return self._last

    def risen(self) -> int | None:
        """How many were killed since this was made; None where nothing tells."""
        now = self.read()
        return None if now is None or self._first is None else now - self._first

    def sight(self) -> Sight:
        """Whether this can be seen."""
        if self._last is not None:
            return Sight(SightKind.CGROUP, is_visible=True)
        if self._path is None:
            why_not = "the memory cgroup of the server is not mounted where the agent runs"
            fix = "docker run --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:ro for the agent"
        else:
            why_not = "the memory cgroup of the server counts no OOM kills"
            fix = "use Linux 4.13 or newer"
        return Sight(SightKind.CGROUP, is_visible=False, why_not=why_not, fix=fix)


def _find(cgroup_text: str, root: Path) -> str | None:
    """The file that counts, that of the controller if version 1 has it."""
    unified = None
    for line in cgroup_text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return _file(root / "memory", path, "memory.oom_control")
        if not controllers:
            unified = path
    if unified is None:
        return None
    if PurePosixPath(unified).name.startswith(LAUNCH_PREFIX):
        # The group that the agent made for a launch has no controllers: the one around it counts.
        unified = str(PurePosixPath(unified).parent)
    return _file(root, unified, "memory.events") or _file(
        root / "unified", unified, "memory.events"
    )


def _file(mount: Path, path: str, name: str) -> str | None:
    parts = [part for part in path.split("/") if part]
    below = list(itertools.dropwhile(lambda part: part == "..", parts))
    if ".." in below:
        return None
    for levels in range(1 if len(below) == len(parts) else MAX_LEVELS_BETWEEN + 1):
        found = list(itertools.islice(_places(mount, levels, below, name), 2))
        if found:
            # Two of the same name cannot be told apart.
            return found[0] if len(found) == 1 else None
    return None


def _places(mount: Path, levels: int, below: list[str], name: str) -> Iterator[str]:
    """Files `levels` below the mount: a path that begins with `..` hides what lies between."""
    pattern = os.path.join(glob.escape(str(mount)), *["*"] * levels)
    return glob.iglob(os.path.join(pattern, *map(glob.escape, below), name))


def _oom_kill(path: str) -> int | None:
    for line in (read_small(path) or b"").splitlines():
        key, _, value = line.partition(b" ")
        if key == b"oom_kill":
            with contextlib.suppress(ValueError):
                return int(value)
    return None
