"""An ordinary minute of servers, of which nobody wants to hear.

Each part lasts one minute: a server answers its clients; one loads, serves and is stopped, known to
its agent or found by it; one is restarted in maintenance.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from tests.pipeline.outcomes import NOTHING, Scenario
from tests.pipeline.stage import PATIENCE_SECONDS, Host, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE_SECONDS: Final = 60.0
LOAD_SECONDS: Final = 3.0
"""Of each minute, 5 %: somebody is paged where 14.4 % of the time are away."""

PAUSE_SECONDS: Final = 0.5
"""Between two short requests."""

SHELL: Final = Host(name="shell", discovery="{max_servers: 1000}")
"""Its agent discovers servers, those of others on this machine, too."""

_STREAM_TOKENS: Final = 200
_SHORT_TOKENS: Final = 4
_REQUEST_SECONDS: Final = 60.0
_READ_BYTES: Final = 1 << 12


class Traffic:
    """Two clients of a server: one streams long answers, one asks for short ones."""

    def __init__(self, port: int, model: str) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._port = port
        self._model = model
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=request, daemon=True)
            for request in ((_STREAM_TOKENS, True), (_SHORT_TOKENS, False))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, tokens: int, is_stream: bool) -> None:  # noqa: FBT001 - of a thread
        while not self._over.wait(PAUSE_SECONDS):
            try:
                self._ask(tokens, is_stream=is_stream)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            else:
                self.answers += 1

    def _ask(self, tokens: int, *, is_stream: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_REQUEST_SECONDS)
        try:
            body = {
                "model": self._model,
                "prompt": "one two",
                "max_tokens": tokens,
                "stream": is_stream,
            }
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"status {answer.status}")
            while answer.read1(_READ_BYTES) and not self._over.is_set():
                pass
        finally:
            connection.close()


def answers(scene: Scene) -> Iterator[None]:
    """A server answers its clients."""
    scene.wait_seen("running")
    with Traffic(scene.port, str(scene.stage.model)) as traffic:
        time.sleep(MINUTE_SECONDS)
    assert traffic.answers
    assert not traffic.failures
    yield


def loads_serves_and_stops(scene: Scene) -> Iterator[None]:
    """A server is started, loads, serves, and is stopped by whoever started it."""
    over = time.monotonic() + MINUTE_SECONDS
    server = scene.start_serving("--load-seconds", str(LOAD_SECONDS))
    time.sleep(max(0.0, over - time.monotonic()))
    server.terminate()
    server.wait(PATIENCE_SECONDS)
    scene.wait_seen("stopped")
    yield


def restarted_in_maintenance(scene: Scene) -> Iterator[None]:
    """A server is restarted as planned, and its clients go without it meanwhile."""
    over = time.monotonic() + MINUTE_SECONDS
    scene.wait_seen("running")
    agent = scene.managed
    agent.done(scene.server, "maintenance", on=True)
    scene.wait_true(f"{scene.series('vllm_agent_server_desired_up')} == 0")
    launches = agent.server(scene.server)["launches"]
    agent.done(scene.server, "restart")
    agent.wait_running(scene.server, launches + 1)
    agent.done(scene.server, "maintenance", on=False)
    scene.wait_true(f"{scene.series('vllm_agent_server_desired_up')} == 1")
    time.sleep(max(0.0, over - time.monotonic()))
    yield


def quiet_hosts() -> tuple[Host, ...]:
    """The hosts of the scenarios in `QUIET`, and no servers besides."""
    return (
        Host(name="managed", managed={"busy": {}, "restarted": {}}),
        Host(name="local", monitored={"loading": {}}),
        SHELL,
    )


QUIET: Final = (
    Scenario(
        name="answers to clients",
        host="managed",
        server="busy",
        happening=answers,
        expected=NOTHING,
    ),
    Scenario(
        name="load, serving, stop by its owner",
        host="local",
        server="loading",
        happening=loads_serves_and_stops,
        expected=NOTHING,
    ),
    Scenario(
        name="restart in maintenance",
        host="managed",
        server="restarted",
        happening=restarted_in_maintenance,
        expected=NOTHING,
    ),
    Scenario(
        name="load, serving, stop of a server in a shell",
        host=SHELL.name,
        server="in-a-shell",
        happening=loads_serves_and_stops,
        expected=NOTHING,
    ),
)
