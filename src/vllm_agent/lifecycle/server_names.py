"""What a discovered server is called, and what any server may be called. Pure."""

from __future__ import annotations

import hashlib
import string
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from vllm_agent.observations import Sighting, VllmCommand

MAX_NAME_LENGTH: Final = 128
"""Characters of a name, which is a label value and a path segment; systemd's longest unit names
are 255, read on no dashboard."""

MAX_ENDPOINT_LENGTH: Final = 48
"""Characters of what follows `@`: sockets may be called anything, and the model has to be seen."""

DEFAULT_MODEL: Final = "Qwen/Qwen3-0.6B"
"""What `vllm serve` loads when no model is given (vLLM 0.11 to 0.33)."""

_FIRST: Final = frozenset(string.ascii_letters + string.digits)
_FOLLOWING: Final = _FIRST | frozenset("._@~:-")
_DISCRIMINATOR_LENGTH: Final = 8
_NAMELESS: Final = "vllm"


def is_server_name(text: str) -> bool:
    """Whether a server may be called that: 1 to 128 letters, digits or `. _ @ ~ : -`.

    The first is a letter or a digit.
    """
    return (
        0 < len(text) <= MAX_NAME_LENGTH
        and text[0] in _FIRST
        and all(character in _FOLLOWING for character in text)
    )


def name_of(sighting: Sighting, taken: Collection[str]) -> str:
    """The name of a server that discovery found; none of `taken`, the names of all others.

    Its systemd unit, else `<model>@<port>`. Where that is taken, `~` and 8 hex digits follow: of
    its container, or of its launch where there is none or that name is taken too. No PID is in it.
    """
    text, suffix = _text_and_suffix(sighting)
    name = _named(text, suffix)
    discriminators = _discriminators(sighting)
    while name in taken:
        name = _named(text, f"{suffix}~{next(discriminators)}")
    return name


def _text_and_suffix(sighting: Sighting) -> tuple[str, str]:
    if sighting.unit is not None:
        return sighting.unit.removesuffix(".service"), ""
    command = sighting.command
    return _last_part(_served_name(command)), f"@{_endpoint(command)}"


def _named(text: str, suffix: str) -> str:
    """A name of `text`, cut so that `suffix` fits behind it."""
    start = _allowed(text).lstrip("._@~:-") or _NAMELESS
    return start[: MAX_NAME_LENGTH - len(suffix)] + suffix


def _served_name(command: VllmCommand) -> str:
    if command.served_name:
        return command.served_name
    # The model may be named in that file, and the file may not have been readable.
    return _NAMELESS if command.config_file is not None else DEFAULT_MODEL


def _endpoint(command: VllmCommand) -> str:
    if command.is_headless:
        return "headless"
    if command.uds is None:
        return _allowed(str(command.port))[:MAX_ENDPOINT_LENGTH]
    stem = _last_part(command.uds).removesuffix(".sock")
    return _allowed(stem)[:MAX_ENDPOINT_LENGTH] or "socket"


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _allowed(text: str) -> str:
    return "".join(character if character in _FOLLOWING else "_" for character in text)


def _discriminators(sighting: Sighting) -> Iterator[str]:
    """8 hex digits each, without an end and the same ones for the same launch."""
    if sighting.container_id is not None:
        yield _allowed(sighting.container_id)[:_DISCRIMINATOR_LENGTH]
    process = sighting.process
    launch = f"{process.boot_id} {process.pid} {process.start_ticks}"
    while True:
        launch = hashlib.sha256(launch.encode("utf-8", "backslashreplace")).hexdigest()
        yield launch[:_DISCRIMINATOR_LENGTH]
