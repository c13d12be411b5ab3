"""Finds the launch that an agent before this one started, and who its main process is."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.launching.remains import CannotLook, Remains, is_over
from vllm_agent.host.patience import Patience, TooManyHung
from vllm_agent.host.sockets import server_url
from vllm_agent.host.vllm_argv import is_main, parse_command
from vllm_agent.host.vllm_config_file import read_config_file
from vllm_agent.observations import Sighting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_agent.host.launching.remains import Mark
    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import ProcessId, VllmCommand

RETRY_SECONDS: Final = 1.0
"""How soon the host is looked at again when it could not be: until then nobody knows whether a
server runs, and a second one must not be started."""

_LOGGER: Final = logging.getLogger(__name__)


async def find_main(
    proc: Proc,
    mark: Mark | None,
    remembered: ProcessId | None,
    *,
    arguments: tuple[str, ...],
    count_dropped: Callable[[str], None],
) -> ProcessId | None:
    """The main process that is remembered if it lives, else the one that the mark tells.

    The latter leads its session and has the arguments of a vLLM, or ends with `arguments`: those
    with which this server would be started, less the program. A daemon that a launch left behind
    has others. This waits until the host can be looked at.
    """
    if remembered is not None and lives(proc, remembered):
        return remembered
    if mark is None:
        return None
    remains = Remains(proc, None, mark, count_dropped=count_dropped)
    patience = Patience()
    try:
        left = await _look(remains, mark)
        told, _ = await patience.map(partial(_is_main, proc, arguments), left)
        # Its children follow it, and are like it until they execute something else.
        return next((process for process in told if process is not None), None)
    finally:
        patience.close()
        remains.close()


async def sighting_of(
    proc: Proc, process: ProcessId, *, command: VllmCommand, url: str | None
) -> Sighting | None:
    """Who that main process is; None once it is gone.

    `command` and `url` are for one whose arguments are not those of a vLLM, as of a wrapper.
    """
    patience = Patience()
    try:
        found, _ = await patience.map(partial(_sighting, proc, command, url), [process])
    finally:
        patience.close()
    return found[0] if found else None


def lives(proc: Proc, process: ProcessId) -> bool:
    """Whether that very process runs, and is no zombie."""
    stat = proc.stat(process.pid)
    return stat is not None and proc.identify(stat) == process and not is_over(stat)


async def _look(remains: Remains, mark: Mark) -> list[ProcessId]:
    is_told = False
    while True:
        try:
            return await remains.look()
        except (CannotLook, TooManyHung) as problem:
            if not is_told:
                text = "whether a server runs already cannot be seen, and is tried again"
                _LOGGER.warning(text, extra={"server": mark.server, "detail": str(problem)})
            is_told = True
            await asyncio.sleep(RETRY_SECONDS)


def _is_main(proc: Proc, expected: tuple[str, ...], process: ProcessId) -> ProcessId | None:
    stat, line = proc.stat(process.pid), proc.command_line(process.pid)
    if stat is None or line is None or proc.identify(stat) != process:
        return None
    is_like_it = is_main(line.arguments) or _ends_with(line.arguments, expected)
    return process if stat.session == stat.pid and is_like_it else None


def _ends_with(arguments: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    """A script has its interpreter before it."""
    return bool(expected) and arguments[-len(expected) :] == expected


def _sighting(
    proc: Proc, command: VllmCommand, url: str | None, process: ProcessId
) -> Sighting | None:
    line, uid = proc.command_line(process.pid), proc.uid(process.pid)
    if line is not None and is_main(line.arguments):
        command = parse_command(line.arguments, partial(_config_of, proc, process.pid))
        # As everywhere a socket is named as the server was given it.
        is_socket = command.uds is not None
        url = f"unix://{command.uds}" if is_socket else server_url(proc, process.pid, command)
    stat = proc.stat(process.pid)
    if stat is None or uid is None or not lives(proc, process):
        return None
    return Sighting(
        process=process,
        start_seconds=proc.start_unix_seconds(stat),
        command=command,
        uid=uid,
        session=stat.session,
        url=url,
    )


def _config_of(proc: Proc, pid: int, path: str) -> Mapping[str, object]:
    try:
        return read_config_file(proc, pid, path)
    except UnreadableFileError as problem:
        text = "the file of --config of a server was not read: its port and model are guessed"
        _LOGGER.warning(text, extra={"pid": pid, "detail": str(problem)})
        return {}
