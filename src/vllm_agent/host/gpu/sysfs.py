"""Values of sysfs: one to a file, as text (Documentation/filesystems/sysfs.rst of the kernel)."""

from __future__ import annotations

import re
from typing import Final

from vllm_agent.host.proc import read_small

MAX_VALUE_BYTES: Final = 4096
"""Read of one file: the kernel makes a page of it at most."""

MAX_TEXT_LENGTH: Final = 128
"""Of a name or a version, which goes to a label; those of real devices have below 50 characters."""

_NUMBER: Final = re.compile(rb"-?[0-9]{1,20}")  # 2**64 has 20 digits


def parse_number(content: bytes | None) -> int | None:
    """The decimal number that is all of the content; None if it is anything else."""
    stripped = b"" if content is None else content.strip()
    return int(stripped) if _NUMBER.fullmatch(stripped) else None


def parse_text(content: bytes | None) -> str | None:
    """The first line, fit for a label and a terminal; None if it is empty or too long."""
    if content is None:
        return None
    line = content.strip().partition(b"\n")[0].decode("utf-8", "replace").strip()
    if not line or len(line) > MAX_TEXT_LENGTH:
        return None
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def read_number(path: str) -> int | None:
    """The number in a file; None if it cannot be read or holds something else."""
    return parse_number(read_small(path, MAX_VALUE_BYTES))


def read_text(path: str) -> str | None:
    """The text in a file; None if it cannot be read, or is empty or too long."""
    return parse_text(read_small(path, MAX_VALUE_BYTES))
