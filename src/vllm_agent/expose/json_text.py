"""Values as JSON can express them. Pure.

What is unknown is null, never 0. Times are unix seconds, to the millisecond. JSON has no infinity.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMESTAMP_DIGITS: Final = 3
_DURATION_DIGITS: Final = 6


def encode(value: Mapping[str, object] | list[Mapping[str, object]]) -> bytes:
    """The JSON text of a view, in UTF-8.

    A name from outside may hold what UTF-8 cannot express; it must not cost the answer.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def timestamp(unix_seconds: float | None) -> float | None:
    """A moment."""
    return _rounded(unix_seconds, _TIMESTAMP_DIGITS)


def duration(seconds: float | None) -> float | None:
    """A span of time in seconds."""
    return _rounded(seconds, _DURATION_DIGITS)


def _rounded(number: float | None, digits: int) -> float | None:
    # What a server says of itself may be any number; JSON has neither infinity nor NaN.
    return None if number is None or not math.isfinite(number) else round(number, digits)
