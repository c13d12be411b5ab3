"""The log of one launch, read off the event loop; a disk that hangs costs a thread, no more."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.host.journal import read_journal
from vllm_agent.host.patience import Patience, TooManyHung
from vllm_agent.host.vllm_log import find_logs
from vllm_agent.host.vllm_markers import MarkKind, decisive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vllm_agent.host.proc import Proc
    from vllm_agent.host.vllm_log import Logs
    from vllm_agent.host.vllm_markers import Marked
    from vllm_agent.observations import Sight, Sighting

HUNG_SECONDS: Final = 1.0
"""A read that takes longer is given up, and with it the log: an ending does not wait for it."""

LATE_LINE_SECONDS: Final = 0.2
"""Container runtimes and journald write a line after it was printed. A guess that leaves most of
the 2 s of a verdict to what comes after it."""

DEATH_STANDS_SECONDS: Final = 60.0
"""A server that serves this long after its log told of a death had none: of several API servers
those that are left answer for some seconds, and elastic scaling ends engines on purpose."""

_ORDER_SECONDS: Final = 1e-6
"""Lines that are read at once keep their order by times this far apart."""

_Result = TypeVar("_Result")
_LOGGER: Final = logging.getLogger(__name__)


class LaunchLog:
    """What the log of one launch says of its end, as far as it can be read without configuration.

    `is_new` is whether the launch began just now. Counts `log_hung` for a log that was given up.
    """

    def __init__(
        self, sighting: Sighting, proc: Proc, count_dropped: Callable[[str], None], *, is_new: bool
    ) -> None:
        self._sighting = sighting
        self._proc = proc
        self._count_dropped = count_dropped
        self._is_new = is_new
        self._patience = Patience(HUNG_SECONDS)
        self._logs: Logs | None = None
        self._is_given_up = False
        self._is_closed = False
        self._marks: list[tuple[float, Marked]] = []
        self._reading: asyncio.Task[None] | None = None

    @property
    def sight(self) -> Sight | None:
        """Whether there is a log that can be read; None before it was looked for."""
        return None if self._logs is None else self._logs.sight

    def open(self) -> None:
        """Looks for the log; returns at once."""
        self._reading = asyncio.create_task(self._open(), name="open log")

    def read_soon(self, at_seconds: float, pids: Collection[int]) -> None:
        """Reads what is new, and takes it as written before `at_seconds`; returns at once."""
        if self._is_closed:
            return
        before = self._reading
        self._reading = asyncio.create_task(self._read(before, at_seconds, pids), name="read log")

    async def finish(self, at_seconds: float, pids: Collection[int]) -> None:
        """Reads all that is still to come of a launch that has ended."""
        if self._logs is not None and (
            self._logs.is_in_journal or any(tail.source.is_wrapped for tail in self._logs.tails)
        ):
            await asyncio.sleep(LATE_LINE_SECONDS)
        self.read_soon(at_seconds, pids)
        if self._reading is not None:
            await self._reading
        if self._logs is not None and self._logs.is_in_journal:
            await self._read_journal()

    def forget_deaths(self, now_seconds: float) -> None:
        """It serves on, so what its log called a death long ago was none."""
        self._marks = [
            (at, mark)
            for at, mark in self._marks
            if mark.kind is not MarkKind.DEATH or now_seconds - at < DEATH_STANDS_SECONDS
        ]

    def deciding(self) -> tuple[float, Marked] | None:
        """The mark that says why it ended, and when its log first told of an end.

        Times are on the monotonic clock. A stop that caused what was logged as a death was there
        before it.
        """
        # In the order of the log: the times of reads are those of what made us read.
        mark = decisive([mark for _, mark in self._marks])
        return None if mark is None else (min(at for at, _ in self._marks), mark)

    def close(self) -> None:
        """Reads no more."""
        if self._reading is not None:
            self._reading.cancel()
        # A log that hangs belongs to the thread that hangs in it.
        if self._logs is not None and not self._is_given_up:
            self._logs.close()
        self._is_closed = True
        self._patience.close()

    async def _open(self) -> None:
        def find(_: None) -> Logs:
            return find_logs(self._proc, self._sighting, self._count_dropped, is_new=self._is_new)

        found = await self._in_thread(find)
        if found:
            self._logs = found[0]
        else:
            self._give_up()

    async def _read(
        self, before: asyncio.Task[None] | None, at_seconds: float, pids: Collection[int]
    ) -> None:
        if before is not None:
            # Cancelled with this one, should that be; what it raised was told there.
            await asyncio.wait({before})
        logs = self._logs
        if logs is None or self._is_given_up or not logs.tails:
            return
        read = await self._in_thread(lambda _: logs.read(pids))
        if not read:
            self._give_up()
            return
        (marks,) = read
        for place, mark in enumerate(marks):
            read_seconds = at_seconds - (len(marks) - place) * _ORDER_SECONDS
            self._note(mark, read_seconds)

    async def _in_thread(self, function: Callable[[None], _Result]) -> list[_Result]:
        """The one result, or none where it hangs."""
        try:
            results, _ = await self._patience.map(function, [None])
        except TooManyHung:
            return []
        except asyncio.CancelledError:
            # The thread may be in the middle of it: its files must not be closed under it.
            self._is_given_up = True
            raise
        finally:
            # Ends come rarely: a thread that waits for the next costs 100 kB meanwhile.
            self._patience.close()
        return results

    async def _read_journal(self) -> None:
        sighting = self._sighting
        if sighting.unit is None:
            return
        told = await read_journal(
            sighting.unit,
            is_user_unit=sighting.is_user_unit,
            uid=sighting.uid,
            since_unix_seconds=sighting.start_seconds,
            boot_id=sighting.process.boot_id,
            count_dropped=self._count_dropped,
        )
        for mark in told.marks or ():
            if mark.at_seconds is not None:
                self._note(mark, mark.at_seconds)

    def _note(self, mark: Marked, read_seconds: float) -> None:
        at = read_seconds if mark.at_seconds is None else mark.at_seconds
        self._marks.append((at, mark))

    def _give_up(self) -> None:
        if not self._is_given_up:
            self._is_given_up = True
            self._count_dropped("log_hung")
            _LOGGER.warning(
                "a log hangs and is not read", extra={"pid": self._sighting.process.pid}
            )
