"""What an agent says of its servers, with the moment of each change."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from vllm_agent.lifecycle.states import ServerState

POLL_SECONDS = 0.02
"""How exactly a change is timed."""


@dataclass(frozen=True)
class Seen:
    """A server as the API shows it from `at_seconds` of the monotonic clock on."""

    at_seconds: float
    state: str
    view: dict[str, Any]


class StateWatch:
    """Asks an agent for its servers every 20 ms, and keeps each change of a state.

    The agent may be restarted meanwhile: while it does not answer, nothing changes.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen: dict[str, list[Seen]] = {}
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seen(self, name: str) -> list[Seen]:
        """Every state that a server had, in order."""
        with self._changed:
            return list(self._seen.get(name, ()))

    def states(self, name: str) -> list[str]:
        """The names of those states."""
        return [one.state for one in self.seen(name)]

    def wait(
        self, name: str, *states: str, after_seconds: float = 0.0, timeout_seconds: float = 20.0
    ) -> Seen:
        """The first sight of one of these states after a moment; of any state where none is named.

        A state that it already had at that moment counts from that moment on.
        """
        found: Seen | None = None

        def is_there() -> bool:
            nonlocal found
            found = self._first(name, states, after_seconds)
            return found is not None

        with self._changed:
            if self._changed.wait_for(is_there, timeout_seconds) and found is not None:
                return found
            told = [(one.at_seconds, one.state) for one in self._seen.get(name, ())]
        raise AssertionError(
            f"{name} was not {' or '.join(states) or 'seen'} after {after_seconds:.3f} "
            f"within {timeout_seconds:g} s; it was {told}"
        )

    def wait_left(
        self, name: str, state: str, after_seconds: float, timeout_seconds: float = 20.0
    ) -> Seen:
        """The first sight of any other state after a moment."""
        return self.wait(
            name,
            *(other for other in ServerState if other != state),
            after_seconds=after_seconds,
            timeout_seconds=timeout_seconds,
        )

    def _first(self, name: str, states: tuple[str, ...], after_seconds: float) -> Seen | None:
        seen = self._seen.get(name, [])
        for number, one in enumerate(seen):
            is_last = number + 1 == len(seen)
            if not is_last and seen[number + 1].at_seconds < after_seconds:
                continue
            if not states or one.state in states:
                return one
        return None

    def _watch(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        etag = ""
        while not self._over.wait(POLL_SECONDS):
            try:
                connection.request("GET", "/api/v1/servers", headers={"If-None-Match": etag})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            if answer.status == 200:
                etag = answer.headers["ETag"]
                self._note(json.loads(body)["servers"])
        connection.close()

    def _note(self, servers: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        with self._changed:
            for view in servers:
                seen = self._seen.setdefault(view["name"], [])
                if not seen or seen[-1].state != view["state"]:
                    seen.append(Seen(now, view["state"], view))
            self._changed.notify_all()
