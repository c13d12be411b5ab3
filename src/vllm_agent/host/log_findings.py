"""All that the lines of one launch's log tell: marks of its end, causes, its load, an excerpt."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.host.failure_patterns import CANDIDATE as CAUSE_CANDIDATE
from vllm_agent.host.failure_patterns import Cause, cause_of
from vllm_agent.host.load_lines import LoadLines
from vllm_agent.host.log_excerpt import LogExcerpt, clean, cut
from vllm_agent.host.minor_tracebacks import CANDIDATE as MINOR_CANDIDATE
from vllm_agent.host.minor_tracebacks import MinorTracebacks
from vllm_agent.host.vllm_markers import MARKER_CANDIDATE, Marked, mark_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.log_line import LogLine
    from vllm_agent.observations import LogProgress

MAX_FINDINGS: Final = 256
"""Marks and causes that are taken from one piece of a log. The first ones decide."""

MAX_LOAD_LINES: Final = 10_000
"""Lines of a look at a load that are looked at one by one, in about 0.1 s. Of more, only those that
may be marks, causes or part of the excerpt are."""

MAX_ERROR_LINES: Final = 1000
"""Lines of one piece of a log that are asked for a cause, in 20 ms. Of real tracebacks one line in
twenty is: a piece has a hundred."""

CANDIDATES: Final = (
    re.compile(
        MARKER_CANDIDATE.pattern
        + rb"|WARNING|ERROR|CRITICAL|Traceback \(most recent call last\)|"
        + MINOR_CANDIDATE
    ),
    # One pattern for all would be searched for at less than half the speed.
    CAUSE_CANDIDATE,
)
"""One of these is in every line that may tell something of a launch that does not load any more."""

_MAY_CAUSE: Final = re.compile(CAUSE_CANDIDATE.pattern.decode())


@dataclass(frozen=True, slots=True)
class Caused:
    """A line that tells why a launch failed; the moments and `pid` are as in `Marked`.

    `text` is the line, redacted, for those who may see logs. `writer` tells the process from the
    others that write to the log of the number `log`.
    """

    cause: Cause
    text: str
    at_seconds: float | None = None
    written_seconds: float | None = None
    pid: int | None = None
    writer: int | None = None
    log: int = 0


@dataclass(frozen=True, slots=True)
class WentOn:
    """The load went on: what the `writers` logged before in the log of that number ended nothing.

    None of them is whoever wrote lines that name no process. `pid` is that of who told.
    """

    writers: tuple[int | None, ...]
    log: int = 0
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What a log has told: since the last time, and altogether.

    Each line of the `excerpt` has the process that wrote it, where that is known.
    """

    findings: tuple[Marked | Caused | WentOn, ...]
    progress: LogProgress
    excerpt: tuple[tuple[int | None, str], ...]


class LogFindings:
    """Reads lines, in their order. For one thread at a time.

    Counts `log_marks` when a piece held more than MAX_FINDINGS, or MAX_ERROR_LINES, and what
    `LoadLines` counts.
    """

    def __init__(self, redact: Callable[[str], str], count_dropped: Callable[[str], None]) -> None:
        self._redact = redact
        self._count_dropped = count_dropped
        self._load = LoadLines(count_dropped)
        self._excerpt = LogExcerpt(redact)
        self._minor = MinorTracebacks()
        self._new: list[Marked | Caused | WentOn] = []
        self._new_causes: set[tuple[Cause, int, int | None]] = set()
        self._in_trouble: set[tuple[int, int | None]] = set()
        self._is_shared = False
        self._error_lines_left = MAX_ERROR_LINES
        self._has_dropped = False
        self._load_lines_left = 0

    @property
    def wants_all(self) -> bool:
        """Whether it wants the next line even if that holds none of CANDIDATES."""
        return self._load_lines_left > 0 or self._excerpt.wants_all or self._minor.is_open

    def begin_look(self, *, is_loading: bool, is_shared: bool = False) -> None:
        """Lines come; while it loads, each may be a sign of progress.

        `is_shared`: another launch may have written those that name no process of this host.
        """
        self._load_lines_left = MAX_LOAD_LINES if is_loading else 0
        self._is_shared = is_shared

    def take(
        self,
        line: LogLine,
        *,
        source: int = 0,
        at_seconds: float | None = None,
        written_seconds: float | None = None,
        may_mark: bool = True,
    ) -> None:
        """Reads the next line; `source` tells the logs of a launch apart.

        The moments are those that are known better than the line's own. `may_mark` is whether the
        line is known to be of this launch for sure.
        """
        is_wanted = self._load_lines_left > 0
        self._load_lines_left -= is_wanted
        if self._is_shared and line.pid is None:
            return
        if may_mark:
            mark = mark_of(line, at_seconds, written_seconds)
            if mark is not None:
                self.note(mark)
        for part in line.lines():
            if is_wanted:
                self._note_progress(self._load.take(part), part.pid, source)
            cause = None if self._minor.has(part, source) else self._cause(part)
            self._excerpt.take(part, source, is_cause=cause is not None)
            if cause is not None:
                written = line.written_seconds if written_seconds is None else written_seconds
                self._note_cause(
                    Caused(cause, part.message, at_seconds, written, part.pid, part.writer, source)
                )

    def note(self, finding: Marked | Caused | WentOn) -> None:
        """Takes what is known from elsewhere."""
        if len(self._new) < MAX_FINDINGS:
            self._new.append(finding)
        else:
            self._drop()

    def restart(self) -> None:
        """What came so far was of an earlier launch."""
        self._new.clear()
        self._new_causes.clear()
        self._in_trouble.clear()
        self._minor.clear()
        self._excerpt.clear()
        self._load = LoadLines(self._count_dropped)

    def told(self) -> Told:
        """What the lines have told; its findings are new each time."""
        new, self._new, self._has_dropped = self._new, [], False
        self._error_lines_left = MAX_ERROR_LINES
        self._new_causes.clear()
        return Told(tuple(new), self._load.progress(), self._excerpt.lines())

    def _drop(self) -> None:
        if not self._has_dropped:
            self._has_dropped = True
            self._count_dropped("log_marks")

    def _cause(self, line: LogLine) -> Cause | None:
        if _MAY_CAUSE.search(line.message) is None:
            return None
        if not self._error_lines_left:
            self._drop()
            return None
        self._error_lines_left -= 1
        return cause_of(line.message, line.level)

    def _note_progress(self, writers: tuple[int | None, ...], pid: int | None, source: int) -> None:
        over = tuple(writer for writer in writers if (source, writer) in self._in_trouble)
        if over:
            self._in_trouble -= {(source, writer) for writer in over}
            self._new_causes = {
                what for what in self._new_causes if what[1] != source or what[2] not in over
            }
            self.note(WentOn(over, source, pid))

    def _note_cause(self, caused: Caused) -> None:
        self._load.note_trouble()
        if len(self._in_trouble) < MAX_FINDINGS:
            self._in_trouble.add((caused.log, caused.writer))
        what = caused.cause, caused.log, caused.writer
        if what not in self._new_causes and len(self._new_causes) < MAX_FINDINGS:
            self._new_causes.add(what)
            self.note(replace(caused, text=cut(self._redact(clean(caused.text)))))
