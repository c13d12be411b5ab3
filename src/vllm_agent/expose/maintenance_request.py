"""The body of a request for maintenance: `{"on": true, "for_seconds": 1800}`. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vllm_agent.expose.api_errors import ApiError
from vllm_agent.expose.json_view import MAX_MAINTENANCE_SECONDS

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
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        _refuse("bad_json", "the body is not JSON")
    if not isinstance(value, dict) or not isinstance(value.get("on"), bool):
        _refuse("bad_body", 'the body must be an object in which "on" is true or false')
    if unknown := sorted(value.keys() - _KEYS):
        _refuse("bad_body", f"the body has an unknown key: {unknown[0]!r}")
    is_on: bool = value["on"]
    return MaintenanceRequest(is_on, _for_seconds(value.get("for_seconds"), is_on=is_on))


def _for_seconds(value: Any, *, is_on: bool) -> float | None:
    if value is None:
        return None
    if not is_on:
        _refuse("bad_body", '"for_seconds" goes with "on": true only')
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_MAINTENANCE_SECONDS:
        limit = f"{MAX_MAINTENANCE_SECONDS:.0f}"
        _refuse("bad_body", f'"for_seconds" must be a number above 0 and at most {limit}')
    return float(value)


def _refuse(code: str, message: str) -> NoReturn:
    raise ApiError(HTTPStatus.BAD_REQUEST, code, message, _EXAMPLE)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
