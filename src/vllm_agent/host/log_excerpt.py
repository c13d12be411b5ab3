"""The lines of a vLLM's log that explain a failure, without prompts and secrets.

They are warnings and worse, and tracebacks. Lines about requests, and whatever is logged at level
INFO, are left out.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vllm_agent.host.log_line import TROUBLE_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.log_line import LogLine

MAX_LINES: Final = 40
"""Kept of a log: what a person reads at a glance, and the history holds for every ending."""

MAX_LINE_CHARS: Final = 500
"""Of a line: the longest messages of vLLM about a failure, with what they advise, have 400."""

MAX_EXCERPT_BYTES: Final = 16 * 1024
"""Of all lines together: 400 for each, so that only many long ones are left out."""

FRAMES: Final = 2
"""Kept of a traceback, the innermost ones, with their source: the frames of one that went through
vLLM's layers would push everything else out."""

MESSAGE_LINES: Final = 6
"""Bare lines after the one of an exception that are taken for more of its message: Pydantic and
huggingface_hub write what is wrong on the second to the fifth."""

MAX_OPEN: Final = 16
"""Tracebacks that are logged at the same time, each by a process of its own."""

_MAX_RAW_CHARS: Final = 4 * MAX_LINE_CHARS  # redacting may shorten what is cut afterwards
_FRAME_LINES: Final = 2 * FRAMES
_TRACEBACK: Final = "Traceback (most recent call last):"
_IN_GROUP: Final = re.compile(r" *[|] ?| *[+] (?=Exception Group )")  # before an inner traceback
_POINTER: Final = re.compile(r"\s*[~^][\s~^]*")  # to a part of the source line above it
_BAR: Final = re.compile(r".{0,200}?\d%[^|]{0,20}\|")
_LEAK: Final = re.compile(r".{0,300}(?:UserWarning: |warnings\.warn\(')resource_tracker: ")
_REQUEST: Final = re.compile(
    r"(?:Received|Added|Aborted|Finished|Generated) (?:request|response)"
    r"|Request \S{1,100}[: ]"
    r'|\S{1,80}:\d{1,5} - "[A-Z]'
)
# What vLLM dumps of its work when an engine fails holds the tokens of prompts.
_DUMP: Final = re.compile(r"Dumping (?:input data|scheduler \w{1,20})")
_MAX_DUMP_PLACE: Final = 40  # after a level
_PROMPT: Final = re.compile(
    r"\b(?:prompts?|prompt_\w{1,30}|messages|inputs?|input_\w{1,30}|\w{1,30}_token_ids)\b"
    r"['\"]?\s?[=:]\s?['\"\[{(]"
)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
_LEFT_OUT: Final = " ... (left out)"


def is_about_requests(message: str) -> bool:
    """Whether a line is about what users sent, and may quote it."""
    return _REQUEST.match(message) is not None or _DUMP.match(message) is not None


@dataclass(slots=True)
class _Traceback:
    """One that a process is logging; once its exception is there, more of the message may come."""

    begin: str
    level: str | None
    frames: deque[str] = field(default_factory=lambda: deque(maxlen=_FRAME_LINES))
    has_ended: bool = False
    lines_left: int = MESSAGE_LINES


@dataclass(slots=True)
class _Block:
    """Lines that stay together, such as those of a traceback."""

    lines: tuple[str, ...]
    pid: int | None
    is_redacted: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(len(line.encode("utf-8", "replace")) for line in self.lines)


