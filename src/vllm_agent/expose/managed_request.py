"""The bodies of what may be asked of a managed server: a model, or how long to wait. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vllm_agent.config.model_id import why_no_model
from vllm_agent.expose.request_body import is_number, parse_object, refuse_body

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

MAX_PATIENCE_SECONDS: Final = 24 * 3600.0
"""A day: longer than the largest model loads from the slowest disk."""

_MODEL: Final = frozenset({"model"})
_TIMEOUT: Final = frozenset({"timeout_seconds"})
_NOTHING: Final[frozenset[str]] = frozenset()

_SEND_START: Final = 'Send {}, or {"model": "organization/name"} to serve another model.'
_SEND_MODEL: Final = 'Send {"model": "organization/name"}, or the path of a folder.'
_SEND_TIMEOUT: Final = 'Send {} to be answered at once, or {"timeout_seconds": 600} to wait.'
_SEND_NOTHING: Final = "Send {} or nothing."


def parse_start(body: bytes) -> str | None:
    """The model to serve from now on; None for the one that it serves anyway.

    Raises:
        ApiError: the body is not what is expected; the error says what to send.
    """
    value = _parse(body, _MODEL, _SEND_START).get("model")
    return None if value is None else _checked_model(value, _SEND_START)


def parse_model(body: bytes) -> str:
    """The model to serve from now on; raises `ApiError` as `parse_start`."""
    return _checked_model(_parse(body, _MODEL, _SEND_MODEL).get("model"), _SEND_MODEL)


def parse_stop(body: bytes) -> None:
    """Nothing is to be said of a stop; raises `ApiError` as `parse_start`."""
    _parse(body, _NOTHING, _SEND_NOTHING)


def parse_patience(body: bytes) -> float:
    """How many seconds to wait until it runs; raises `ApiError` as `parse_start`."""
    value = _parse(body, _TIMEOUT, _SEND_TIMEOUT).get("timeout_seconds")
    if value is None:
        return 0.0
    if not is_number(value) or not 0 <= value <= MAX_PATIENCE_SECONDS:
        limit = f"{MAX_PATIENCE_SECONDS:.0f}"
        refuse_body(f'"timeout_seconds" must be a number from 0 to {limit}', _SEND_TIMEOUT)
    return float(value)


def _parse(body: bytes, keys: AbstractSet[str], example: str) -> dict[str, Any]:
    """No body at all says as much as an empty object."""
    return parse_object(body, keys, example) if body else {}


def _checked_model(value: Any, example: str) -> str:
    if not isinstance(value, str):
        refuse_body('"model" must be the name of a model', example)
    if why_not := why_no_model(value):
        refuse_body(f'"model" is none: {why_not}', example)
    return value
