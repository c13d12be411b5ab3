"""Values as people read them on a terminal. Pure."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.size_text import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN: Final = "-"
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_GIB: Final = 1024**3
_GAP: Final = "  "


def plain(text: str) -> str:
    """The text without what a terminal would obey: servers choose their names and error texts."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\ufffd"
        for character in text
    )


def shell_word(text: str) -> str:
    """The text as one word of a command that people copy into a shell."""
    return shlex.quote(plain(text))


def shown(text: str | None) -> str:
    """A text from outside, or the sign for unknown."""
    return plain(text) if text else UNKNOWN


def age(seconds: float) -> str:
    """A duration in its two largest units: `12s`, `3m12s`, `2h05m`, `3d04h`."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def size_shown(count: int | None) -> str:
    """A number of bytes in its own unit, or the sign for unknown."""
    return UNKNOWN if count is None else size_text(count)


def gib(count: int | None) -> str:
    """A number of bytes in GiB, without the unit; what is there is never 0."""
    if count is None:
        return UNKNOWN
    text = f"{count / _GIB:.1f}"
    return "<0.1" if count and text == "0.0" else text


def age_of(unix_seconds: float | None, now_unix_seconds: float) -> str:
    """How long ago a moment was."""
    return UNKNOWN if unix_seconds is None else age(now_unix_seconds - unix_seconds)


def local_time(unix_seconds: float | None) -> str:
    """A moment in the time zone of whoever reads."""
    if unix_seconds is None:
        return UNKNOWN
    try:
        return f"{datetime.fromtimestamp(unix_seconds).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, without anything that a script would have to strip."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
