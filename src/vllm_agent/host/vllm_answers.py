"""What the small answers of a vLLM say, and whether it was a vLLM that answered."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.host.secret_shapes import without_shapes
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from vllm_agent.host.http_connection import Answer

MAX_NAMES_LENGTH: Final = 32 * 1024
"""Characters of model names kept of one server; the names of the base model come first."""

MAX_VERSION_LENGTH: Final = 128
"""A version becomes a label value; vLLM's builds from source have about 40 characters."""


class BadBodyError(ValueError):
    """A body is not what vLLM answers; the message completes "The answer to /path"."""


def judge_answer(answer: Answer, path: str) -> tuple[ProbeCause | None, str]:
    """Why the head of `answer` makes it a failure, and the sentence about it; None if it does not.

    The sentence holds nothing that the server wrote: it could repeat a key.
    """
    status = answer.status
    cause, remark = ProbeCause.BAD_BODY, "; a vLLM answers 200."
    match status // 100:
        case _ if status == HTTPStatus.OK:
            if not answer.is_encoded:
                return None, ""
            remark = ", compressed, against the request."
        case _ if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            cause, remark = ProbeCause.HTTP_4XX, ": the server wants a valid key (api_key_file)."
        case 3:
            remark = ", a redirect, which is never followed: correct the url."
        case 4:
            cause, remark = ProbeCause.HTTP_4XX, "."
        case 5:
            cause, remark = ProbeCause.HTTP_5XX, "."
    return cause, f"GET {path} was answered with HTTP {status}{remark}"


def parse_model_names(body: bytes) -> tuple[str, ...]:
    """The names in an answer of /v1/models, in its order, up to `MAX_NAMES_LENGTH` together.

    They are without what looks like a secret: see `without_secrets`.

    Raises:
        BadBodyError: it is not what vLLM answers; the message completes "The answer to /v1/models".
    """
    content = _parse_object(body)
    cards = content.get("data")
    if not isinstance(cards, list):
        raise BadBodyError("has no list of models")
    names: list[str] = []
    left = MAX_NAMES_LENGTH
    for card in cards:
        name = card.get("id") if isinstance(card, dict) else None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise BadBodyError("lists a model without a printable name")
        left -= len(name)
        if left < 0:
            break
        names.append(name)
    return without_secrets(tuple(names))


def without_secrets(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that can be shown: vLLM serves a model that has none under the URL it was given."""
    # One look at them all: a server may have thousands, and hardly one has anything.
    together = "\n".join(names)
    if without_shapes(together) == together:
        return names
    return tuple(map(without_shapes, names))


def parse_version(body: bytes) -> str:
    """The version in an answer of /version.

    Raises:
        BadBodyError: it is not what vLLM answers; the message completes "The answer to /version".
    """
    version = _parse_object(body).get("version")
    if not isinstance(version, str) or not version.isprintable():
        raise BadBodyError("has no printable version")
    if not 0 < len(version) <= MAX_VERSION_LENGTH:
        raise BadBodyError(f"has no version of at most {MAX_VERSION_LENGTH} characters")
    return version


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadBodyError("is not a JSON object") from None
    return content
