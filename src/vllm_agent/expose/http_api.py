"""The web applications: one that only reads, for TCP, and one that also writes, for the socket.

Everything is answered from snapshots. Nothing here changes a server; what an operator asks for
goes to the server's owner.
"""

from __future__ import annotations

import asyncio
import difflib
import shlex
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp import hdrs, web

from vllm_agent.expose import status_page
from vllm_agent.expose.api_errors import JSON_TYPE, ApiError, ErrorAnswers
from vllm_agent.expose.encoded_views import EncodedView, EncodedViews
from vllm_agent.expose.http_sd import target_groups
from vllm_agent.expose.json_view import MAX_HISTORY_LIMIT, encode, history_view
from vllm_agent.expose.maintenance_request import parse_maintenance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_agent.expose.api_errors import Endpoint
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot
    from vllm_agent.store import History

    ReadHistory: TypeAlias = Callable[[str, int], Awaitable[History]]
    SetMaintenance: TypeAlias = Callable[[str, float | None], Awaitable[None]]

MAX_BODY_BYTES: Final = 16 * 1024
"""Hundreds of times what any request needs."""

DEFAULT_HISTORY_LIMIT: Final = 100
"""More than anybody reads, and a tenth of what there may be."""

MAINTENANCE_DEADLINE_SECONDS: Final = 10.0
"""A server's owner answers in milliseconds, in 5 s where it has to begin again after a fault."""

NEAR_NAMES: Final = 3
"""Names that a hint lists for one that is unknown."""

NAMES_COMPARED: Final = 256
"""Names that are compared with one that is unknown: about 5 ms, more than a hint is worth."""

PAGE_PARTS_PER_SLICE: Final = 32
"""About 1 ms of work, at 25 µs for a row: nothing waits longer for a page."""

_MAX_NAME_LENGTH: Final = 128
_SERVER: Final = "/api/v1/servers/{server:[^/]+}"
_READ_ONLY_HINT: Final = (
    "This address only reads: use GET or HEAD. Writes exist only on the control socket, "
    "which the vllm-agent command uses."
)
_CONTROL_HINT: Final = "The Allow header of this answer lists the methods of this path."
_READ_NAMES_HINT: Final = "GET /api/v1/servers lists the names that there are."
_CONTROL_NAMES_HINT: Final = "'vllm-agent status' lists the names that there are."
"""The control socket is read by the command: its users know no paths."""


def read_app(
    current: Callable[[], AgentSnapshot],
    clock: Callable[[], Instant],
    history: ReadHistory,
    metrics: Endpoint,
    telemetry_path: str,
) -> web.Application:
    """The application for TCP: GET and HEAD only."""
    reads = _Reads(current, clock, history, telemetry_path, _READ_NAMES_HINT)
    app = _app(reads, metrics, _READ_ONLY_HINT)
    app.router.add_route(hdrs.METH_ANY, f"{_SERVER}/maintenance", _refuse_write)
    return app


def control_app(  # noqa: PLR0917 - what read_app takes, and one more
    current: Callable[[], AgentSnapshot],
    clock: Callable[[], Instant],
    history: ReadHistory,
    metrics: Endpoint,
    telemetry_path: str,
    maintenance: SetMaintenance,
) -> web.Application:
    """The application for the control socket: everything that is read, and the writes.

    `maintenance` gets the server's name and the end of its maintenance in unix time: infinity for
    one without an end, None to end it.
    """
    reads = _Reads(current, clock, history, telemetry_path, _CONTROL_NAMES_HINT)
    app = _app(reads, metrics, _CONTROL_HINT)
    app.router.add_post(f"{_SERVER}/maintenance", _Writes(reads, clock, maintenance).maintenance)
    return app


def _app(reads: _Reads, metrics: Endpoint, method_hint: str) -> web.Application:
    app = web.Application(
        middlewares=[ErrorAnswers(method_hint).middleware()], client_max_size=MAX_BODY_BYTES
    )
    app.on_response_prepare.append(_add_headers)
    app.router.add_get("/", reads.page)
    app.router.add_get(reads.telemetry_path, metrics)
    app.router.add_get("/-/healthy", reads.healthy)
    app.router.add_get("/-/ready", reads.ready)
    app.router.add_get("/api/v1/servers", reads.servers)
    app.router.add_get(_SERVER, reads.server)
    app.router.add_get(f"{_SERVER}/history", reads.history)
    app.router.add_get("/api/v1/http_sd", reads.http_sd)
    return app


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    # The default names the versions of Python and of the library to whoever asks.
    response.headers[hdrs.SERVER] = "vllm-agent"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-cache")


