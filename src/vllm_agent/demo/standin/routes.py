"""The HTTP endpoints of vLLM 0.32 that monitors and clients use."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from vllm_agent.demo.standin.completions import Completion, error_response
from vllm_agent.demo.standin.hostile import misbehave, never_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vllm_agent.demo.standin.api_server import ApiServer

_VERSION = "0.32.0"
# vLLM's authentication covers these prefixes and nothing else.
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
# Not counted in http_requests_total, as in vLLM.
_UNCOUNTED = frozenset({"/health", "/metrics", "/ping", "/load", "/version", "/server_info"})
_COUNTED = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions"})
_WRONG_MODEL = "another-model"
_PAGE_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class Routes:
    """Answers requests for one API server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._options = server.options
        # Connections with a request that is not answered yet.
        self.busy: set[object] = set()
        self._table: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[Any]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/load"): self._load,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/v1/chat/completions"): self._completion,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request; logged and counted as vLLM does."""
        began = time.monotonic()
        self.busy.add(request.protocol)
        try:
            response = await self._dispatch(request)
        finally:
            self.busy.discard(request.protocol)
        response.headers.setdefault("Server", "uvicorn")
        self._log_access(request, response.status)
        self._count(request, response, time.monotonic() - began)
        return response

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._server.faulty:
            if self._options.stop_answering:
                await never_answer()
            for fault in self._options.faults:
                if fault.applies_to(request.path):
                    return await misbehave(fault, request, self._options.timing.drip)
        if not self._authorized(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        method = "GET" if request.method == "HEAD" else request.method
        endpoint = self._table.get((method, request.path))
        if endpoint is None:
            known = any(path == request.path for _, path in self._table)
            detail = "Method Not Allowed" if known else "Not Found"
            return web.json_response({"detail": detail}, status=405 if known else 404)
        response: web.StreamResponse = await endpoint(request)
        return response

    def _authorized(self, request: web.BaseRequest) -> bool:
        if not self._options.api_keys or request.method == "OPTIONS":
            return True
        if not request.path.startswith(_GUARDED):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key in self._options.api_keys

    async def _health(self, _request: web.BaseRequest) -> web.Response:
        status = 503 if self._server.engine_dead else 200
        if self._server.faulty and self._options.health_status != 200:  # noqa: PLR2004  HTTP OK
            status = self._options.health_status
        return web.Response(status=status)

    async def _version(self, _request: web.BaseRequest) -> web.Response:
        return _json({"version": _VERSION})

    async def _load(self, _request: web.BaseRequest) -> web.Response:
        # vLLM counts only with --enable-server-load-tracking.
        return _json({"server_load": 0})

    async def _metrics(self, _request: web.BaseRequest) -> web.Response:
        page = self._server.metrics.render().encode()
        return web.Response(body=page, headers={"Content-Type": _PAGE_TYPE})

    async def _models(self, _request: web.BaseRequest) -> web.Response:
        return _json({"object": "list", "data": [self._card(name) for name in self._names()]})

    def _names(self) -> tuple[str, ...]:
        if self._options.wrong_model and self._server.faulty:
            return (_WRONG_MODEL,)
        return self._options.served_model_names

    def _card(self, name: str) -> dict[str, Any]:
        now = int(time.time())
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": self._options.model,
            "parent": None,
            "max_model_len": self._options.max_model_len,
            "permission": [permission],
        }

    async def _completion(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return error_response(400, "BadRequestError", "Invalid JSON body.")
        names = self._names()
        model = body.get("model", names[0])
        if model not in names:
            text = f"The model `{model}` does not exist."
            return error_response(404, "NotFoundError", text, param="model")
        if self._options.sleeping and self._server.faulty:
            await never_answer()
        chat = request.path.endswith("/chat/completions")
        return await Completion(self._server, model, body, chat=chat).answer(request)

    def _log_access(self, request: web.BaseRequest, status: int) -> None:
        if not self._options.access_log or request.path in self._options.silent_endpoints:
            return
        peer = request.transport.get_extra_info("peername") if request.transport else None
        client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        phrase = web.Response(status=status).reason
        line = f'{client} - "{request.method} {request.path_qs} HTTP/1.1" {status} {phrase}'
        self._server.log.access(line)

    def _count(self, request: web.BaseRequest, response: web.StreamResponse, took: float) -> None:
        if request.path in _UNCOUNTED:
            return
        metrics = self._server.metrics
        metrics.observe("http_request_duration_highr_seconds", "", took)
        if request.path not in _COUNTED or response.status >= 400:  # noqa: PLR2004  client error
            if request.method == "GET":
                metrics.add('http_requests_total{handler="none",method="GET",status="4xx"}')
            return
        handler = f'handler="{request.path}"'
        method = f'method="{request.method}"'
        metrics.add(f'http_requests_total{{{handler},{method},status="2xx"}}')
        metrics.add(f"http_request_size_bytes_count{{{handler}}}")
        metrics.add(f"http_request_size_bytes_sum{{{handler}}}", request.content_length or 0)
        metrics.add(f"http_response_size_bytes_count{{{handler}}}")
        metrics.observe("http_request_duration_seconds", f"{handler},{method}", took)


def _json(value: object) -> web.Response:
    text = json.dumps(value, separators=(",", ":"))
    return web.Response(text=text, content_type="application/json")