class LogExcerpt:
    """The newest lines that matter. `redact` is applied to whatever leaves it.

    Of what is logged again and again, only the last time counts.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._blocks: dict[int, _Block] = {}
        self._count = 0
        self._open: dict[tuple[int, int | None], _Traceback] = {}

    @property
    def wants_all(self) -> bool:
        """Whether the lines that come next may belong to one that matters."""
        return bool(self._open)

    def take(self, line: LogLine, source: int = 0, *, is_cause: bool = False) -> None:
        """Reads the next line of a log; `source` tells several logs of a launch apart.

        A line that `is_cause` matters in any case.
        """
        if line.level is not None:
            self._end_bare(source)
        key = source, line.pid
        if _TRACEBACK in line.message and _is_begin(line):
            self._begin(line, key)
            return
        traceback = self._open.get(key)
        if traceback is not None and traceback.level == line.level:
            if not traceback.has_ended:
                self._go_on(traceback, line, key)
                return
            if self._is_more(traceback, line):
                return
            del self._open[key]
        if (is_cause or line.level in TROUBLE_LEVELS) and _is_fit(line.message):
            level = "" if line.level is None else f"{line.level} "
            self._keep((level + line.message,), line.pid)

    def lines(self) -> tuple[tuple[int | None, str], ...]:
        """The lines in order, each with the process that wrote it where that is known."""
        for block in self._blocks.values():
            if not block.is_redacted:
                block.lines = tuple(cut(self._redact(line)) for line in block.lines)
                block.is_redacted = True
        size_bytes = sum(block.size_bytes for block in self._blocks.values())
        while size_bytes > MAX_EXCERPT_BYTES:
            size_bytes -= self._drop_oldest()
        return tuple(
            (block.pid, line) for block in self._blocks.values() for line in block.lines if line
        )

    def clear(self) -> None:
        """Forgets all."""
        self._blocks.clear()
        self._count = 0
        self._open.clear()

    def _end_bare(self, source: int) -> None:
        bare = self._open.get((source, None))
        if bare is not None and bare.has_ended:
            del self._open[source, None]

    def _begin(self, line: LogLine, key: tuple[int, int | None]) -> None:
        self._open.pop(key, None)
        if len(self._open) >= MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[key] = _Traceback(_ungrouped(line.message), line.level)

    def _go_on(self, traceback: _Traceback, line: LogLine, key: tuple[int, int | None]) -> None:
        message = _ungrouped(line.message)
        if not message or message[0].isspace():
            if message and not _POINTER.fullmatch(message):
                traceback.frames.append(message[:_MAX_RAW_CHARS])
            return
        self._keep((traceback.begin, *traceback.frames, message), line.pid)
        traceback.has_ended = True
        if line.level is not None:
            # The rest of its message has the level, too, by which it is known to matter.
            del self._open[key]

    def _is_more(self, traceback: _Traceback, line: LogLine) -> bool:
        """Whether a bare line is more of the message of an exception; if so, it is kept."""
        message = line.message
        if not traceback.lines_left or is_about_requests(message) or _BAR.match(message):
            return False
        if message.strip() and not _LEAK.match(message):
            traceback.lines_left -= 1
            self._keep((message,), line.pid)
        return True

    def _keep(self, messages: tuple[str, ...], pid: int | None) -> None:
        block = _Block(tuple(clean(message) for message in messages), pid)
        key = hash(block.lines)
        again = self._blocks.pop(key, None)
        self._count += len(block.lines) - (0 if again is None else len(again.lines))
        self._blocks[key] = block
        while self._count > MAX_LINES:
            self._drop_oldest()

    def _drop_oldest(self) -> int:
        """Drops the lines that stay together and are the oldest; returns their size in bytes."""
        block = self._blocks.pop(next(iter(self._blocks)))
        self._count -= len(block.lines)
        return block.size_bytes


def _ungrouped(message: str) -> str:
    found = _IN_GROUP.match(message)
    return message if found is None else message[found.end() :]


def _is_fit(message: str) -> bool:
    return bool(message.strip()) and _REQUEST.match(message) is None


def _is_begin(line: LogLine) -> bool:
    """Whether a traceback begins on a line: vLLM's own ones may stand behind an error's text."""
    begins = _ungrouped(line.message).startswith((_TRACEBACK, "Exception Group Traceback"))
    return begins and (line.level is None or line.level in TROUBLE_LEVELS)


def clean(message: str) -> str:
    """A message of a log without what users sent, and cut where a word ends."""
    found = _DUMP.search(message, 0, _MAX_DUMP_PLACE) or _PROMPT.search(message)
    if found is not None:
        message = message[: found.end()] + _LEFT_OUT
    if len(message) > _MAX_RAW_CHARS:
        message = message[:_MAX_RAW_CHARS]
        # What is secret may be known by its whole only.
        message = message.rpartition(" ")[0] or message
    return message


def cut(line: str) -> str:
    """A redacted line of at most MAX_LINE_CHARS, that does no harm to a terminal or a database."""
    line = _UNPRINTABLE.sub("", line)
    return line if len(line) <= MAX_LINE_CHARS else line[: MAX_LINE_CHARS - 3] + "..."
