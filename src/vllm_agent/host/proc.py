"""What /proc tells of a process. The only reader of its formats (proc_pid_stat(5) and its kin).

A process may end between any two reads: whatever is gone, or may not be seen, is None.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_COMMAND_LINE_BYTES: Final = 128 * 1024
"""Read of a command line. Linux allows 2 MiB and more; a `vllm serve` with JSON has some kB."""

MAX_SMALL_FILE_BYTES: Final = 64 * 1024
"""Read of stat, status and cgroup: a status has 1.5 kB, a cgroup file of v1 some 20 lines."""

_PF_EXITING: Final = 0x4  # include/linux/sched.h
_PID_MAX_LIMIT: Final = 4 * 1024 * 1024
_KILL_BIT: Final = 1 << (signal.SIGKILL - 1)
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """/proc/PID/stat of one process, or of one thread if it was asked by a thread's number.

    `exit_status` is what waitpid(2) will report, and means something for a zombie only; it reads 0
    where this agent has no ptrace access to the process.
    """

    pid: int
    name: str
    state: str
    parent: int
    session: int
    is_exiting: bool
    cpu_seconds: float
    threads: int
    start_ticks: int
    resident_bytes: int
    exit_status: int

    @property
    def is_zombie(self) -> bool:
        """Whether it has ended and waits for its parent."""
        return self.state in {"Z", "X"}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The arguments of a process, undecodable bytes as surrogates; `is_cut` by the bound."""

    arguments: tuple[str, ...]
    is_cut: bool = False


