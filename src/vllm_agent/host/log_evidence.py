"""What the log of one launch has told about its end, and what of that still stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vllm_agent.host.failure_patterns import START_REASONS
from vllm_agent.host.log_excerpt import MAX_LINES
from vllm_agent.host.log_findings import Caused, WentOn
from vllm_agent.host.vllm_markers import LATE_STOP_SECONDS, Marked, MarkKind, decisive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from vllm_agent.lifecycle.reasons import Reason

DEATH_STANDS_SECONDS: Final = 60.0
"""A server that serves this long after its log told of a death had none: of several API servers
those that are left answer for some seconds, and elastic scaling ends engines on purpose."""

MAX_ENTRIES: Final = 256
"""Different marks and causes that are kept: each process may log each of the dozens there are."""


_TOLD_CHARS: Final = 200  # of two lines that are the same


class LogSource(Enum):
    """Where a line stood: the lines of one have an order."""

    FILES = auto()
    JOURNAL = auto()


@dataclass(frozen=True, slots=True)
class LoggedCause:
    """Why a launch failed, by a line of its log of the pattern `name`.

    `at_seconds` is when it was logged at the latest, on the monotonic clock.
    """

    reason: Reason
    name: str
    at_seconds: float


@dataclass(slots=True)
class _Entry:
    """A finding, and when it came for the first and for the last time."""

    finding: Marked | Caused
    source: LogSource
    at_seconds: float
    last_seconds: float


class LogEvidence:
    """Marks and causes in the order of the log. Counts `log_marks` beyond MAX_ENTRIES."""

    def __init__(self, count_dropped: Callable[[str], None]) -> None:
        self._count_dropped = count_dropped
        self._entries: dict[object, _Entry] = {}
        self._pids: Collection[int] = ()
        self._served_seconds: float | None = None
        self._healthy_seconds: float | None = None

    @property
    def has_served(self) -> bool:
        """Whether it is known to have served."""
        return self._served_seconds is not None

    def know(self, pids: Collection[int]) -> None:
        """The processes that the launch has or had: what others wrote does not count."""
        if pids:
            self._pids = pids

    def note(
        self, finding: Marked | Caused | WentOn, source: LogSource, read_seconds: float
    ) -> None:
        """Takes the next finding; it was logged before `read_seconds`."""
        if isinstance(finding, WentOn):
            self._note_went_on(finding, source)
            return
        at_seconds = read_seconds if finding.at_seconds is None else finding.at_seconds
        entry = _Entry(finding, source, at_seconds, at_seconds)
        if not self._stands(entry):
            return
        key: object
        if isinstance(finding, Caused):
            key = finding.cause, finding.pid, finding.writer, finding.log, source
        else:
            key = finding.kind, finding.name, finding.pid, source
        before = self._entries.get(key)
        if before is not None:
            before.last_seconds = at_seconds
        elif len(self._entries) < MAX_ENTRIES:
            self._entries[key] = entry
        else:
            self._count_dropped("log_marks")

    def note_serving(self, now_seconds: float) -> None:
        """It serves: what was logged before, and was no stop, did not prevent that."""
        if self._served_seconds is None:
            self._served_seconds = now_seconds
        self._healthy_seconds = now_seconds
        self._entries = {key: entry for key, entry in self._entries.items() if self._stands(entry)}
        for entry in self._entries.values():
            if now_seconds - entry.at_seconds >= DEATH_STANDS_SECONDS:
                entry.at_seconds = entry.last_seconds

    def deciding(self) -> tuple[float, Marked] | None:
        """The mark that says why it ended, and when its log first told of an end.

        Times are on the monotonic clock. A stop that caused what was logged as a death was there
        before it.
        """
        # In the order of the log: the times of reads are those of what made us read.
        entries = [entry for entry in self._ours() if isinstance(entry.finding, Marked)]
        mark = _decisive(entries)
        return None if mark is None else (min(entry.at_seconds for entry in entries), mark)

    def cause(self) -> LoggedCause | None:
        """The first of the causes that say most."""
        best = self._best()
        if best is None:
            return None
        entry, caused = best
        return LoggedCause(caused.cause.reason, caused.cause.name, entry.at_seconds)

    def excerpt(
        self,
        of_files: Sequence[tuple[int | None, str]],
        of_journal: Sequence[tuple[int | None, str]],
    ) -> tuple[str, ...]:
        """The last of the lines that matter; the one that tells the cause is always among them."""
        lines = [text for pid, text in of_files if self._is_pid_ours(pid)]
        lines = [*lines, *(text for _, text in of_journal)][-MAX_LINES:]
        best = self._best()
        text = "" if best is None else best[1].text
        if text and not any(text[:_TOLD_CHARS] in line for line in lines):
            lines = [text, *lines[-(MAX_LINES - 1) :]]
        return tuple(lines)

    def _note_went_on(self, went_on: WentOn, source: LogSource) -> None:
        if source is LogSource.FILES and not self._is_pid_ours(went_on.pid):
            return
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if entry.source is not source or not _is_survived(entry.finding, went_on)
        }

    def _stands(self, entry: _Entry) -> bool:
        """Whether a finding still counts for a server that has served, or serves, since."""
        if isinstance(entry.finding, Caused):
            if self._served_seconds is not None and (
                entry.last_seconds <= self._served_seconds
                or entry.finding.cause.reason in START_REASONS
            ):
                return False
        elif entry.finding.kind is MarkKind.STOP:
            return True
        return (
            self._healthy_seconds is None
            or self._healthy_seconds - entry.last_seconds < DEATH_STANDS_SECONDS
        )

    def _is_pid_ours(self, pid: int | None) -> bool:
        return pid is None or not self._pids or pid in self._pids

    def _ours(self) -> Iterator[_Entry]:
        for entry in self._entries.values():
            # All that the journal has of a unit is the unit's.
            if entry.source is LogSource.JOURNAL or self._is_pid_ours(entry.finding.pid):
                yield entry

    def _best(self) -> tuple[_Entry, Caused] | None:
        causes = [found for source in LogSource for found in self._causes(source)]
        return min(causes, key=lambda found: found[1].cause.rank, default=None)

    def _causes(self, source: LogSource) -> Iterator[tuple[_Entry, Caused]]:
        """The causes that no stop explains, in the order of that log."""
        entries = [entry for entry in self._ours() if entry.source is source]
        mark = _decisive(entries)
        late_stops = [e for e in entries if mark is not None and e.finding is mark and mark.is_late]
        for entry in entries:
            if isinstance(entry.finding, Caused):
                if not any(_is_close(entry, stop) for stop in late_stops):
                    yield entry, entry.finding
            elif entry.finding.kind is MarkKind.STOP:
                return


def _decisive(entries: Sequence[_Entry]) -> Marked | None:
    return decisive([entry.finding for entry in entries if isinstance(entry.finding, Marked)])


def _is_survived(finding: Marked | Caused, went_on: WentOn) -> bool:
    return (
        isinstance(finding, Caused)
        and finding.log == went_on.log
        and finding.writer in went_on.writers
    )


def _is_close(cause: _Entry, stop: _Entry) -> bool:
    """Whether a stop that is logged late was there when that cause was logged."""
    written, stopped = cause.finding.written_seconds, stop.finding.written_seconds
    if written is None or stopped is None:
        return stop.at_seconds - cause.at_seconds <= LATE_STOP_SECONDS
    return stopped - written <= LATE_STOP_SECONDS
