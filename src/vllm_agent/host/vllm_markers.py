"""The lines by which a vLLM tells how it ends: that it was told to stop, or that a part of it died.

Logs are a hint and never the only evidence: flags and environment variables can change or remove
every line. What is kept of a line is the name of its marker, for its text may hold prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_agent.host.log_line import LogLine

LATE_STOP_SECONDS: Final = 5.0
"""How long before a line that is_late a stop can have caused lines of a death: the grace that vLLM
gives its engines is 5 s."""


class MarkKind(StrEnum):
    """What a marker says: it was told to stop, or a part of it died."""

    STOP = "stop"
    DEATH = "death"


@dataclass(frozen=True, slots=True)
class Marker:
    """A line of vLLM: its message begins with `begins` and has `holds` further on.

    `oldest` and `newest` are of the versions that were read (0.11.0, 0.13.0, 0.15.1, 0.18.1,
    0.20.2, 0.22.1, 0.23.0, 0.25.1, 0.28.0 and 0.32.0) the first and the last that log it.
    `is_last_word` marks what the process says that watches all the others: after a death it ends
    those itself, so that what they log from then on, of a stop too, means nothing.
    """

    kind: MarkKind
    name: str
    begins: str
    holds: str
    oldest: str
    newest: str
    is_last_word: bool = False
    is_late: bool = False

    def matches(self, message: str) -> bool:
        """Whether it is this line."""
        return message.startswith(self.begins) and self.holds in message[len(self.begins) :]


_STOP, _DEATH = MarkKind.STOP, MarkKind.DEATH
_API_SERVERS: Final = "Exception occurred while running API servers: "

MARKERS: Final = (
    # The first of many lines of a stop, so that one which is lost does no harm. Only a signal
    # brings them about: when its engine is dead, an API server leaves without.
    Marker(_STOP, "API server told to stop", "[shutdown] API server: ", "", "0.23.0", "0.32.0"),
    Marker(
        _STOP, "API server told to stop", "Shutting down FastAPI HTTP server.", "",
        "0.11.0", "0.22.1", is_late=True,
    ),
    Marker(
        _STOP, "several API servers told to stop", "Waiting up to ",
        " seconds for processes to exit", "0.18.1", "0.32.0", is_last_word=True,
    ),
    Marker(
        _STOP, "several API servers told to stop", "Received KeyboardInterrupt, shutting down API",
        "", "0.11.0", "0.32.0", is_last_word=True,
    ),
    Marker(
        _STOP, "supervisor told to stop", "DPSupervisor received ", "", "0.22.1", "0.32.0",
        is_last_word=True,
    ),
    # From 0.20 to 0.22 an engine that vanishes is told of by the output handler only.
    Marker(
        _DEATH, "engine vanished", "[shutdown] MPClient: engine core exited unexpectedly", "",
        "0.23.0", "0.32.0",
    ),
    Marker(
        _DEATH, "engine vanished", "Engine core proc ", " died unexpectedly", "0.11.0", "0.18.1"
    ),
    Marker(
        _DEATH, "engine failed", "EngineCore encountered a fatal error.", "", "0.11.0", "0.32.0"
    ),
    Marker(_DEATH, "worker died", "Worker proc ", " died unexpectedly", "0.11.0", "0.32.0"),
    Marker(_DEATH, "worker died", "RayWorkerProc ", " died unexpectedly", "0.20.2", "0.32.0"),
    Marker(
        _DEATH, "API server lost its engine", "AsyncLLM output_handler failed.", "",
        "0.11.0", "0.32.0",
    ),
    Marker(
        _DEATH, "API server process died", _API_SERVERS + "Process ApiServer_",
        " died with exit code", "0.11.0", "0.32.0", is_last_word=True,
    ),
    Marker(
        _DEATH, "process died", _API_SERVERS, " died ", "0.11.0", "0.32.0", is_last_word=True
    ),
    Marker(
        _DEATH, "supervised server died", "DPSupervisor found ", " exited DP Servers",
        "0.22.1", "0.32.0", is_last_word=True,
    ),
    Marker(
        _DEATH, "supervised server unhealthy", "DPSupervisor probe found ",
        " unhealthy DP Servers", "0.22.1", "0.32.0", is_last_word=True,
    ),
)  # fmt: skip
"""Every line that counts. Not among them, for a normal stop has them too: `force killing remaining
process`, `send sigterm to process`, `Parent process exited`, `port 8000 is used by process`."""

LAUNCH_BEGINS: Final = "non-default args: "
"""Logged once by each launch, before all else of interest: where launches share a file, the marks
above it are another launch's."""


@dataclass(frozen=True, slots=True)
class Marked:
    """One marker that was seen.

    `at_seconds` is when it was logged, on the monotonic clock; None where only the line's own stamp
    tells. That is `written_seconds`, to the second: unix time if the server has this host's time
    zone, otherwise good for comparing with another line of the same log. `pid` is that
    of the process that wrote it, where the line tells.
    """

    kind: MarkKind
    name: str
    at_seconds: float | None = None
    written_seconds: float | None = None
    is_last_word: bool = False
    is_late: bool = False
    pid: int | None = None


def mark_of(
    line: LogLine, at_seconds: float | None = None, written_seconds: float | None = None
) -> Marked | None:
    """The mark that a line is, with the moments that are known better than the line's own."""
    if _BEGINS.match(line.message) is None:
        return None
    for marker in MARKERS:
        if marker.matches(line.message):
            return Marked(
                marker.kind,
                marker.name,
                at_seconds,
                line.written_seconds if written_seconds is None else written_seconds,
                marker.is_last_word,
                marker.is_late,
                line.pid,
            )
    return None


# Capitals are rare: what begins with one is found four times as fast.
_NEEDLES: Final = {
    re.sub(r"^[^A-Z-]*", "", begins) for begins in (*(m.begins for m in MARKERS), LAUNCH_BEGINS)
}
MARKER_CANDIDATE: Final = re.compile("|".join(map(re.escape, sorted(_NEEDLES))).encode())
"""What lines hold that may be a mark, or LAUNCH_BEGINS."""

_BEGINS: Final = re.compile("|".join(sorted({re.escape(m.begins) for m in MARKERS})))


def decisive(marks: Sequence[Marked]) -> Marked | None:
    """The one of a launch's marks, in the order of its log, that says why it ended.

    It is the first, with one exception: up to vLLM 0.22 a stop ends the engines, which may log
    their deaths, before it logs anything itself. There a line of a stop within LATE_STOP_SECONDS
    explains the deaths before it, unless the process that watches all the others told of one.
    """
    first = marks[0] if marks else None
    if first is None or first.kind is _STOP:
        return first
    for mark in marks:
        if mark.is_late and gap_seconds(first, mark) <= LATE_STOP_SECONDS:
            return mark
        if mark.is_last_word:
            break
    return first


class Moment(Protocol):
    """When something was logged, as in `Marked`."""

    @property
    def at_seconds(self) -> float | None:
        """On the monotonic clock."""

    @property
    def written_seconds(self) -> float | None:
        """By the stamp of the line."""


def gap_seconds(earlier: Moment, later: Moment) -> float:
    """The time between two lines; none where nothing tells: they were found close together."""
    for one, other in (
        (earlier.at_seconds, later.at_seconds),
        (earlier.written_seconds, later.written_seconds),
    ):
        if one is not None and other is not None:
            return other - one
    return 0.0
