"""Errors of the HTTP API: every one is answered with JSON that says what to do next."""

from __future__ import annotations

import logging
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from vllm_agent.expose.json_text import encode
from vllm_agent.expose.json_view import error_view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp.typedefs import Middleware

    Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]

JSON_TYPE: Final = "application/json"
SHOWN_PATH_LENGTH: Final = 128
"""More of an unknown path than this tells nobody what is wrong with it."""

ALLOW_HINT: Final = "The Allow header of this answer lists the methods of this path."

_LOGGER: Final = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that cannot be served; `hint` says what to do about it."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        hint: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
        self.headers = headers

    def response(self) -> web.Response:
        """The answer that tells the client."""
        return web.Response(
            status=self.status,
            body=encode(error_view(self.code, str(self), self.hint)) + b"\n",
            content_type=JSON_TYPE,
            headers=self.headers,
        )


class ErrorAnswers:
    """The middleware that turns whatever goes wrong into an answer.

    `method_hint` says what to do after a method that is not allowed. A fault of ours is logged the
    first time it happens at a path: whoever polls that path would fill the log with it.
    """

    def __init__(self, method_hint: str) -> None:
        self._method_hint = method_hint
        self._logged: set[tuple[str, type[Exception]]] = set()

    def middleware(self) -> Middleware:
        """The function to put into `middlewares` of an application."""

        @web.middleware
        async def answer_errors(request: web.Request, handler: Endpoint) -> web.StreamResponse:
            try:
                return await handler(request)
            except ApiError as error:
                return error.response()
            except web.HTTPException as error:
                return self._translated(request, error).response()
            except ConnectionError:
                raise  # The client is gone; there is nobody to answer.
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end as a traceback
                return self._fault(request, error).response()

        return answer_errors

    def _translated(self, request: web.Request, error: web.HTTPException) -> ApiError:
        status = HTTPStatus(error.status)
        match error:
            case web.HTTPNotFound():
                path = request.path[:SHOWN_PATH_LENGTH]
                hint = "The page at / links to everything there is."
                return ApiError(status, "unknown_path", f"nothing is at {path}", hint)
            case web.HTTPMethodNotAllowed():
                message = f"{error.method} is not allowed here"
                allow: dict[str, str] = {hdrs.ALLOW: error.headers[hdrs.ALLOW]}
                hint = self._method_hint if hdrs.METH_GET in error.allowed_methods else ALLOW_HINT
                return ApiError(status, "method_not_allowed", message, hint, allow)
            case web.HTTPRequestEntityTooLarge():
                hint = "A small object of JSON is all that is needed."
                return ApiError(status, "body_too_large", "the body is too large", hint)
            case _:
                return ApiError(status, "bad_request", error.reason, "Correct the request.")

    def _fault(self, request: web.Request, error: Exception) -> ApiError:
        resource = request.match_info.route.resource
        place = (resource.canonical if resource is not None else "", type(error))
        if place not in self._logged:
            self._logged.add(place)
            _LOGGER.error("could not answer", exc_info=error, extra={"path": place[0]})
        return ApiError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal_error",
            "the agent could not answer because of a fault of its own",
            "Its log has the details.",
        )
