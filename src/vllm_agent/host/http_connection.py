"""One HTTP/1.1 connection, one GET at a time, nothing followed, nothing decompressed.

aiohttp's client costs over a quarter of what blackbox_exporter needs per probe, the bar; so this
is asyncio and httptools, the parser of the uvicorn that answers.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import httptools

from vllm_agent.host.dial import ProbeError, connection_error
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES: Final = 64 * 1024
"""Status line and headers: vLLM sends about 130 bytes, web servers accept 8 KiB to 64 KiB."""

_NOT_HTTP: Final = "The answer is not HTTP/1: something other than a vLLM listens there."


class ClosedWithoutAnswerError(ProbeError):
    """The connection ended before the first byte of an answer."""


@dataclass(slots=True)
class ByteBudget:
    """How much a server may still send."""

    left: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the body went to the sink if the status is 200, and is dropped otherwise."""

    status: int
    is_encoded: bool


class _Response:
    """What the parser tells of one response."""

    __slots__ = (
        "body",
        "has_begun",
        "head_bytes",
        "is_complete",
        "is_encoded",
        "is_framed",
        "keeps_alive",
        "on_body",
        "parser",
        "status",
    )

    def __init__(self) -> None:
        self.body: list[bytes] = []
        # A list's own method: chunks of one byte must stay cheap.
        self.on_body = self.body.append
        self.head_bytes = 0
        self.status: int | None = None
        self.has_begun = False
        self.is_complete = False
        self.is_encoded = False
        self.is_framed = False
        self.keeps_alive = False
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        if self.has_begun:
            # Stops the parser here: one request has one response.
            raise ValueError("a second response")
        self.has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value)
        match name.lower():
            case b"content-length" | b"transfer-encoding":
                self.is_framed = True
            case b"content-encoding":
                self.is_encoded = value.strip().lower() != b"identity"

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        # Only now: when the message is complete, the parser has forgotten its headers.
        self.keeps_alive = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.is_complete = True

    def feed(self, data: bytes) -> None:
        """Parse `data`.

        Raises:
            ProbeError: it is not HTTP/1.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.keeps_alive = False
        except httptools.HttpParserError:
            self.keeps_alive = False
            if not self.is_complete:
                raise ProbeError(ProbeCause.BAD_BODY, _NOT_HTTP) from None


class HttpConnection(asyncio.Protocol):
    """A client's side of a connection; `dial` opens it."""

    def __init__(self, where: str, budget: ByteBudget) -> None:
        self._where = where
        self._budget = budget
        self._transport: asyncio.Transport | None = None
        self._response: _Response | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._received_bytes = 0
        self._is_reusable = True

    @property
    def is_reusable(self) -> bool:
        """Whether a request may be sent: open, and the last answer ended where it said."""
        return self._is_reusable

    async def get(self, request: bytes, sink: Callable[[bytes], None]) -> Answer:
        """Send `request` and pass the body to `sink`, piece by piece.

        Raises:
            ProbeError: there was no answer, or none that is HTTP, or it broke off; or from `sink`.
        """
        if self._transport is None or not self._is_reusable:
            raise ClosedWithoutAnswerError(ProbeCause.RESET, self._closed_detail())
        self._response = response = _Response()
        self._sink = sink
        self._received_bytes = 0
        self._is_reusable = False
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        finally:
            self._waiter = self._response = self._sink = None
            # They hold each other: this saves the garbage collector the work.
            del response.parser

    def abort(self) -> None:
        """Close without waiting for the peer, as a hostile one would have us do."""
        self._is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._budget.left -= len(data)
        self._received_bytes += len(data)
        if self._waiter is None or self._waiter.done():
            # Nobody asked: what follows could be taken for the answer to the next request.
            self.abort()
            return
        try:
            self._advance(data)
        except ProbeError as error:
            self._fail(error)

    def _advance(self, data: bytes) -> None:
        response, sink = self._response, self._sink
        if response is None or sink is None:
            return
        if self._budget.left < 0:
            raise ProbeError(ProbeCause.TOO_LARGE, "The server sent more than a look may cost.")
        response.feed(data)
        status = response.status
        head_bytes = self._received_bytes if status is None else response.head_bytes
        if head_bytes > MAX_HEAD_BYTES:
            detail = f"The headers of the answer are longer than {MAX_HEAD_BYTES} bytes."
            raise ProbeError(ProbeCause.TOO_LARGE, detail)
        if status is None:
            return
        is_wanted = status == HTTPStatus.OK and not response.is_encoded
        if is_wanted and response.body:
            sink(b"".join(response.body))
        response.body.clear()
        if response.is_complete or not is_wanted:
            # After a status below 200 the answer proper is still to come.
            is_over = response.is_complete and status >= HTTPStatus.OK
            self._is_reusable = is_over and response.keeps_alive
            self._succeed(Answer(status, response.is_encoded))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._is_reusable = False
        response = self._response
        if response is None:
            return
        if isinstance(exc, ssl.SSLError):
            self._fail(connection_error(exc, self._where))
        elif not self._received_bytes:
            self._fail(ClosedWithoutAnswerError(ProbeCause.RESET, self._closed_detail()))
        elif exc is not None or response.status is None:
            detail = f"{self._where} closed the connection in the middle of its answer."
            self._fail(ProbeError(ProbeCause.RESET, detail))
        elif response.is_framed:
            detail = f"{self._where} ended its answer before the length that it announced."
            self._fail(ProbeError(ProbeCause.BAD_BODY, detail))
        else:
            self._succeed(Answer(response.status, response.is_encoded))

    def _closed_detail(self) -> str:
        return f"{self._where} closed the connection without an answer."

    def _succeed(self, answer: Answer) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _fail(self, error: ProbeError) -> None:
        self.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
