"""Whether a vLLM that discovery found is the one that a configured server means. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.config.match_values import MAX_COMMAND_CHARACTERS
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_agent.config.model import MatchConfig, ServerConfig
    from vllm_agent.config.url import ServerUrl
    from vllm_agent.observations import Sighting, VllmCommand

_THIS_HOST = frozenset({"127.0.0.1", "::1", "localhost"})


def matches(
    server: ServerConfig,
    sighting: Sighting,
    arguments: tuple[str, ...],
    pid_of: Callable[[Path], int | None],
) -> bool:
    """Whether `sighting` is `server`: by its `match`, of which all keys hold, else by its `url`.

    `arguments` are those of the main process; `pid_of` reads a PID file, None where there is none,
    and is called last, and only where everything else holds.
    """
    if server.mode is not LifecycleMode.MONITORED:
        return False
    if server.match is not None:
        return _holds(server.match, sighting, arguments, pid_of)
    return server.url is not None and _is_at(server.url, sighting)


def is_at(url: ServerUrl | None, sighting: Sighting) -> bool:
    """Whether `url`, which may be on any host, is surely where `sighting` is."""
    if url is None or url.socket_path is not None:
        return url is not None and _is_at(url, sighting)
    return str(url) == sighting.url or (_is_at(url, sighting) and url.host in _THIS_HOST)


def _holds(
    match: MatchConfig,
    sighting: Sighting,
    arguments: tuple[str, ...],
    pid_of: Callable[[Path], int | None],
) -> bool:
    return (
        (match.port is None or match.port == _port(sighting.command))
        and (match.systemd_unit is None or match.systemd_unit == sighting.unit)
        and (match.container is None or _begins(sighting.container_id, match.container))
        and (match.command is None or match.command.search(_text(arguments)) is not None)
        and (match.pid_file is None or pid_of(match.pid_file) == sighting.process.pid)
    )


def _is_at(url: ServerUrl, sighting: Sighting) -> bool:
    """Whether it listens there. The host is no evidence: a host has many names for itself."""
    if url.socket_path is None:
        return url.port == _port(sighting.command)
    return str(url.socket_path) == sighting.command.uds or str(url) == sighting.url


def _port(command: VllmCommand) -> int | None:
    return None if command.is_headless or command.uds is not None else command.port


def _begins(container_id: str | None, digits: str) -> bool:
    return container_id is not None and container_id.startswith(digits)


def _text(arguments: tuple[str, ...]) -> str:
    return " ".join(arguments)[:MAX_COMMAND_CHARACTERS]
