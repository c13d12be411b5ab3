"""The JSON body of a request, as strictly as an operator's typing errors need it. Pure."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_agent.expose.api_errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet


def parse_object(body: bytes, keys: AbstractSet[str], example: str) -> dict[str, Any]:
    """Reads a body that is an object with no other keys than these; `example` says what to send.

    Raises:
        ApiError: it is not.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        refuse_body("the body is not JSON", example, "bad_json")
    if not isinstance(value, dict):
        refuse_body("the body must be an object", example)
    if unknown := sorted(value.keys() - keys):
        refuse_body(f"the body has an unknown key: {unknown[0]!r}", example)
    return value


def is_number(value: object) -> bool:
    """Whether a value of a body is a number; to Python true and false are numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def refuse_body(message: str, example: str, code: str = "bad_body") -> NoReturn:
    """Says what is wrong with a body, and what to send instead."""
    raise ApiError(HTTPStatus.BAD_REQUEST, code, message, example)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
