"""What a process costs, as the kernel accounts it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUCLOCK_SCHED: Final = 2
_MIB_KB: Final = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory; `proportional_mib` counts a page shared by n processes as 1/n."""

    resident_mib: float
    proportional_mib: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, those that ended too.

    It is the POSIX clock of clock_getcpuclockid(3), the sum that /proc/PID/stat shows in ticks of
    10 ms, here in nanoseconds. The encoding is that of the kernel's MAKE_PROCESS_CPUCLOCK.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def memory(pid: int) -> Memory:
    """What is resident now.

    Raises:
        OSError: there is no such process.
    """
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value = line.split()[:2]
        fields[name] = int(value) / _MIB_KB
    return Memory(fields["Rss:"], fields["Pss:"])
