"""The body of a request for maintenance: `{"on": true, "for_seconds": 1800}`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.expose.json_view import MAX_MAINTENANCE_SECONDS
from vllm_agent.expose.request_body import is_number, parse_object, refuse_body

if TYPE_CHECKING:
    from vllm_agent.observations import Instant

_KEYS: Final = frozenset({"on", "for_seconds"})
_EXAMPLE: Final = 'Send {"on": true}, {"on": true, "for_seconds": 1800} or {"on": false}.'


@dataclass(frozen=True, slots=True)
class MaintenanceRequest:
    """Maintenance on or off; `for_seconds` is None for one without an end."""

    is_on: bool
    for_seconds: float | None = None

    def until_unix_seconds(self, now: Instant) -> float | None:
        """Its end: infinity where it has none, None where there is no maintenance."""
        if not self.is_on:
            return None
        return float("inf") if self.for_seconds is None else now.unix_seconds + self.for_seconds


def parse_maintenance(body: bytes) -> MaintenanceRequest:
    """Reads the body of a request.

    Raises:
        ApiError: it is not what is expected; the error says what to send.
    """
    value = parse_object(body, _KEYS, _EXAMPLE)
    is_on = value.get("on")
    if not isinstance(is_on, bool):
        refuse_body('"on" must be true or false', _EXAMPLE)
    return MaintenanceRequest(is_on, _for_seconds(value.get("for_seconds"), is_on=is_on))


def _for_seconds(value: Any, *, is_on: bool) -> float | None:
    if value is None:
        return None
    if not is_on:
        refuse_body('"for_seconds" goes with "on": true only', _EXAMPLE)
    if not is_number(value) or not 0 < value <= MAX_MAINTENANCE_SECONDS:
        limit = f"{MAX_MAINTENANCE_SECONDS:.0f}"
        refuse_body(f'"for_seconds" must be a number above 0 and at most {limit}', _EXAMPLE)
    return float(value)
