"""The log of one launch, read off the event loop; a disk that hangs costs a thread, no more."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.host.clock import now as clock_now
from vllm_agent.host.followed_files import FollowedFiles
from vllm_agent.host.journal import JournalTail, UnitInJournal
from vllm_agent.host.log_evidence import LogEvidence, LogSource
from vllm_agent.host.log_file import MAX_READ_BYTES
from vllm_agent.host.log_findings import LogFindings
from vllm_agent.host.patience import Patience, TooManyHung
from vllm_agent.host.secrets import Secrets
from vllm_agent.host.vllm_log import configured_logs, find_logs
from vllm_agent.observations import LogProgress, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vllm_agent.host.log_evidence import LoggedCause
    from vllm_agent.host.log_findings import Told
    from vllm_agent.host.proc import Proc
    from vllm_agent.host.vllm_log import Logs
    from vllm_agent.host.vllm_markers import Marked
    from vllm_agent.observations import Sight, Sighting

HUNG_SECONDS: Final = 1.0
"""A read that takes longer is given up, and with it the log: an ending does not wait for it."""

LATE_LINE_SECONDS: Final = 0.2
"""Container runtimes and journald write a line after it was printed. A guess that leaves most of
the 2 s of a verdict to what comes after it."""

LOOK_BYTES: Final = 256 * 1024
"""Read at a time while it loads, once a second, in about 30 ms; what is left comes the next time.
A load writes some hundred kilobytes altogether."""

SERVING_READ_SECONDS: Final = 30.0
"""How often the log of a server that serves is read: so what it holds is of a known time, and what
the server outlived can be told from what ended it."""

JOURNAL_SECONDS: Final = 10.0
"""How often the journal is read while it loads: each time starts a program, for 30 ms."""

_ORDER_SECONDS: Final = 1e-6
"""Lines that are read at once keep their order by times this far apart."""

_MAX_ORDER: Final = 1000  # of them, as many as matter

_Result = TypeVar("_Result")
_LOGGER: Final = logging.getLogger(__name__)


class LaunchLog:
    """What the log of one launch says of its load and of its end, as far as it can be read.

    `is_new` is whether the launch began just now. `log_file` is the log that the configuration
    names; without, it is looked for. In a file that other launches of `followed` read too, lines
    that name no process tell nothing. Whatever text leaves is redacted by what `read_secrets`
    finds, which is called in a thread before anything is read; without it no text leaves. Counts
    `log_hung` for a log that was given up.
    """

    def __init__(
        self,
        sighting: Sighting,
        proc: Proc,
        count_dropped: Callable[[str], None],
        *,
        is_new: bool,
        read_secrets: Callable[[], Secrets] | None = None,
        log_file: str | None = None,
        followed: FollowedFiles | None = None,
    ) -> None:
        self._sighting = sighting
        self._proc = proc
        self._count_dropped = count_dropped
        self._is_new = is_new
        self._log_file = log_file or sighting.log_file
        self._followed = FollowedFiles() if followed is None else followed
        self._is_shared = False
        self._is_gone = False
        self._patience = Patience(HUNG_SECONDS)
        self._evidence = LogEvidence(count_dropped)
        self._pids: Collection[int] = ()
        self._logs: Logs | None = None
        self._is_given_up = False
        self._is_closed = False
        self._reading: asyncio.Task[None] | None = None
        self._serving_read_seconds = -SERVING_READ_SECONDS
        # A thread may still be at work on the first when the second is used.
        self._read_secrets = read_secrets
        self._secrets: Secrets | None = None
        self._of_files = LogFindings(self._redact, count_dropped)
        self._of_journal = LogFindings(self._redact, count_dropped)
        self._told_by_files = self._of_files.told()
        self._told_by_journal = self._of_journal.told()
        unit = UnitInJournal.of(sighting)
        self._journal = (
            None if unit is None else JournalTail(unit, sighting.start_seconds, count_dropped)
        )
        self._is_journal_read = False
        self._asking_journal: asyncio.Task[None] | None = None
        self._asked_journal_seconds = -JOURNAL_SECONDS

    @property
    def sight(self) -> Sight | None:
        """Whether there is a log that can be read; None before it was looked for."""
        return None if self._logs is None else self._logs.sight

    def open(self) -> None:
        """Looks for the log; returns at once."""
        self._reading = asyncio.create_task(self._open(self._reading), name="open log")

    async def progress(self, pids: Collection[int] = ()) -> LogProgress | None:
        """Reads what is new, and tells what the log says of the load; None if none can be read.

        `pids` as in `read_soon`. The journal is asked in the background, from time to time.
        """
        if not self._is_closed:
            task = self._read_later(None, pids, is_loading=True)
            # If the caller is cancelled, the thread that reads is not left behind with the files.
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
            self._look_at_journal()
        return self._progress()

    def read_soon(self, at_seconds: float, pids: Collection[int]) -> None:
        """Reads what is new, and takes it as written before `at_seconds`; returns at once.

        `pids` are those that the launch has or had, as far as known: a line of another process,
        of an earlier launch that left some behind, is not one of this launch.
        """
        if not self._is_closed:
            self._read_later(at_seconds, pids)

    def note_gone(self) -> None:
        """Its main process has ended: what is started in its place may use the same file."""
        if not self._is_gone:
            self._is_shared = self._followed.was_shared(self)
            self._is_gone = True
            self._followed.release(self)

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
            if self._asking_journal is not None:
                await self._asking_journal
            await self._read_journal(is_loading=False)

    def note_serving(self, now_seconds: float, pids: Collection[int] = ()) -> None:
        """It answers healthily on a connection made then.

        What its log called a death long ago was none, and a cause from before did not prevent this.
        """
        self._evidence.note_serving(now_seconds)
        if now_seconds - self._serving_read_seconds >= SERVING_READ_SECONDS:
            self._serving_read_seconds = now_seconds
            self.read_soon(now_seconds, pids)

    def deciding(self) -> tuple[float, Marked] | None:
        """The mark that says why it ended, and when its log first told of an end.

        Times are on the monotonic clock. A stop that caused what was logged as a death was there
        before it.
        """
        return self._evidence.deciding()

    def cause(self) -> LoggedCause | None:
        """Why it failed: of the lines that say most the first, unless a stop came before it."""
        return self._evidence.cause()

    def excerpt(self) -> tuple[str, ...]:
        """The last lines of the log that matter: warnings and worse, and tracebacks; redacted."""
        return self._evidence.excerpt(self._told_by_files.excerpt, self._told_by_journal.excerpt)

    def close(self) -> None:
        """Reads no more."""
        for task in (self._reading, self._asking_journal):
            if task is not None:
                task.cancel()
        # A log that hangs belongs to the thread that hangs in it.
        if self._logs is not None and not self._is_given_up:
            self._logs.close()
        self._is_closed = True
        self._followed.release(self)
        self._patience.close()

    def _read_later(
        self, at_seconds: float | None, pids: Collection[int], *, is_loading: bool = False
    ) -> asyncio.Task[None]:
        self._pids = pids or self._pids
        before = self._reading
        self._reading = asyncio.create_task(
            self._read(before, at_seconds, is_loading=is_loading), name="read log"
        )
        return self._reading

    async def _open(self, before: asyncio.Task[None] | None, *, was_missing: bool = False) -> None:
        def find() -> Logs:
            if self._log_file is None:
                return find_logs(
                    self._proc, self._sighting, self._count_dropped, is_new=self._is_new
                )
            return configured_logs(
                self._proc,
                self._sighting,
                self._log_file,
                self._count_dropped,
                is_new=self._is_new,
                # There is nothing in it that is not of this launch.
                was_missing=was_missing or self._log_file == self._sighting.log_file,
            )

        if before is not None:
            await asyncio.wait({before})
        found = await self._in_thread(find)
        if self._secrets is None and self._read_secrets is not None:
            # Of a process that hangs nothing is known; what looks like a secret is left out still.
            self._secrets = next(iter(await self._in_thread(self._read_secrets)), Secrets.of(()))
        if found:
            self._logs = found[0]
            self._note_files()
        else:
            self._give_up()

    def _note_files(self) -> None:
        if self._logs is not None and not (self._is_gone or self._is_closed):
            self._followed.hold(self, (tail.identity for tail in self._logs.tails))

    async def _read(
        self, before: asyncio.Task[None] | None, at_seconds: float | None, *, is_loading: bool
    ) -> None:
        if before is not None:
            # Cancelled with this one, should that be; what it raised was told there.
            await asyncio.wait({before})
        if self._logs is not None and self._log_file is not None and not self._logs.tails:
            await self._open(None, was_missing=self._logs.is_missing)
        if self._logs is None or self._is_given_up:
            return
        pids = self._pids or ((self._sighting.process.pid,) if self._is_new else ())
        if not self._is_gone:
            self._is_shared = self._followed.was_shared(self)
        # Until it has served, each line may show that it survived what was logged before.
        self._of_files.begin_look(
            is_loading=is_loading or not self._evidence.has_served, is_shared=self._is_shared
        )
        pieces = self._logs.read(
            self._of_files, max_bytes=LOOK_BYTES if is_loading else MAX_READ_BYTES, pids=pids
        )

        def read_piece() -> Told | None:
            for _ in pieces:
                return self._of_files.told()
            return None

        count = 0
        while read := await self._in_thread(read_piece):
            told = read[0]
            self._note_files()
            if told is None:
                return
            self._told_by_files = told
            count = self._note(told, LogSource.FILES, at_seconds, count)
        self._give_up()

    def _note(self, told: Told, source: LogSource, at_seconds: float | None, count: int = 0) -> int:
        """Takes what was found, after so many of the same read; returns how many it is then."""
        self._evidence.know(self._pids)
        read_seconds = clock_now().monotonic_seconds if at_seconds is None else at_seconds
        for place, finding in enumerate(told.findings, count):
            order = max(1, _MAX_ORDER - place)
            self._evidence.note(finding, source, read_seconds - order * _ORDER_SECONDS)
        return count + len(told.findings)

    async def _in_thread(self, function: Callable[[], _Result]) -> list[_Result]:
        """The one result, or none where it hangs."""
        try:
            results, _ = await self._patience.map(lambda _: function(), [None])
        except TooManyHung:
            return []
        except asyncio.CancelledError:
            # The thread may be in the middle of it: its files must not be closed under it.
            self._is_given_up = True
            raise
        finally:
            # Reads come rarely: a thread that waits for the next costs 100 kB meanwhile.
            self._patience.close()
        return results

    def _redact(self, text: str) -> str:
        return "" if self._secrets is None else self._secrets.redact(text)

    def _look_at_journal(self) -> None:
        if self._logs is None or not self._logs.is_in_journal:
            return
        now_seconds = clock_now().monotonic_seconds
        if self._asking_journal is not None and not self._asking_journal.done():
            return
        if now_seconds - self._asked_journal_seconds >= JOURNAL_SECONDS:
            self._asked_journal_seconds = now_seconds
            self._asking_journal = asyncio.create_task(
                self._read_journal(is_loading=True), name="read journal"
            )

    async def _read_journal(self, *, is_loading: bool) -> None:
        if self._journal is None:
            return
        self._of_journal.begin_look(is_loading=is_loading or not self._evidence.has_served)
        why_not = await self._journal.read(self._of_journal)
        self._is_journal_read = self._is_journal_read or not why_not
        # To redact its lines may take longer than the event loop should wait.
        self._told_by_journal = await asyncio.to_thread(self._of_journal.told)
        self._note(self._told_by_journal, LogSource.JOURNAL, None)

    def _progress(self) -> LogProgress | None:
        told = []
        if self._logs is not None and self._logs.tails and not self._is_given_up:
            told.append(self._told_by_files.progress)
        if self._is_journal_read:
            told.append(self._told_by_journal.progress)
        return _together(told)

    def _give_up(self) -> None:
        if not self._is_given_up:
            self._is_given_up = True
            self._count_dropped("log_hung")
            _LOGGER.warning(
                "a log hangs and is not read", extra={"pid": self._sighting.process.pid}
            )


def _together(told: list[LogProgress]) -> LogProgress | None:
    """What several logs of a launch tell: of each thing the one that has got furthest."""
    if len(told) <= 1:
        return told[0] if told else None
    stages = [one.stage for one in told if one.stage is not None]
    shards = [one for one in told if one.shard_count is not None][:1]
    return LogProgress(
        max(stages, key=tuple(Stage).index, default=None),
        sum(one.new_lines for one in told),
        shards[0].shards_done if shards else None,
        shards[0].shard_count if shards else None,
        next((one.weights_bytes for one in told if one.weights_bytes is not None), None),
    )
