"""Talks to the running agent: HTTP over its control socket, with the standard library only."""

from __future__ import annotations

import http.client
import json
import select
import socket
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from urllib.parse import quote

from vllm_agent.cli.outcome import (
    CommandError,
    NoAgentError,
    RefusedError,
    UnknownPathError,
    UnknownServerError,
)
from vllm_agent.cli.text import plain, shell_word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_agent.expose.json_view import ErrorView

SOCKET_NAME: Final = "control.sock"
SERVERS_PATH: Final = "/api/v1/servers"
GPUS_PATH: Final = "/api/v1/gpus"

ANSWER_SECONDS: Final = 15.0
"""The longest wait for an answer: the agent itself gives up after 10 s."""

TICK_SECONDS: Final = 0.2
"""How often a command looks up while the agent works; shorter than anybody notices."""

_REFUSALS: Final = MappingProxyType(
    {"unknown_server": UnknownServerError, "unknown_path": UnknownPathError}
)
"""What some caller can do without, by the code of the answer."""

Json: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said; `etag` asks later whether it would still say the same.

    `is_under_way` is whether what was asked for is not done yet.
    """

    body: bytes
    etag: str | None
    is_under_way: bool = False

    @property
    def json(self) -> Json:
        """The body as a value."""
        return json.loads(self.body)


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout)
        try:
            connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class AgentClient:
    """The agent whose state directory is `state_dir`.

    Every method raises `NoAgentError` where none runs there, and `CommandError` with what the
    agent said for a request it did not serve.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / SOCKET_NAME
        self._connection = _SocketConnection(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def socket_path(self) -> str:
        """Where the agent is asked."""
        return str(self._path)

    def read(self, path: str) -> Answer:
        """What is at `path`: `SERVERS_PATH` or a `server_path`."""
        return self._request("GET", path)[1]

    def read_if_changed(self, path: str, etag: str | None) -> Answer | None:
        """What is at `path`; None where it is what `etag` stands for."""
        headers = {} if etag is None else {"If-None-Match": etag}
        status, answer = self._request("GET", path, headers)
        return None if status == HTTPStatus.NOT_MODIFIED else answer

    def gpus(self, known: Answer | None = None) -> Answer | None:
        """The GPUs, `known` while that holds; None from an older agent, which knows of none."""
        try:
            return self.read_if_changed(GPUS_PATH, known.etag if known else None) or known
        except UnknownPathError:
            return None

    def history(self, name: str, limit: int) -> Answer:
        """The past of one server, its newest `limit` entries of each kind."""
        return self._request("GET", f"{server_path(name)}/history?limit={limit}")[1]

    def set_maintenance(self, name: str, *, is_on: bool, for_seconds: float | None) -> Answer:
        """Begins or ends maintenance; the answer is the server as it is then."""
        wish: dict[str, Json] = {"on": is_on}
        if for_seconds is not None:
            wish["for_seconds"] = for_seconds
        body = json.dumps(wish).encode()
        return self._request("POST", f"{server_path(name)}/maintenance", body=body)[1]

    def forget(self, name: str) -> None:
        """Lets a discovered server that ended leave."""
        self._request("POST", f"{server_path(name)}/forget")

    def ensure_healthy(self, name: str) -> Answer:
        """Has a server started if it does not run; the answer is the server as it is then."""
        return self._request("POST", f"{server_path(name)}/ensure-healthy", body=b"{}")[1]

    def ask(self, name: str, what: str, wish: Json, meanwhile: Callable[[], None]) -> Answer:
        """Asks what may take minutes; the answer is the server as it is then.

        `meanwhile` is called every `TICK_SECONDS` and may read. What it raises ends the wait, and
        the agent goes on: so does Ctrl-C.
        """
        # One of its own: an answer that is waited for leaves no room for others.
        connection = _SocketConnection(self._path)
        try:
            connection.request("POST", f"{server_path(name)}/{what}", json.dumps(wish).encode())
        except OSError as error:
            connection.close()
            raise self._no_agent(error) from None
        try:
            while not select.select([connection.sock], [], [], TICK_SECONDS)[0]:
                meanwhile()
            answer = self._answer(connection, name)
        finally:
            connection.close()
        return answer

    def _answer(self, connection: _SocketConnection, name: str) -> Answer:
        try:
            status, answer = _received(connection)
        except (OSError, http.client.HTTPException):
            raise NoAgentError(
                f"the agent at {self._path} went away before it answered: once it runs again, "
                f"'vllm-agent status {shell_word(name)}' says what came of it"
            ) from None
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(answer)
        return answer

    def _request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, Answer]:
        is_reused = self._connection.sock is not None
        try:
            status, answer = self._exchange(method, path, headers or {}, body)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self._connection.close()
            if not is_reused or method != "GET":
                raise self._no_agent(error) from None
            # The agent closed the kept connection, or another one took its place.
            return self._request(method, path, headers, body)
        except OSError as error:
            self._connection.close()
            raise self._no_agent(error) from None
        if status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(answer)
        return status, answer

    def _exchange(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, Answer]:
        self._connection.request(method, path, body, headers)
        return _received(self._connection)

    def _no_agent(self, error: Exception) -> CommandError:
        match error:
            case PermissionError():
                return CommandError(
                    f"not allowed to use {self._path}: run this as the agent's user, "
                    "as a member of its group or as root"
                )
            case TimeoutError():
                return CommandError(
                    f"the agent at {self._path} did not answer within {ANSWER_SECONDS:g} s: "
                    "look at its log"
                )
        if isinstance(error, OSError) and error.errno is None:
            return CommandError(f"cannot use {self._path}: {error}; choose a shorter --state.dir")
        return NoAgentError(
            f"no agent is running: nothing answers on {self._path}; start one with "
            "'vllm-agent run', or, if it runs with another --state.dir, give the same one here"
        )


def server_path(name: str) -> str:
    """Where one server is. The API decodes once; a name may hold any character."""
    return f"{SERVERS_PATH}/{quote(name, safe='')}"


def _received(connection: http.client.HTTPConnection) -> tuple[int, Answer]:
    response = connection.getresponse()
    body, etag = response.read(), response.getheader("ETag")
    return response.status, Answer(body, etag, response.status == HTTPStatus.ACCEPTED)


def _refusal(answer: Answer) -> CommandError:
    try:
        view: ErrorView = answer.json
        error = view["error"]
        message, hint, code = plain(error["message"]), plain(error["hint"]), error["code"]
    except (ValueError, KeyError, TypeError):
        return RefusedError("the agent gave an answer that is none: is it of another version?")
    return _REFUSALS.get(code, RefusedError)(message, hint, code)
