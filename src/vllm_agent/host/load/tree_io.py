"""How much the processes of a tree have read and written (proc_pid_io(5)).

Each way of reading shows in another field: a mapped file that comes from the disk in `read_bytes`
only, one that was read before and is in memory in `rchar` only if it is read and in none if it is
mapped, and one that is read from the disk in both. So of what was added from one look to the next
the larger field counts. A socket counts where it is read like a file, and not with recv(2), which
vLLM's own messages use.
"""

from __future__ import annotations

import contextlib
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

from vllm_agent.host.proc import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_agent.host.proc import Proc

_FIELDS: Final = (b"rchar:", b"read_bytes:", b"wchar:", b"write_bytes:")
_Counts: TypeAlias = tuple[int, ...]
_NOTHING: Final[_Counts] = (0,) * len(_FIELDS)


class TreeIo:
    """Adds up what the processes of one launch read and write.

    Looks may overlap: one that hung and comes back late tells the newest sum and changes nothing.
    """

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._lock = Lock()
        self._begun = 0
        self._counted = 0
        self._last: dict[int, _Counts] = {}
        self._total: int | None = None

    def total(self, pids: Iterable[int]) -> int | None:
        """Bytes since the processes were started; it never falls. None where none may be read.

        What a process did that ended between two looks counts when its parent has waited for it.
        """
        with self._lock:
            self._begun += 1
            number = self._begun
        now = {pid: counts for pid in pids if (counts := self._counts(pid)) is not None}
        with self._lock:
            if now and number > self._counted:
                self._counted = number
                self._total = (self._total or 0) + _added(self._last, now)
                self._last = now
            return self._total

    def _counts(self, pid: int) -> _Counts | None:
        content = read_small(self._proc.path(pid, "io"))
        with contextlib.suppress(AttributeError, KeyError, ValueError):
            words = content.split()  # type: ignore[union-attr]
            fields = dict(zip(words[::2], words[1::2], strict=True))
            return tuple(int(fields[name]) for name in _FIELDS)
        return None


def _added(before: dict[int, _Counts], now: dict[int, _Counts]) -> int:
    """What the processes of `now` did since `before`."""
    sums = [0] * len(_FIELDS)
    for pid, counts in now.items():
        known = before.get(pid, _NOTHING)
        # A count that fell is that of another process with the same number.
        known = known if all(map(int.__le__, known, counts)) else _NOTHING
        sums = [total + new - old for total, new, old in zip(sums, counts, known, strict=True)]
    # What has ended is counted again in the parent that waited for it.
    for pid in before.keys() - now.keys():
        sums = [total - old for total, old in zip(sums, before[pid], strict=True)]
    read, fetched, written, stored = sums
    return max(read, fetched, 0) + max(written, stored, 0)
