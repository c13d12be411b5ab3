"""A proc file system of made-up processes, in a folder."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from vllm_agent.host.proc import Proc

if TYPE_CHECKING:
    from pathlib import Path

# Fields 7 to 52 of a process at rest.
_REST = "0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 100" + " 0" * 28


class FakeProc:
    """Processes appear and end as a test says; `newest` is the last number given out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.threads: set[int] = set()
        self._ended = 0
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text("boot\n")
        (root / "self").symlink_to(str(os.getpid()))
        self.set_max_pid(32768)
        self.newest = 1
        self.add(1, "init", parent=0, name="systemd")
        self.proc = Proc(root)

    @property
    def newest(self) -> int:
        return int((self.root / "loadavg").read_text().split()[-1])

    @newest.setter
    def newest(self, number: int | str) -> None:
        (self.root / "loadavg").write_text(f"0.00 0.01 0.05 1/90 {number}\n")

    def set_max_pid(self, number: int) -> None:
        (self.root / "sys/kernel/pid_max").write_text(f"{number}\n")

    def add(
        self, pid: int, *arguments: str, start: int = 1, parent: int = 1, name: str = "x"
    ) -> None:
        """Starts a process; its number becomes the newest one if it is larger."""
        folder = self.root / str(pid)
        folder.mkdir()
        rest = _REST.format(flags=0, start=start)
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} {rest}\n")
        self.become(pid, *arguments)
        self.newest = max(self.newest, pid)

    def become(self, pid: int, *arguments: str) -> None:
        """Execs another program, or sets a title."""
        line = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
        (self.root / str(pid) / "cmdline").write_bytes(line)

    def end(self, pid: int) -> None:
        # Moved away and not removed: an inode number must not come back as the kernel's do not.
        self._ended += 1
        shutil.move(self.root / str(pid), self.root / f"ended-{self._ended}")

    def kind_of(self, number: int) -> bool | None:
        """As `new_processes.is_process`."""
        if number in self.threads:
            return False
        return True if (self.root / str(number)).exists() else None
