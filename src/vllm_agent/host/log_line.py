"""Takes the lines of a vLLM's log apart, in every form that they come in.

Logs are a hint and never the only evidence: flags and environment variables can change or remove
every line.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_LINE_BYTES: Final = 16 * 1024
"""Of a longer line only the beginning is read: what matters has 300 bytes, a logged prompt
megabytes. Docker and CRI cut lines at this length."""

MAX_WRAPPED_BYTES: Final = 100 * 1024
"""Of a line in an envelope: one of MAX_LINE_BYTES of which each byte is escaped by six."""

TROUBLE_LEVELS: Final = frozenset({"WARNING", "ERROR", "CRITICAL"})
"""Levels of lines that tell of trouble."""

_LEVEL: Final = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS: Final = r"(?:\([\w.:-]{1,80}(?: rank=\d+)? pid=(?P<pid>\d{1,9})\) )?"
_HEADER: Final = re.compile(
    _PROCESS + _LEVEL + r" (?P<stamp>\d\d-\d\d \d\d:\d\d:\d\d) \[[^\]]{1,200}:\d+\] ?"
    r"(?P<message>.*)",
    re.DOTALL,
)
_STAMP: Final = re.compile(r"[A-Z] \d\d-\d\d \d\d:\d\d:\d\d \[")
_MAX_PREFIX: Final = 200  # characters of VLLM_LOGGING_PREFIX, or of a progress bar that did not end
_LATER_HEADER: Final = re.compile(rf".{{0,{_MAX_PREFIX}}}?{_HEADER.pattern}", re.DOTALL)
_MAX_HEADER: Final = _MAX_PREFIX + 120  # characters until its stamp is over
# Uvicorn has a header of its own. Up to vLLM 0.30 every line of a process begins with its name.
_BARE: Final = re.compile(rf"{_PROCESS}(?:{_LEVEL}: +)?(?P<message>.*)", re.DOTALL)
_LEVELS: Final = frozenset({"DEBUG", "INFO", *TROUBLE_LEVELS})
_A_DAY_SECONDS: Final = 86400.0
_ENDS: Final = re.compile(rb"[\r\n]+")
_STREAMS: Final = frozenset({b"stdout", b"stderr"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a vLLM, taken apart.

    `pid` is the number in the PID namespace that it runs in. `written_seconds` is unix time if the
    server has this host's time zone, otherwise good for comparing with another line of the same
    log. `level` is None for a bare line, such as those of a traceback. `inner_pid` is the number
    that a line names where it means nothing outside of the server's own PID namespace: there `pid`
    is None.
    """

    message: str
    pid: int | None = None
    written_seconds: float | None = None
    level: str | None = None
    inner_pid: int | None = None

    @property
    def writer(self) -> int | None:
        """What tells the process that wrote it from the others of its log, where it names one."""
        return self.inner_pid if self.pid is None else self.pid

    def lines(self) -> Iterator[LogLine]:
        """It, or each line of a message that has several."""
        if "\n" not in self.message:
            yield self
            return
        for message in self.message.splitlines():
            yield replace(self, message=message)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A line in the envelope of a container's runtime, which got it at `at_seconds`, unix time.

    `is_whole`: the line ends here; otherwise the next one of this `stream` goes on with it.
    """

    raw: bytes
    stream: str
    at_seconds: float | None
    is_whole: bool


def lines_of(
    content: bytes,
    end: int,
    patterns: Sequence[re.Pattern[bytes]],
    wants_all: Callable[[int], bool],
    max_bytes: int = MAX_LINE_BYTES,
) -> Iterator[tuple[int, bytes]]:
    """The lines in `content` before `end` that hold one of `patterns`, and where each begins.

    Where `wants_all` says so the one at that place comes in any case. A line ends with LF or, for a
    progress bar begins anew on it, with CR; it is cut to `max_bytes`. Empty ones are left out.
    """
    found = [-1] * len(patterns)  # where each is found next
    place = 0
    while place < end:
        if not wants_all(place):
            for number, pattern in enumerate(patterns):
                if found[number] < place:
                    match = pattern.search(content, place, end)
                    found[number] = end if match is None else match.start()
            first = min(found)
            if first >= end:
                return
            place = max(place, _last_end(content, place, first) + 1)
        stop = _first_end(content, place, end)
        if stop > place:
            yield place, _whole(content, place, stop, max_bytes)
        ends = _ENDS.match(content, stop, end)
        place = stop if ends is None else ends.end()


def _whole(content: bytes, place: int, stop: int, max_bytes: int) -> bytes:
    # Where a file was truncated below a writer, zeros stand for what is gone.
    if content[place] == 0:
        return content[place:stop].lstrip(b"\0")[:max_bytes]
    return content[place : min(stop, place + max_bytes)]


def _last_end(content: bytes, begin: int, end: int) -> int:
    feed = content.rfind(b"\n", begin, end)
    return max(feed, content.rfind(b"\r", max(begin, feed), end))


def _first_end(content: bytes, begin: int, end: int) -> int:
    feed = content.find(b"\n", begin, end)
    stop = end if feed < 0 else feed
    back = content.find(b"\r", begin, stop)
    return stop if back < 0 else back


def read_line(raw: bytes) -> LogLine:
    """Takes one line apart: text with or without colours and prefix, or JSON."""
    text = raw.decode("utf-8", "replace").rstrip()
    if text.startswith("{"):
        line = _read_json(text)
        if line is not None:
            return line
    # A progress bar returns to the beginning of its line instead of ending it.
    if "\r" in text:
        text = text.rpartition("\r")[2]
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    found = _HEADER.match(text)
    if found is None and _STAMP.search(text, 0, _MAX_HEADER):
        # Before it may stand a prefix. The first header of a line is the one: what follows it may
        # quote another.
        found = _LATER_HEADER.match(text)
    if found is not None:
        written = _seconds(found["stamp"])
    else:
        found = _BARE.match(text)
        written = None
    if found is None:
        return LogLine(text)
    pid = found["pid"]
    return LogLine(found["message"], None if pid is None else int(pid), written, found["level"])


def unwrap(raw: bytes) -> Wrapped | None:
    r"""A line without its envelope; None if it has none.

    Docker's is `{"log": "…\n", "stream": "stdout", "time": "…Z"}`, that of CRI and Podman
    `2026-11-23T09:06:16.123456789+00:00 stdout F …`, with P instead of F for a part of a line.
    """
    if raw.startswith(b"{"):
        return _unwrap_docker(raw)
    moment, _, rest = raw.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, _, rest = rest.partition(b" ")
    if stream not in _STREAMS:
        return None
    at_seconds = _unix_seconds(moment.decode("ascii", "replace"))
    return Wrapped(rest, stream.decode(), at_seconds, tag != b"P")


def _unwrap_docker(raw: bytes) -> Wrapped | None:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("log"), str):
        return None
    text: str = record["log"]
    return Wrapped(
        text.encode("utf-8", "surrogatepass"),
        "stderr" if record.get("stream") == "stderr" else "stdout",
        _unix_seconds(record.get("time")),
        text.endswith("\n"),
    )


def _read_json(text: str) -> LogLine | None:
    """A line of `--logging-config.formatter json`, or of python-json-logger set up by hand."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("message"), str):
        return None
    message = record["message"]
    traceback = record.get("exc_info")
    if isinstance(traceback, str):
        message = f"{message}\n{traceback}"
    pid, written, level = record.get("process"), record.get("asctime"), record.get("levelname")
    return LogLine(
        message,
        pid if isinstance(pid, int) else None,
        _seconds(written[5:19]) if isinstance(written, str) else None,
        level if isinstance(level, str) and level in _LEVELS else None,
    )


def _seconds(stamp: str) -> float | None:
    """Unix time of a `MM-DD HH:MM:SS` of this host's time zone: the last one that has been."""
    now = time.time()
    this_year = time.localtime(now).tm_year
    for year in (this_year, this_year - 1):
        seconds = _seconds_in(year, stamp)
        if seconds is not None and seconds < now + _A_DAY_SECONDS:
            return seconds
    return None


@lru_cache(maxsize=64)
def _seconds_in(year: int, stamp: str) -> float | None:
    """The unix time of it; lines come in bursts of the same second."""
    try:
        return time.mktime(time.strptime(f"{year}-{stamp}", "%Y-%m-%d %H:%M:%S"))
    except (OverflowError, ValueError):
        return None


def _unix_seconds(moment: object) -> float | None:
    """Unix time of an RFC 3339 moment with up to nine digits of a second's fraction."""
    if not isinstance(moment, str):
        return None
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (OverflowError, ValueError):
        return None
