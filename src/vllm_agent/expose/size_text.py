"""A number of bytes as people read it. Pure."""

from __future__ import annotations

from typing import Final

_UNITS: Final = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size_text(size_bytes: int) -> str:
    """The size in the largest unit that it has one of."""
    for unit, unit_bytes in _UNITS:
        if abs(size_bytes) >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} B"
