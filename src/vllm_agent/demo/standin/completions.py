"""/v1/completions and /v1/chat/completions: made-up tokens at a steady pace."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from vllm_agent.demo.standin.engine_client import EngineDeadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vllm_agent.demo.standin.api_server import ApiServer
    from vllm_agent.demo.standin.engine_client import EngineClient

# vLLM's default for completions.
_DEFAULT_MAX_TOKENS = 16
_ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")


class Completion:
    """One inference request; every token costs a round trip through engine and worker."""

    def __init__(self, server: ApiServer, model: str, body: dict[str, Any], *, chat: bool) -> None:
        self._server = server
        self._model = model
        self._chat = chat
        self._stream = bool(body.get("stream"))
        prompt = body.get("messages") if chat else body.get("prompt")
        self._prompt_tokens = max(1, len(str(prompt).split()))
        wanted = body.get("max_tokens") or body.get("max_completion_tokens")
        self._max_tokens = wanted if isinstance(wanted, int) else _DEFAULT_MAX_TOKENS
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The whole answer, or the stream, whichever was asked for."""
        if self._server.engine_dead:
            self._server.close_after_error()
            return error_response(500, "InternalServerError", _ENGINE_DEAD)
        engine = self._server.begin_inference()
        try:
            if self._stream:
                return await self._answer_stream(request, engine)
            return await self._answer_whole(engine)
        except EngineDeadError:
            return error_response(500, "InternalServerError", _ENGINE_DEAD)
        finally:
            self._server.end_inference(engine)

    async def _answer_whole(self, engine: EngineClient) -> web.Response:
        words = [word async for word in self._tokens(engine)]
        text = " ".join(words)
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + len(words),
            "completion_tokens": len(words),
        }
        message = {"message": {"role": "assistant", "content": text}}
        body = self._frame("" if self._chat else None, message if self._chat else {"text": text})
        body["choices"][0]["finish_reason"] = "length"
        return web.json_response(body | {"usage": usage})

    async def _answer_stream(
        self, request: web.BaseRequest, engine: EngineClient
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.headers["Server"] = "uvicorn"
        await response.prepare(request)
        try:
            async for word in self._tokens(engine):
                part = {"delta": {"content": f" {word}"}} if self._chat else {"text": f" {word}"}
                body = self._frame(".chunk" if self._chat else None, part)
                await response.write(f"data: {json.dumps(body)}\n\n".encode())
        except EngineDeadError:
            error = _error(500, "InternalServerError", _ENGINE_DEAD)
            await response.write(f"data: {json.dumps(error)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _tokens(self, engine: EngineClient) -> AsyncIterator[str]:
        index = self._server.engines.index(engine)
        labels = self._server.metrics.engine_labels(index)
        began = time.monotonic()
        last = began
        for number in range(self._max_tokens):
            await asyncio.sleep(self._server.options.token_seconds)
            await engine.step()
            now = time.monotonic()
            self._count_token(labels, number, now - began, now - last, engine.running)
            last = now
            yield _WORDS[number % len(_WORDS)]
        self._count_end(labels, time.monotonic() - began, engine.running - 1)

    def _count_token(
        self, labels: str, number: int, since_begin: float, since_last: float, running: int
    ) -> None:
        metrics = self._server.metrics
        prompt = self._prompt_tokens if number == 0 else 0
        metrics.add(f"vllm:generation_tokens_total{{{labels}}}")
        metrics.observe("vllm:iteration_tokens_total", labels, 1 + prompt)
        if number == 0:
            metrics.add(f"vllm:prompt_tokens_total{{{labels}}}", prompt)
            metrics.add(f"vllm:prefix_cache_queries_total{{{labels}}}", prompt)
            metrics.observe("vllm:time_to_first_token_seconds", labels, since_begin)
        else:
            metrics.observe("vllm:inter_token_latency_seconds", labels, since_last)
        # Gauges move with a step's result only: they freeze when the engine hangs.
        metrics.put(f"vllm:num_requests_running{{{labels}}}", running)

    def _count_end(self, labels: str, took: float, running: int) -> None:
        metrics = self._server.metrics
        engine, _, model = labels.partition(",")
        reason = f'{engine},finished_reason="length",{model}'
        metrics.add(f"vllm:request_success_total{{{reason}}}")
        metrics.observe("vllm:request_prompt_tokens", labels, self._prompt_tokens)
        metrics.observe("vllm:request_generation_tokens", labels, self._max_tokens)
        metrics.observe("vllm:e2e_request_latency_seconds", labels, took)
        metrics.observe("vllm:request_inference_time_seconds", labels, took)
        metrics.observe("vllm:request_queue_time_seconds", labels, 0.0)
        metrics.put(f"vllm:num_requests_running{{{labels}}}", running)

    def _frame(self, suffix: str | None, choice: dict[str, Any]) -> dict[str, Any]:
        kind = "text_completion" if suffix is None else f"chat.completion{suffix}"
        return {
            "id": self._id,
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": None}],
        }


def error_response(status: int, kind: str, message: str, param: str | None = None) -> web.Response:
    """An error as vLLM words it."""
    return web.json_response(_error(status, kind, message, param), status=status)


def _error(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
