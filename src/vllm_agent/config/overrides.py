"""The variables that change the one managed server of a file: VLLM_MODEL, VLLM_PORT, HF_TOKEN.

HF_TOKEN changes nothing here: a server inherits it from the agent, and no configuration holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.config.model import DEFAULT_MANAGED_URL
from vllm_agent.config.model_id import why_no_model
from vllm_agent.config.problem import Problem, key_path, quoted
from vllm_agent.config.url import MAX_PORT, parse_server_url
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODEL: Final = "VLLM_MODEL"
_PORT: Final = "VLLM_PORT"
_INSTEAD: Final = {
    _MODEL: "the model of each",
    _PORT: "the url of each",
    "HF_TOKEN": "for each managed.env: {HF_TOKEN_PATH: /path}, the file with its token",
}
_URI: Final = "://"
_IGNORED: Final = (
    f"{_PORT} is ignored: it is a URI, as Kubernetes sets it for a service named vllm; a managed "
    "server is started on the port of its url"
)


@dataclass(frozen=True, slots=True)
class Overridden:
    """The content of a file with what the environment changes; `value` is a copy where it does."""

    value: Any
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def override(value: Any, environ: Mapping[str, str]) -> Overridden:
    """Let the environment change the managed server of a file, if it has exactly one."""
    servers = value.get("servers") if isinstance(value, dict) else None
    managed = [
        index
        for index, server in enumerate(servers if isinstance(servers, list) else ())
        if isinstance(server, dict) and server.get("mode") == LifecycleMode.MANAGED
    ]
    given = {name: environ[name].strip() for name in _INSTEAD if environ.get(name, "").strip()}
    if not managed:
        return Overridden(value)
    warnings: tuple[str, ...] = ()
    if _URI in given.get(_PORT, ""):
        del given[_PORT]
        warnings = (_IGNORED,)
    if len(managed) > 1:
        problems = tuple(_problem(name, _too_many(name, managed)) for name in given)
        return Overridden(value, problems, warnings)
    (index,) = managed
    changes, problems = _changes(value["servers"][index], key_path(("servers", index)), given)
    changed = [*value["servers"]]
    changed[index] = {**changed[index], **changes}
    return Overridden({**value, "servers": changed}, problems, warnings)


def _too_many(name: str, managed: list[int]) -> str:
    places = ", ".join(key_path(("servers", index)) for index in managed[:2])
    others = ", ..." if len(managed) > 2 else ""  # noqa: PLR2004 - as many as are named
    return (
        f"is for one managed server, and {len(managed)} are configured ({places}{others}): unset "
        f"it and write {_INSTEAD[name]}"
    )


def _changes(
    server: Mapping[str, Any], place: str, given: Mapping[str, str]
) -> tuple[dict[str, str], tuple[Problem, ...]]:
    changes: dict[str, str] = {}
    problems = []
    if _MODEL in given:
        if why := why_no_model(given[_MODEL]):
            problems.append(_problem(_MODEL, f"{why}, got {quoted(given[_MODEL])}"))
        else:
            changes["model"] = given[_MODEL]
    if _PORT in given:
        try:
            changes["url"] = _with_port(server.get("url"), place, given[_PORT])
        except ValueError as error:
            problems.append(_problem(_PORT, str(error)))
    return changes, tuple(problems)


def _with_port(written: Any, place: str, text: str) -> Any:
    """The url with another port; one that is wrong as it is written is told when it is read."""
    port = (
        int(text) if text.isascii() and text.isdecimal() and len(text) <= len(f"{MAX_PORT}") else 0
    )
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"must be a port from 1 to {MAX_PORT}, got {quoted(text)}")
    if written is not None and not isinstance(written, str):
        return written
    try:
        url = parse_server_url(DEFAULT_MANAGED_URL if written is None else written)
    except ValueError:
        return written
    if url.socket_path is not None:
        raise ValueError(
            f"{place} listens on a unix socket: unset it, or write url: {DEFAULT_MANAGED_URL}"
        )
    return str(replace(url, port=port))


def _problem(name: str, message: str) -> Problem:
    return Problem(None, None, name, message)
