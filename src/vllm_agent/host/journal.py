"""Reads the markers of a unit's log from systemd's journal, with the moments at which they came."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.host.short_command import NoAnswerError, run
from vllm_agent.host.vllm_markers import Marked, MarkKind, candidates, read_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE_SECONDS: Final = 1.5
"""For one read, which takes 30 ms on an idle host: an ending waits at most 2 s for its evidence."""

MAX_LINES: Final = 4000
"""The newest lines that are read: what 40 open requests log when their engine dies."""

MAX_JOURNAL_BYTES: Final = 16 * 1024 * 1024
"""Of an answer. journalctl leaves out what has more than 4 kB, and prints coloured lines as
numbers, which makes them four times as long."""

_STOPPING: Final = "de5b426a63be47a7b6ac3eaac82e2f6f"
"""SD_MESSAGE_UNIT_STOPPING: systemd logs it when somebody's stop or restart of a running unit
begins, and not when the unit ends by itself, is restarted for that, or was too slow."""

_BY_SYSTEMD: Final = "systemd told to stop the unit"
_LONG_BYTES: Final = b'"MESSAGE":['  # so begins a message that is no plain text, colours included
_MICROSECONDS: Final = 1e6
_NO_OTHERS: Final = "not seeing messages from other users"


@dataclass(frozen=True, slots=True)
class JournalRead:
    """The marks of a unit, in order; None and a sentence where the journal cannot be read."""

    marks: tuple[Marked, ...] | None
    why_not: str = ""


async def read_journal(
    unit: str,
    *,
    is_user_unit: bool = False,
    uid: int = 0,
    since_unix_seconds: float,
    boot_id: str,
    count_dropped: Callable[[str], None],
    journalctl: Sequence[str] = ("journalctl",),
) -> JournalRead:
    """What a unit, and systemd about it, logged since a moment of this boot.

    `uid` is the user whose systemd runs the unit, if it is not the host's. `boot_id` is that of
    ProcessId: moments of another boot would mean nothing. `journalctl` is the program to ask, with
    arguments. Counts `journal_bytes` when there was more than is read.
    """
    command = (
        *journalctl,
        "--no-pager",
        "--output=json",
        "--output-fields=MESSAGE,MESSAGE_ID",
        f"--lines={MAX_LINES}",
        f"--since=@{int(since_unix_seconds)}",
        *_matches(unit, uid if is_user_unit else None, boot_id.replace("-", "")),
    )
    try:
        answer = await run(command, deadline_seconds=DEADLINE_SECONDS, max_bytes=MAX_JOURNAL_BYTES)
    except NoAnswerError as error:
        return JournalRead(None, str(error))
    if answer.is_cut:
        count_dropped("journal_bytes")
    if not answer.output and _NO_OTHERS in answer.complaint:
        return JournalRead(None, "the agent may read its own user's messages only")
    # Thousands of lines take longer than the event loop should wait.
    return JournalRead(await asyncio.to_thread(parse_journal, answer.output, since_unix_seconds))


def _matches(unit: str, uid: int | None, boot_id: str) -> Iterator[str]:
    """What the unit's processes wrote, or its systemd wrote about it; nobody else can say that.

    journald itself writes the fields that begin with `_`.
    """
    if uid is None:
        alternatives: tuple[tuple[str, ...], ...] = (
            (f"_SYSTEMD_UNIT={unit}",),
            (f"UNIT={unit}", "_PID=1"),
        )
    else:
        alternatives = (
            (f"_SYSTEMD_USER_UNIT={unit}", f"_UID={uid}"),
            (f"USER_UNIT={unit}", f"_UID={uid}", "_SYSTEMD_USER_UNIT=init.scope"),
        )
    for number, fields in enumerate(alternatives):
        if number:
            yield "+"
        yield from (*fields, f"_BOOT_ID={boot_id}")


def parse_journal(output: bytes, since_unix_seconds: float) -> tuple[Marked, ...]:
    """The marks in the lines of `journalctl --output=json`."""
    marks = []
    for line in output.split(b"\n"):
        # To parse them all would take ten times as long.
        if _STOPPING.encode() in line or _LONG_BYTES in line or any(candidates(line)):
            mark = _mark(line, since_unix_seconds)
            if mark is not None:
                marks.append(mark)
    return tuple(marks)


def _mark(line: bytes, since_unix_seconds: float) -> Marked | None:
    try:
        record = json.loads(line)
        # journalctl can be told whole seconds only.
        if int(record["__REALTIME_TIMESTAMP"]) / _MICROSECONDS < since_unix_seconds:
            return None
        at_seconds = int(record["__MONOTONIC_TIMESTAMP"]) / _MICROSECONDS
        message = record["MESSAGE"]
        raw = bytes(message) if isinstance(message, list) else message.encode("utf-8", "replace")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    if record.get("MESSAGE_ID") == _STOPPING:
        return Marked(MarkKind.STOP, _BY_SYSTEMD, at_seconds, is_last_word=True)
    return read_line(raw).mark(at_seconds)
