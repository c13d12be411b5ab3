"""Everything of the API that only looks: answered from snapshots and the store."""

from __future__ import annotations

import asyncio
import difflib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp import hdrs, web

from vllm_agent.expose import status_page
from vllm_agent.expose.api_errors import JSON_TYPE, ApiError
from vllm_agent.expose.encoded_views import EncodedView, EncodedViews
from vllm_agent.expose.history_view import MAX_HISTORY_LIMIT, history_view
from vllm_agent.expose.http_sd import target_groups
from vllm_agent.expose.json_text import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot, ServerSnapshot
    from vllm_agent.store import History

    ReadHistory: TypeAlias = Callable[[str, int], Awaitable[History]]

DEFAULT_HISTORY_LIMIT: Final = 100
"""More than anybody reads, and a tenth of what there may be."""

NEAR_NAMES: Final = 3
"""Names that a hint lists for one that is unknown."""

NAMES_COMPARED: Final = 256
"""Names that are compared with one that is unknown: about 5 ms, more than a hint is worth."""

PAGE_PARTS_PER_SLICE: Final = 32
"""About 1 ms of work, at 25 µs for a row: nothing waits longer for a page."""

MAX_NAME_LENGTH: Final = 128
"""Of a name that a client made up, so much is repeated to it."""


class Reads:
    """Everything that only looks.

    `shows_logs` is whether its clients may see lines of a server's log, which its users may have
    written.
    """

    def __init__(
        self,
        current: Callable[[], AgentSnapshot],
        clock: Callable[[], Instant],
        history: ReadHistory,
        telemetry_path: str,
        names_hint: str,
        *,
        shows_logs: bool,
    ) -> None:
        self._current = current
        self._clock = clock
        self._history = history
        self.telemetry_path = telemetry_path
        self._names_hint = names_hint
        self._shows_logs = shows_logs
        self._views = EncodedViews()

    async def page(self, _: web.Request) -> web.Response:
        """The status page."""
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
        """Whether the process is alive: it is, for it answers."""
        return web.Response(text="vllm-agent is healthy.\n")

    async def ready(self, _: web.Request) -> web.Response:
        """Whether the first look at every server is done."""
        if self._current().is_ready:
            return web.Response(text="vllm-agent is ready.\n")
        text = "vllm-agent is not ready: its first look at every server is under way.\n"
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=text)

    async def servers(self, request: web.Request) -> web.Response:
        """The agent and every server."""
        return _unless_known(request, await self._views.servers(self._current()))

    async def server(self, request: web.Request) -> web.Response:
        """One server."""
        return _unless_known(request, self._views.server(self.wanted(request), self._current()))

    async def history(self, request: web.Request) -> web.Response:
        """The past of one server."""
        server, limit = self.wanted(request), _limit(request)
        past = await self._history(server.name, limit)
        view = history_view(server, past, with_logs=self._shows_logs)
        return _json(encode(view) + b"\n")

    async def gpus(self, request: web.Request) -> web.Response:
        """Every GPU, and who holds its memory."""
        return _unless_known(request, self._views.gpus(self._current()))

    async def http_sd(self, _: web.Request) -> web.Response:
        """Scrape targets for vLLM's own metrics."""
        return _json(encode(target_groups(self._current())) + b"\n")

    def wanted(self, request: web.Request) -> ServerSnapshot:
        """The server that the path names; raises `ApiError` where there is none."""
        server = self._current().server(request.match_info["server"])
        if server is None:
            raise self.unknown(request)
        return server

    @property
    def is_ready(self) -> bool:
        """Whether every server had its first look."""
        return self._current().is_ready

    def unknown(self, request: web.Request) -> ApiError:
        """Says that there is no server that the path names, and which are near to it."""
        names = [known.name for known in self._current().servers]
        name = request.match_info["server"][:MAX_NAME_LENGTH]
        return _unknown_server(name, names, self._names_hint)

    def answer(self, server: ServerSnapshot, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
        """The answer on one server, whatever the client knows already."""
        response = _json(self._views.server(server, self._current()).body)
        response.set_status(status)
        return response


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
        hint = "No server was found and none is configured; 'vllm-agent doctor' says what is seen."
    message = f"no server is named {name!r}"
    return ApiError(HTTPStatus.NOT_FOUND, "unknown_server", message, hint)
