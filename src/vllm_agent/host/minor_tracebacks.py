"""Tracebacks that Python prints of what ends no process: of a thread, or of what it ignores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm_agent.host.log_line import LogLine

CANDIDATE: Final = rb"Exception in thread |Exception ignored in"
"""What the line holds that stands before such a traceback."""

MAX_OPEN: Final = 16
"""Those that are printed at the same time, each by a process of its own."""

MESSAGE_LINES: Final = 6
"""Lines of the message of an exception, after which its traceback may go on with the next one of a
chain: those of huggingface_hub have four."""

_BEGINS: Final = re.compile(CANDIDATE.decode())
_CHAINS: Final = ("During handling of the above exception", "The above exception was the direct")
_TRACEBACK: Final = "Traceback (most recent call last)"


@dataclass(slots=True)
class _Open:
    """One that is being printed; `lines_left` of its message, once its exception was there."""

    lines_left: int | None = None


class MinorTracebacks:
    """Tells their lines from all others. `source` tells several logs of a launch apart."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int | None], _Open] = {}

    @property
    def is_open(self) -> bool:
        """Whether the lines that come next may belong to one."""
        return bool(self._open)

    def clear(self) -> None:
        """Forgets all."""
        self._open.clear()

    def has(self, line: LogLine, source: int = 0) -> bool:
        """Whether the next line of a log belongs to one."""
        if line.level is not None:
            self._end(source, None)
            self._end(source, line.writer)
            return False
        return self._has_bare(line, (source, line.writer))

    def _has_bare(self, line: LogLine, key: tuple[int, int | None]) -> bool:
        if _BEGINS.match(line.message):
            self._open.pop(key, None)
            if len(self._open) >= MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[key] = _Open()
            return True
        traceback = self._open.get(key)
        if traceback is None:
            return False
        is_begin = line.message.startswith(_TRACEBACK)
        is_indented = not line.message or line.message[0].isspace()
        if line.message.startswith(_CHAINS):
            traceback.lines_left = None
        if traceback.lines_left is not None:
            traceback.lines_left -= 1
            if traceback.lines_left < 0 or is_begin:
                del self._open[key]
            # What is not indented may be about the end of the process itself.
            return is_indented and not is_begin
        if not (is_begin or is_indented or line.message.startswith(_CHAINS)):
            traceback.lines_left = MESSAGE_LINES
        return True

    def _end(self, source: int, writer: int | None) -> None:
        """Closes one whose exception was there."""
        traceback = self._open.get((source, writer))
        if traceback is not None and traceback.lines_left is not None:
            del self._open[source, writer]