async def _refuse_write(request: web.Request) -> web.StreamResponse:
    name = shlex.quote(request.match_info["server"][:_MAX_NAME_LENGTH])
    # Not 405: no other method would do here, and what is asked for is refused to this address.
    raise ApiError(
        HTTPStatus.FORBIDDEN,
        "read_only",
        "writes exist only on the control socket of the agent's host",
        f"On that host run: vllm-agent maintenance {name} on|off",
    )


class _Reads:
    """Everything that only looks."""

    def __init__(
        self,
        current: Callable[[], AgentSnapshot],
        clock: Callable[[], Instant],
        history: ReadHistory,
        telemetry_path: str,
        names_hint: str,
    ) -> None:
        self._current = current
        self._clock = clock
        self._history = history
        self.telemetry_path = telemetry_path
        self._names_hint = names_hint
        self._views = EncodedViews()

    async def page(self, _: web.Request) -> web.Response:
        parts = []
        for part in status_page.parts(self._current(), self._clock(), self.telemetry_path):
            parts.append(part)
            if len(parts) % PAGE_PARTS_PER_SLICE == 0:
                await asyncio.sleep(0)
        return web.Response(
            body="".join(parts).encode("utf-8", "replace"),
            content_type="text/html",
            charset="utf-8",
            headers=status_page.HEADERS,
        )

    async def healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="vllm-agent is healthy.\n")

    async def ready(self, _: web.Request) -> web.Response:
        if self._current().is_ready:
            return web.Response(text="vllm-agent is ready.\n")
        text = "vllm-agent is not ready: its first look at every server is under way.\n"
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=text)

    async def servers(self, request: web.Request) -> web.Response:
        return _unless_known(request, await self._views.servers(self._current()))

    async def server(self, request: web.Request) -> web.Response:
        return _unless_known(request, self._views.server(self.wanted(request)))

    async def history(self, request: web.Request) -> web.Response:
        server, limit = self.wanted(request), _limit(request)
        view = history_view(server.name, await self._history(server.name, limit))
        return _json(encode(view) + b"\n")

    async def http_sd(self, _: web.Request) -> web.Response:
        return _json(encode(target_groups(self._current())) + b"\n")

    def wanted(self, request: web.Request) -> ServerSnapshot:
        """The server that the path names; raises `ApiError` where there is none."""
        agent, name = self._current(), request.match_info["server"]
        server = agent.server(name)
        if server is None:
            names = [known.name for known in agent.servers]
            raise _unknown_server(name[:_MAX_NAME_LENGTH], names, self._names_hint)
        return server

    def answer(self, server: ServerSnapshot) -> web.Response:
        """The answer on one server, whatever the client knows already."""
        return _json(self._views.server(server).body)


class _Writes:
    """What an operator may ask for."""

    def __init__(
        self, reads: _Reads, clock: Callable[[], Instant], maintenance: SetMaintenance
    ) -> None:
        self._reads = reads
        self._clock = clock
        self._maintenance = maintenance

    async def maintenance(self, request: web.Request) -> web.Response:
        name = self._reads.wanted(request).name
        wish = parse_maintenance(await request.read())
        try:
            async with asyncio.timeout(MAINTENANCE_DEADLINE_SECONDS):
                await self._maintenance(name, wish.until_unix_seconds(self._clock()))
        except TimeoutError:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "not_in_time",
                f"the request did not take effect within {MAINTENANCE_DEADLINE_SECONDS:g} s",
                "It may still do so: look at the server's status before you ask again.",
            ) from None
        return self._reads.answer(self._reads.wanted(request))


def _unless_known(request: web.Request, view: EncodedView) -> web.Response:
    """The view, or 304 where the client has it. A proxy may have weakened the tag; that is fine."""
    etag = f'"{view.etag}"'
    known = request.if_none_match or ()
    if any(tag.value in {view.etag, "*"} for tag in known):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers={hdrs.ETAG: etag})
    response = _json(view.body)
    response.headers[hdrs.ETAG] = etag
    return response


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=JSON_TYPE)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(DEFAULT_HISTORY_LIMIT))
    digits = len(str(MAX_HISTORY_LIMIT))
    is_number = text.isascii() and text.isdigit() and len(text) <= digits
    limit = int(text) if is_number else 0
    if not 1 <= limit <= MAX_HISTORY_LIMIT:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            "bad_limit",
            f"limit must be a whole number from 1 to {MAX_HISTORY_LIMIT}",
            f"Leave it out for the newest {DEFAULT_HISTORY_LIMIT}.",
        )
    return limit


def _unknown_server(name: str, names: list[str], names_hint: str) -> ApiError:
    near = difflib.get_close_matches(name, names[:NAMES_COMPARED], NEAR_NAMES)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif names:
        hint = names_hint
    else:
        hint = "No server is configured: write servers to --config.file."
    message = f"no server is named {name!r}"
    return ApiError(HTTPStatus.NOT_FOUND, "unknown_server", message, hint)
