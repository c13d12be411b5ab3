"""Looks up host names in threads of its own.

uvloop looks names up in libuv's pool, where two slow ones delay all others, and asyncio in the
default executor, which the agent's other blocking work shares and whose threads hold up its exit.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from concurrent.futures import Future
from typing import Final

MAX_LOOKUP_THREADS: Final = 32
"""Lookups at once. A name is looked up once at a time, so up to 31 slow names delay no other."""

MAX_ADDRESSES: Final = 8
"""Addresses tried of one name: each dead one costs its share of the probe's deadline."""


class NameLookup:
    """Finds the addresses of names; usable from every event loop of the process.

    Nothing is cached: an address that moved must not look like a server that died.
    """

    def __init__(self, max_threads: int = MAX_LOOKUP_THREADS) -> None:
        self._max_threads = max_threads
        self._threads = 0
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pending: dict[str, Future[tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The addresses of `host`, in the order in which to try them.

        Raises:
            OSError: the name is unknown, or no name server answers.
        """
        return await asyncio.wrap_future(self._submit(host))

    def _submit(self, host: str) -> Future[tuple[str, ...]]:
        with self._lock:
            pending = self._pending.get(host)
            if pending is not None:
                return pending
            future: Future[tuple[str, ...]] = Future()
            # Running from the start: a caller that gives up must not cancel it for the others.
            future.set_running_or_notify_cancel()
            self._pending[host] = future
            self._waiting.put(host)
            if self._threads < min(len(self._pending), self._max_threads):
                self._threads += 1
                # Daemons: a name server that does not answer must not hold up the agent's exit.
                threading.Thread(target=self._work, name="name-lookup", daemon=True).start()
            return future

    def _work(self) -> None:
        while True:
            host = self._waiting.get()
            try:
                addresses = _look_up(host)
            except OSError as error:
                self._taken(host).set_exception(error)
            else:
                self._taken(host).set_result(addresses)

    def _taken(self, host: str) -> Future[tuple[str, ...]]:
        with self._lock:
            return self._pending.pop(host)


def _look_up(host: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError("not a host name") from error
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return tuple(addresses)[:MAX_ADDRESSES]
