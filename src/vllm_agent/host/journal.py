"""Reads a unit's log from systemd's journal, with the moments at which its lines came."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.host.log_findings import CANDIDATES
from vllm_agent.host.log_line import read_line
from vllm_agent.host.short_command import NoAnswerError, run
from vllm_agent.host.vllm_markers import Marked, MarkKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vllm_agent.host.log_findings import LogFindings
    from vllm_agent.observations import Sighting

DEADLINE_SECONDS: Final = 1.5
"""For one read, which takes 30 ms on an idle host: an ending waits at most 2 s for its evidence."""

MAX_LINES: Final = 4000
"""The newest lines that are read: what 40 open requests log when their engine dies."""

MAX_JOURNAL_BYTES: Final = 16 * 1024 * 1024
"""Of an answer, which is read as it comes. journalctl leaves out what has more than 4 kB, and
prints coloured lines as numbers, which makes them four times as long."""

MAX_RECORD_BYTES: Final = 64 * 1024
"""Of one record: 4 kB as numbers have 20 kB. A longer one is no line of a vLLM."""

_STOPPING: Final = "de5b426a63be47a7b6ac3eaac82e2f6f"
"""SD_MESSAGE_UNIT_STOPPING: systemd logs it when somebody's stop or restart of a running unit
begins, and not when the unit ends by itself, is restarted for that, or was too slow."""

_BY_SYSTEMD: Final = "systemd told to stop the unit"
_LONG: Final = b'"MESSAGE":['  # so begins a message that is no plain text, colours included
_CUT: Final = b'"_LINE_BREAK":"line-max"'  # of what is longer than 48 kB the rest comes next
_MICROSECONDS: Final = 1e6
_NO_OTHERS: Final = "not seeing messages from other users"


@dataclass(frozen=True, slots=True)
class UnitInJournal:
    """Whose records are wanted: a unit's, in the boot `boot_id`, which is that of ProcessId.

    Moments of another boot would mean nothing. `uid` is the user whose systemd runs the unit; None
    for the host's.
    """

    unit: str
    boot_id: str
    uid: int | None = None

    @classmethod
    def of(cls, sighting: Sighting) -> UnitInJournal | None:
        """That of a server; None where it runs in none."""
        if sighting.unit is None:
            return None
        uid = sighting.uid if sighting.is_user_unit else None
        return cls(sighting.unit, sighting.process.boot_id, uid)

    def matches(self) -> Iterator[str]:
        """What the unit's processes wrote, or its systemd wrote about it; nobody else can say that.

        journald itself writes the fields that begin with `_`.
        """
        if self.uid is None:
            alternatives: tuple[tuple[str, ...], ...] = (
                (f"_SYSTEMD_UNIT={self.unit}",),
                (f"UNIT={self.unit}", "_PID=1"),
            )
        else:
            alternatives = (
                (f"_SYSTEMD_USER_UNIT={self.unit}", f"_UID={self.uid}"),
                (f"USER_UNIT={self.unit}", f"_UID={self.uid}", "_SYSTEMD_USER_UNIT=init.scope"),
            )
        for number, fields in enumerate(alternatives):
            if number:
                yield "+"
            yield from (*fields, f"_BOOT_ID={self.boot_id.replace('-', '')}")


class JournalTail:
    """The lines of one launch in the journal, each of them read once.

    `since_unix_seconds` is when it began. `journalctl` is the program to ask, with arguments.
    """

    def __init__(
        self,
        unit: UnitInJournal,
        since_unix_seconds: float,
        count_dropped: Callable[[str], None],
        *,
        journalctl: Sequence[str] = ("journalctl",),
    ) -> None:
        self._unit = unit
        self._since = since_unix_seconds
        self._count_dropped = count_dropped
        self._journalctl = journalctl
        self._last: tuple[int, str] | None = None

    async def read(self, findings: LogFindings) -> str:
        """Reads what is new; empty, or a sentence that tells why the journal cannot be read.

        Counts `journal_bytes` when there was more than is read.
        """
        since_seconds = self._since if self._last is None else self._last[0] / _MICROSECONDS
        records = _Records(findings, self._since, self._last)
        command = (
            *self._journalctl,
            "--no-pager",
            "--output=json",
            "--output-fields=MESSAGE,MESSAGE_ID,_LINE_BREAK",
            f"--lines={MAX_LINES}",
            # It can be told whole seconds only.
            f"--since=@{math.floor(since_seconds)}",
            *self._unit.matches(),
        )
        try:
            answer = await run(
                command,
                deadline_seconds=DEADLINE_SECONDS,
                max_bytes=MAX_JOURNAL_BYTES,
                take=records.feed,
            )
        except NoAnswerError as error:
            return str(error)
        finally:
            is_first, self._last = self._last is None, records.last()
        if answer.is_cut or (records.count >= MAX_LINES and not is_first):
            self._count_dropped("journal_bytes")
        if not records.count and _NO_OTHERS in answer.complaint:
            return "the agent may read its own user's messages only"
        return ""


class _Records:
    """Takes the output of `journalctl --output=json` apart, as it comes.

    Those up to `after` are known: that is when the last of them came, and its cursor.
    """

    def __init__(
        self, findings: LogFindings, since_unix_seconds: float, after: tuple[int, str] | None
    ) -> None:
        self.count = 0
        self._findings = findings
        self._since = since_unix_seconds
        self._after = after
        self._is_known = after is not None
        self._rest = b""
        self._newest = b""
        self._is_rest_of_line = False

    def feed(self, output: bytes) -> None:
        """Reads some more of it."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        for line in lines:
            self.count += 1
            self._read(line)
        if len(self._rest) > MAX_RECORD_BYTES:
            # What is left of it is no record either.
            self._rest = b"-"

    def last(self) -> tuple[int, str] | None:
        """The last one of all."""
        record = _record(self._newest)
        return self._after if record is None else (record.realtime, record.cursor)

    def _read(self, line: bytes) -> None:
        if self._is_known and self._after is not None:
            record = _record(line)
            if record is None or (record.realtime, record.cursor) == self._after:
                self._is_known = record is None
                return
            if record.realtime <= self._after[0]:
                return
            self._is_known = False
        self._newest = line
        is_rest, self._is_rest_of_line = self._is_rest_of_line, _CUT in line
        # To parse them all would take ten times as long.
        if is_rest or not (
            self._findings.wants_all
            or _LONG in line
            or _STOPPING.encode() in line
            or any(candidate.search(line) for candidate in CANDIDATES)
        ):
            return
        record = _record(line)
        if record is None or record.realtime / _MICROSECONDS < self._since:
            return
        at_seconds = record.monotonic / _MICROSECONDS
        if record.is_stop:
            self._findings.note(Marked(MarkKind.STOP, _BY_SYSTEMD, at_seconds, is_last_word=True))
        elif record.message is not None:
            self._findings.take(read_line(record.message), at_seconds=at_seconds)


@dataclass(frozen=True, slots=True)
class _Record:
    """One record; its moments in microseconds."""

    cursor: str
    realtime: int
    monotonic: int
    message: bytes | None
    is_stop: bool


def _record(line: bytes) -> _Record | None:
    try:
        fields = json.loads(line)
        message = fields["MESSAGE"]
        if isinstance(message, list):
            message = bytes(message)
        elif message is not None:
            message = message.encode("utf-8", "replace")
        return _Record(
            str(fields.get("__CURSOR")),
            int(fields["__REALTIME_TIMESTAMP"]),
            int(fields["__MONOTONIC_TIMESTAMP"]),
            message,
            fields.get("MESSAGE_ID") == _STOPPING,
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
