"""Moments, spans of time and what is unknown, as the status page writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm_agent.observations import Instant

UNKNOWN: Final = '<span class="quiet">unknown</span>'

_UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_EXACT_SECONDS: Final = 120.0


def moment(unix_seconds: float | None, now: Instant) -> str:
    """How far a time is from now; its title has it in UTC, since readers' zones are unknown."""
    if unix_seconds is None:
        return UNKNOWN
    try:
        at = datetime.fromtimestamp(unix_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return UNKNOWN
    distance = now.unix_seconds - unix_seconds
    far = _amount(abs(distance))
    away = f"{far} ago" if distance >= 0 else f"in {far}"
    title = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}" title="{title}">{away}</time>'


def _amount(seconds: float) -> str:
    for unit_seconds, name in _UNITS:
        amount = int(seconds // unit_seconds)
        if amount:
            return f"{amount} {name}{'' if amount == 1 else 's'}"
    return "0 seconds"


def span(seconds: float) -> str:
    """A span of time, as exact as anybody needs it who waits."""
    if seconds < _EXACT_SECONDS:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
