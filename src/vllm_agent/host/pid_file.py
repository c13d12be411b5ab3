"""Reads the PID that a service wrote into a file."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_PID_FILE_BYTES: Final = 64
"""A PID has at most 7 digits (4,194,304); some services write a second line."""


def pid_of(path: Path) -> int | None:
    """The PID in the first line of `path`; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        first = os.read(descriptor, MAX_PID_FILE_BYTES).split(b"\n", 1)[0].strip()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int(first) if first.isdigit() else None
