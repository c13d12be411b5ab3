"""A connection on which nothing is ever asked: the kernel closes it when the server goes."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from vllm_agent.host.dial import ProbeError, dial
from vllm_agent.observations import ProbeCause

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.dial import Target
    from vllm_agent.observations import Instant

KEEPALIVE_IDLE_SECONDS: Final = 30
KEEPALIVE_INTERVAL_SECONDS: Final = 10
KEEPALIVE_PROBES: Final = 3
"""A host that vanished without a word is noticed after 30 + 3 x 10 s. Probes notice it earlier:
this frees the connection, and keeps NAT boxes from forgetting it, as they do after minutes."""

MAX_UNASKED_BYTES: Final = 4 * 1024
"""A web server that ends an idle connection sends at most a short 408 before it closes."""


class IdleConnection(asyncio.Protocol):
    """One idle connection, for one life: `connect` once, then closed by the peer or by `close`.

    `on_closed` is called once, with the seconds it lived, when it ends other than by `close`.
    """

    __slots__ = ("_clock", "_on_closed", "_opened", "_target", "_transport", "_unasked_bytes")

    def __init__(
        self, target: Target, clock: Callable[[], Instant], on_closed: Callable[[float], None]
    ) -> None:
        self._target = target
        self._clock = clock
        self._on_closed: Callable[[float], None] | None = on_closed
        self._opened: Instant | None = None
        self._transport: asyncio.Transport | None = None
        self._unasked_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether it was opened and has not ended."""
        return self._opened is not None and self._transport is not None

    async def connect(self) -> ProbeCause | None:
        """Open it, within the timeout of the target; gives why that failed, or None.

        A failure, and a cancellation, leave nothing open and never call `on_closed`.
        """
        try:
            async with asyncio.timeout(self._target.timeout_seconds):
                await dial(self._target, lambda: self)
        except TimeoutError:
            return ProbeCause.TIMEOUT
        except ProbeError as error:
            return error.cause
        if self._transport is None:
            return ProbeCause.RESET
        _keep_alive(self._transport)
        self._opened = self._clock()
        return None

    def close(self) -> None:
        """Close it without a call of `on_closed`; does nothing where there is nothing to close."""
        self._on_closed = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        if self._on_closed is None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unasked_bytes += len(data)
        if self._unasked_bytes > MAX_UNASKED_BYTES and self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> None:
        """See asyncio.Protocol."""
        # At once: a polite end of TLS would wait for a peer that may be dead.
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        del exc
        self._transport = None
        if self._on_closed is not None and self._opened is not None:
            self._on_closed(self._clock().since(self._opened))


def _keep_alive(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