class Proc:
    """The proc file system at `root`."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self.root = root
        self._prefix = f"{root}/"
        boot_id = read_small(f"{self._prefix}sys/kernel/random/boot_id")
        self.boot_id = "" if boot_id is None else boot_id.decode("ascii", "replace").strip()

    def pids(self) -> list[int]:
        """The PIDs of every process that can be seen, in no order."""
        return [int(name) for name in os.listdir(self.root) if name.isdigit()]

    def inodes(self) -> dict[int, int]:
        """The PID of every process that can be seen, with the inode number of its folder.

        The number changes when the PID is used again, and when the kernel was short of memory.
        """
        with os.scandir(self.root) as entries:
            return {int(entry.name): entry.inode() for entry in entries if entry.name.isdigit()}

    def newest_pid(self) -> int | None:
        """The number that was last given to a process or a thread; None where nothing tells."""
        load = read_small(f"{self._prefix}loadavg")
        with contextlib.suppress(AttributeError, IndexError, ValueError):
            return int(load.split()[4])  # type: ignore[union-attr]
        return None

    def max_pid(self) -> int:
        """The number before which PIDs begin again; that of the largest systems if nothing tells.

        Source of that one: PID_MAX_LIMIT in include/linux/threads.h.
        """
        content = read_small(f"{self._prefix}sys/kernel/pid_max")
        with contextlib.suppress(TypeError, ValueError):
            return int(content)  # type: ignore[arg-type]
        return _PID_MAX_LIMIT

    def path(self, pid: int, name: str) -> str:
        """The path of one of a process's files."""
        return f"{self._prefix}{pid}/{name}"

    def stat(self, pid: int) -> ProcessStat | None:
        """The state of a process now."""
        content = read_small(f"{self._prefix}{pid}/stat")
        return None if content is None else parse_stat(content)

    def identify(self, stat: ProcessStat) -> ProcessId:
        """Who that process is, for ever."""
        return ProcessId(self.boot_id, stat.pid, stat.start_ticks)

    def is_same(self, process: ProcessId) -> bool:
        """Whether that very process is still there, as a zombie at least."""
        if process.boot_id != self.boot_id:
            return False
        stat = self.stat(process.pid)
        return stat is not None and stat.start_ticks == process.start_ticks

    def is_alive(self, process: ProcessId) -> bool:
        """Whether that very process is still there and has not ended: a zombie has."""
        if process.boot_id != self.boot_id:
            return False
        stat = self.stat(process.pid)
        return stat is not None and not stat.is_zombie and stat.start_ticks == process.start_ticks

    def command_line(self, pid: int) -> CommandLine | None:
        """The arguments of a process; none for a kernel thread or a zombie."""
        content = read_small(f"{self._prefix}{pid}/cmdline", MAX_COMMAND_LINE_BYTES + 1)
        return None if content is None else parse_command_line(content)

    def has_kill_pending(self, pid: int) -> bool | None:
        """Whether a SIGKILL is on its way to the process."""
        content = read_small(f"{self._prefix}{pid}/status")
        if content is None:
            return None
        pending = 0
        for line in content.split(b"\n"):
            if line.startswith((b"SigPnd:", b"ShdPnd:")):
                pending |= int(line.split()[1], 16)
        return bool(pending & _KILL_BIT)

    def uid(self, pid: int) -> int | None:
        """The effective user of a process."""
        with contextlib.suppress(OSError):
            return os.stat(f"{self._prefix}{pid}").st_uid
        return None

    def real_user(self, pid: int) -> tuple[int, int] | None:
        """Who started a process, as uid and gid, whatever it has become since."""
        content = read_small(f"{self._prefix}{pid}/status")
        with contextlib.suppress(AttributeError, IndexError, ValueError):
            lines = content.split(b"\n")  # type: ignore[union-attr]
            uid, gid = (line.split()[1] for line in lines if line.startswith((b"Uid:", b"Gid:")))
            return int(uid), int(gid)
        return None

    def inner_pid(self, pid: int) -> int | None:
        """The number of a process in its own PID namespace, which is what its log calls it."""
        content = read_small(f"{self._prefix}{pid}/status")
        with contextlib.suppress(AttributeError, StopIteration, ValueError):
            lines = content.split(b"\n")  # type: ignore[union-attr]
            return int(next(line for line in lines if line.startswith(b"NSpid:")).split()[-1])
        return None

    def program(self, pid: int) -> str | None:
        """The file name of what a process executes; None without ptrace access to it."""
        with contextlib.suppress(OSError):
            path = os.readlink(f"{self._prefix}{pid}/exe").removesuffix(" (deleted)")
            return path.rpartition("/")[2]
        return None

    def cgroup(self, pid: int) -> str | None:
        """/proc/PID/cgroup: lines of hierarchy:controllers:path."""
        content = read_small(f"{self._prefix}{pid}/cgroup")
        return None if content is None else content.decode("utf-8", "surrogateescape")

    def fd_count(self, pid: int) -> int | None:
        """How many files a process has open; None without ptrace access to it."""
        try:
            # Linux 6.2 and newer tell the count as the size, without a list being made.
            size = os.stat(f"{self._prefix}{pid}/fd").st_size
            return size or len(os.listdir(f"{self._prefix}{pid}/fd"))
        except OSError:
            return None

    def shows_exit_status(self, pid: int) -> bool:
        """Whether the agent has ptrace access: `exit_status` can be believed, fds can be told.

        Ask it before the stat is read.
        """
        try:
            os.readlink(f"{self._prefix}{pid}/exe")
        except PermissionError:
            return False
        except OSError:
            # Access was checked first: a zombie has no program any more, and of one that is gone
            # no stat will be read.
            pass
        return True

    def open_sockets(self, pid: int) -> Iterator[tuple[int, int]]:
        """(fd, inode) of each socket a process holds. Nothing without ptrace access to it."""
        folder = f"{self._prefix}{pid}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    link = os.readlink(f"{folder}/{name}")
                    if link.startswith("socket:["):
                        yield int(name), int(link[8:-1])

    def start_unix_seconds(self, stat: ProcessStat) -> float:
        """When a process was started, by the wall clock of now."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start_ticks / _TICKS_PER_SECOND
        return time.time() - age


def read_small(path: str, limit: int = MAX_SMALL_FILE_BYTES) -> bytes | None:
    """The first `limit` bytes of a file of /proc or /sys; None if it cannot be read."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except OSError:
        return None
    try:
        content = os.read(descriptor, limit)
        # One read gives all of most files; a long command line comes in pieces.
        while len(content) < limit and (more := os.read(descriptor, limit - len(content))):
            content += more
    except OSError:
        return None
    else:
        return content
    finally:
        os.close(descriptor)


def parse_stat(content: bytes) -> ProcessStat | None:
    """/proc/PID/stat as a value; None if it is not one. The name may hold anything, even `)`."""
    before, _, name = content.partition(b"(")
    name, _, after = name.rpartition(b")")
    fields = after.split()
    try:
        return ProcessStat(
            pid=int(before),
            name=name.decode("utf-8", "replace"),
            state=fields[0].decode("ascii", "replace"),
            parent=int(fields[1]),
            session=int(fields[3]),
            is_exiting=bool(int(fields[6]) & _PF_EXITING),
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
            resident_bytes=int(fields[21]) * _PAGE_BYTES,
            exit_status=int(fields[49]),
        )
    except (IndexError, ValueError):
        return None


def parse_command_line(content: bytes) -> CommandLine:
    """/proc/PID/cmdline as a value; a title (setproctitle) is one argument, its padding dropped."""
    is_cut = len(content) > MAX_COMMAND_LINE_BYTES
    content = content[:MAX_COMMAND_LINE_BYTES]
    stripped = content.rstrip(b"\0")
    if not stripped:
        return CommandLine(())
    decoded = (argument.decode("utf-8", "surrogateescape") for argument in stripped.split(b"\0"))
    return CommandLine(tuple(decoded), is_cut)
