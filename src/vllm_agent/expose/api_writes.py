"""What an operator may ask for over the control socket; every other address refuses it."""

from __future__ import annotations

import asyncio
import shlex
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp import web

from vllm_agent.expose.api_errors import ApiError
from vllm_agent.expose.api_reads import MAX_NAME_LENGTH
from vllm_agent.expose.maintenance_request import parse_maintenance
from vllm_agent.lifecycle.states import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_agent.expose.api_errors import Endpoint
    from vllm_agent.expose.api_reads import Reads
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

    SetMaintenance: TypeAlias = Callable[[str, float | None], Awaitable[None]]
    Forget: TypeAlias = Callable[[str], Awaitable[None]]

WRITE_DEADLINE_SECONDS: Final = 10.0
"""A server's owner answers in milliseconds, in 5 s where it has to begin again after a fault."""

_GONE_PHASES: Final = frozenset({Phase.ABSENT, Phase.CRASHED})


class CannotForgetError(Exception):
    """A server stays: by the time its owner was asked it had come back; the message says so."""


class Writes:
    """What an operator may ask for; the answers are read like all others."""

    def __init__(self, reads: Reads, clock: Callable[[], Instant]) -> None:
        self._reads = reads
        self._clock = clock

    def maintenance(self, set_maintenance: SetMaintenance) -> Endpoint:
        """Begins or ends the maintenance of a server."""

        async def answer(request: web.Request) -> web.Response:
            name = self._reads.wanted(request).name
            wish = parse_maintenance(await request.read())
            await _in_time(set_maintenance(name, wish.until_unix_seconds(self._clock())))
            return self._reads.answer(self._reads.wanted(request))

        return answer

    def forget(self, forget: Forget) -> Endpoint:
        """Lets a discovered server that ended leave at once: it is shown and paged for no more."""

        async def answer(request: web.Request) -> web.Response:
            server = self._reads.wanted(request)
            _refuse_what_stays(server)
            try:
                await _in_time(forget(server.name))
            except CannotForgetError as error:
                raise _still_there(str(error)) from None
            return web.Response(status=HTTPStatus.NO_CONTENT)

        return answer


def refusal(command: str) -> Endpoint:
    """The endpoint for a write where there is none; `command` says what to run for `{name}`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        name = shlex.quote(request.match_info["server"][:MAX_NAME_LENGTH])
        # Not 405: no other method would do here, and what is asked for is refused to this address.
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "read_only",
            "writes exist only on the control socket of the agent's host",
            f"On that host run: {command.format(name=name)}",
        )

    return answer


def _refuse_what_stays(server: ServerSnapshot) -> None:
    if not server.is_discovered:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "configured",
            f"{server.name!r} is configured, so it stays",
            "Remove it from the configuration file and restart the agent.",
        )
    is_alive = server.tree is not None and server.tree.is_main_alive
    if is_alive or server.life.phase not in _GONE_PHASES:
        raise _still_there(f"{server.name!r} is {server.life.state}")


def _still_there(message: str) -> ApiError:
    return ApiError(
        HTTPStatus.CONFLICT,
        "still_there",
        message,
        "Only what has stopped or crashed can be forgotten; what lives is found again at once. "
        "Maintenance silences the pages of a server that stays.",
    )


async def _in_time(request: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
            await request
    except TimeoutError:
        raise ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_in_time",
            f"the request did not take effect within {WRITE_DEADLINE_SECONDS:g} s",
            "It may still do so: look at the server's status before you ask again.",
        ) from None
