"""Who listens on a TCP port of this host, read from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTEN_STATE: Final = "0A"  # TCP_LISTEN in include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that holds a listening socket."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (PID {self.pid})"


def find_listener(port: int, proc: Path = Path("/proc")) -> Listener | None:
    """The process that listens on `port`; None if nobody does or its fds may not be read."""
    inodes = set(_listening_inodes(port, proc))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in proc.glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in wanted for fd in (folder / "fd").iterdir()):
                return Listener(int(folder.name), (folder / "comm").read_text().strip())
        except OSError:
            continue
    return None


def _listening_inodes(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, state, inode = fields[1], fields[3], fields[9]
            if state == _LISTEN_STATE and int(local.rpartition(":")[2], 16) == port:
                yield inode
