"""What an operator may ask of managed servers, and of the configuration, once it is parsed.

An answer comes when it is known what came of it, which may take minutes. A client that goes away
cancels nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vllm_agent.expose.advice import advice_on_model, advice_on_server
from vllm_agent.expose.api_errors import ApiError
from vllm_agent.expose.managed_request import parse_patience
from vllm_agent.expose.operations import CannotReloadError, CannotServeError, NotManagedError
from vllm_agent.expose.outlasting import Outlasting
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Answer, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from vllm_agent.expose.api_errors import Endpoint
    from vllm_agent.expose.api_reads import Reads
    from vllm_agent.expose.operations import Operations
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.snapshot import ServerSnapshot

PATIENCE_SECONDS: Final = 900.0
"""Longer than a stop takes before it is forced (10 min at most), and than a start waits for GPU
memory; with it over, the operator is told that it is under way."""

BEGINNING_SECONDS: Final = 10.0
"""How long a request waits for the first look of an agent that has just begun: at boot a script may
ask for a server as soon as there is a socket."""

LOOK_SECONDS: Final = 0.05
"""How often such a request looks whether its server is known by now."""

_GRACE_SECONDS: Final = 5.0
"""What the owner of a server may take beyond the wait that it was asked for."""

_NOT_STARTED: Final = ("start_failed", "was not started")
_NOT_STOPPED: Final = ("stop_failed", "was not stopped")
_NOT_RUNNING: Final = ("not_healthy", "does not run")
_UNDER_WAY: Final = Answer(Outcome.UNDER_WAY, "it is under way")


class Operating:
    """The endpoints for what an operator asks of one server."""

    def __init__(self, reads: Reads, operations: Operations) -> None:
        self._reads = reads
        self._operations = operations
        self._outlasting = Outlasting(KeyError, NotManagedError, CannotServeError)

    def ask(self, wish: Wish, parse: Callable[[bytes], str | None]) -> Endpoint:
        """Starts, stops or restarts a server, with the model that `parse` finds in the body."""
        failure = _NOT_STOPPED if wish is Wish.STOP else _NOT_STARTED

        async def answer(request: web.Request) -> web.Response:
            name = await self._name(request)
            model = parse(await request.read())
            work = self._operations.ask(name, wish, model)
            came = await self._came_of(work, request, PATIENCE_SECONDS)
            return self._told(request, came, *failure)

        return answer

    async def ensure_healthy(self, request: web.Request) -> web.Response:
        """Starts a server where the agent may, and waits until it runs."""
        name = await self._name(request)
        seconds = parse_patience(await request.read())
        work = self._operations.ensure_healthy(name, seconds)
        came = await self._came_of(work, request, seconds + _GRACE_SECONDS)
        if came.outcome is Outcome.UNDER_WAY and seconds:
            raise ApiError(
                HTTPStatus.GATEWAY_TIMEOUT,
                "timeout",
                f"{name!r} does not run after {seconds:g} s: {came.message}",
                f"It goes on: {_command('status', name)} says how far it is.",
            )
        is_managed = self._reads.wanted(request).life.management is not None
        return self._told(request, came, *(_NOT_STARTED if is_managed else _NOT_RUNNING))

    async def _name(self, request: web.Request) -> str:
        """The server that is meant; one that asks while the agent begins waits a little."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BEGINNING_SECONDS
        while not self._reads.is_ready and loop.time() < until:
            with contextlib.suppress(ApiError):
                return self._reads.wanted(request).name
            await asyncio.sleep(LOOK_SECONDS)
        return self._reads.wanted(request).name

    async def _came_of(
        self, work: Coroutine[Any, Any, Answer], request: web.Request, seconds: float
    ) -> Answer:
        try:
            return await self._outlasting.result_of(work, seconds) or _UNDER_WAY
        except KeyError:
            raise self._reads.unknown(request) from None
        except NotManagedError as error:
            raise ApiError(
                HTTPStatus.CONFLICT,
                "not_managed",
                str(error),
                "The agent starts and stops only what its configuration has as `mode: managed`.",
            ) from None
        except CannotServeError as error:
            server = self._reads.wanted(request)
            raise ApiError(
                HTTPStatus.CONFLICT,
                "model_refused",
                f"{server.name!r} was left as it is ({error.reason}): {error}",
                advice_on_model(server, error.model, error.reason),
            ) from None

    def _told(
        self, request: web.Request, came: Answer, code: str, what_failed: str
    ) -> web.Response:
        server = self._reads.wanted(request)
        match came.outcome:
            case Outcome.DONE:
                return self._reads.answer(server)
            case Outcome.UNDER_WAY:
                return self._reads.answer(server, HTTPStatus.ACCEPTED)
            case Outcome.SUPERSEDED:
                message = f"{server.name!r}: {came.message}"
                hint = f"{_command('status', server.name)} shows how it is now."
                raise ApiError(HTTPStatus.CONFLICT, "superseded", message, hint)
            case Outcome.FAILED:
                why = "" if came.reason is None else f" ({came.reason})"
                detail = f": {came.message}" if came.message else ""
                message = f"{server.name!r} {what_failed}{why}{detail}"
                raise ApiError(HTTPStatus.CONFLICT, code, message, _advice(server, came.reason))


def reload(operations: Operations) -> Endpoint:
    """The endpoint that reads the configuration again and applies what changed."""
    outlasting = Outlasting(CannotReloadError)

    async def answer(_: web.Request) -> web.Response:
        try:
            is_done = await outlasting.result_of(_reloaded(operations), PATIENCE_SECONDS)
        except CannotReloadError as error:
            raise ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "cannot_reload",
                str(error),
                "The configuration before stays in force. 'vllm-agent check-config' says the same "
                "of a file before it is loaded.",
            ) from None
        if not is_done:
            text = "The configuration is still being reloaded.\n"
            return web.Response(status=HTTPStatus.ACCEPTED, text=text)
        return web.Response(text="The configuration was reloaded.\n")

    return answer


async def refuse_reload(_: web.Request) -> web.Response:
    """The endpoint where the operator did not allow to reload over TCP."""
    raise ApiError(
        HTTPStatus.FORBIDDEN,
        "lifecycle_disabled",
        "this address does not reload the configuration",
        "Send SIGHUP to the agent, or start it with --web.enable-lifecycle.",
    )


async def _reloaded(operations: Operations) -> bool:
    await operations.reload()
    return True


def _advice(server: ServerSnapshot, reason: Reason | None) -> str:
    if reason is not None:
        return advice_on_server(server, reason)
    return f"{_command('history', server.name)} says what happened."


def _command(command: str, name: str) -> str:
    return f"'vllm-agent {command} {shlex.quote(name)}'"
