"""Durations as Prometheus writes them: `1h30m`, `10s`, `500ms`.

Grammar and lengths of units: `ParseDuration` in model/time.go of prometheus/common.
"""

from __future__ import annotations

import re

_UNIT_MILLISECONDS = {
    "y": 365 * 24 * 3_600_000,
    "w": 7 * 24 * 3_600_000,
    "d": 24 * 3_600_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
# Prometheus counts nanoseconds in an int64, about 292 years; a float holds that to the millisecond.
MAX_MILLISECONDS = (2**63 - 1) // 1_000_000
_MAX_DIGITS = len(str(MAX_MILLISECONDS))
_GRAMMAR = re.compile(
    "".join(rf"(?:([0-9]{{1,{_MAX_DIGITS}}}){unit})?" for unit in _UNIT_MILLISECONDS)
)


def parse_duration(text: str) -> float:
    """Read a duration into seconds.

    Raises:
        ValueError: the text is not in the grammar; the message says what to write.
    """
    if text == "0":
        return 0.0
    match = _GRAMMAR.fullmatch(text)
    if not text or match is None:
        raise ValueError("must be a duration such as 500ms, 10s or 1h30m")
    milliseconds = sum(
        int(amount) * unit
        for amount, unit in zip(match.groups("0"), _UNIT_MILLISECONDS.values(), strict=True)
    )
    if milliseconds > MAX_MILLISECONDS:
        raise ValueError("must be shorter than 292 years")
    return milliseconds / 1_000


def format_duration(seconds: float) -> str:
    """Write a duration in the same grammar, rounded to the millisecond."""
    rest = round(seconds * 1_000)
    text = ""
    for unit, milliseconds in _UNIT_MILLISECONDS.items():
        amount, rest = divmod(rest, milliseconds)
        if amount:
            text += f"{amount}{unit}"
    return text or "0"
