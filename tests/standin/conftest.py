"""Servers of this package's tests, and one way to ask them."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from vllm_agent.demo.launch import StandIn
from vllm_agent.host.failure_patterns import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Delays of a real server, ten times shorter.
FAST = ("--speed", "10", "--token-seconds", "0.001")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: StandIn,
    path: str,
    body: object = None,
    *,
    timeout: float = 5.0,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, payload, headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def reason_in(log: str) -> str | None:
    """The reason that the agent gives for a log: that of the first line of the best rank."""
    found = [
        (cause.rank, number, cause.reason)
        for number, line in enumerate(log.splitlines())
        if (taken := _LINE.fullmatch(line))
        and (cause := cause_of(taken["message"], taken["level"])) is not None
    ]
    return min(found)[2] if found else None


_LINE = re.compile(r"(?:\(\S+ pid=\d+\) (?P<level>[A-Z]+) \S+ \S+ \[\S+\] )?(?P<message>.*)")


def refused(server: StandIn) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_log(server: StandIn, text: str) -> None:
    """Waits for a line of the log, which has no other way to tell."""
    deadline = time.monotonic() + 10
    while text not in server.log_text():
        assert time.monotonic() < deadline, server.log_text()
        time.sleep(0.005)


@pytest.fixture
def start() -> Iterator[Callable[..., StandIn]]:
    """Starts servers that end with the test."""
    servers: list[StandIn] = []

    def started(*arguments: str, **options: Any) -> StandIn:
        servers.append(StandIn.start(*FAST, *arguments, **options))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


@pytest.fixture
def serve(start) -> Callable[..., StandIn]:
    """Starts servers and waits until they listen."""
    return lambda *arguments, **options: start(*arguments, **options).wait_serving()
