"""What the commands share that start and stop servers: asking, telling meanwhile, and failing."""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.cli.agent_client import server_path
from vllm_agent.cli.follow import display, follow
from vllm_agent.cli.managed_lines import managed_of
from vllm_agent.cli.outcome import (
    CommandError,
    NoAgentError,
    RefusedError,
    UnknownPathError,
)
from vllm_agent.cli.text import plain, shell_word
from vllm_agent.cli.wait_lines import WaitLook
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vllm_agent.cli.agent_client import AgentClient, Answer, Json
    from vllm_agent.cli.wait_lines import Display
    from vllm_agent.expose.json_view import ServerView

SILENT_SECONDS: Final = 1.0
"""What takes no longer needs no word on what is waited for."""

_OLDER_AGENT: Final = (
    "the agent is of an older version that starts and stops nothing: restart it with this one"
)
_FAILURES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})
_FAILED_CODES: Final = frozenset({"start_failed", "stop_failed"})
_WATCHED_CODE: Final = "not_healthy"


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the server that is meant."""
    parser.add_argument("server", metavar="SERVER", help="Name of a managed server.")


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Adds whether to wait until it runs."""
    parser.add_argument(
        "--wait",
        action="store_true",
        help="Wait until it runs, as 'vllm-agent wait' does. Default: until its process is there.",
    )


@dataclass(frozen=True, slots=True)
class Operation:
    """What is asked of a server: `what` in the words of the API, `command` in those of a shell.

    `aim` is what has to be there, or gone, until it is answered.
    """

    server: str
    what: str
    command: str
    aim: str = "its new process"


def ask(client: AgentClient, operation: Operation, wish: Json) -> Answer:
    """Asks, and tells of the server from the second second on; the answer is the server then.

    Raises:
        RefusedError: nothing was done.
        CommandError: it came to nothing; the lines say why and what to do.
    """
    name = operation.server
    try:
        with goes_on(name), _Meanwhile(client, name, operation.aim) as meanwhile:
            return client.ask(name, operation.what, wish, meanwhile.tell)
    except RefusedError as error:
        raise explained(error, name, operation.command) from None


def explained(error: RefusedError, name: str, command: str) -> CommandError:
    """The same, with what to run next where it was tried and failed; `command` tries it again."""
    if isinstance(error, UnknownPathError):
        return RefusedError(_OLDER_AGENT)
    if error.code in _FAILED_CODES:
        return CommandError(error.message, *_advice(error.hint, command))
    if error.code == _WATCHED_CODE:
        wait = f"vllm-agent wait {shell_word(name)} --for running"
        who = f"this agent only watches {plain(name)} and does not start it: whoever runs it has to"
        return CommandError(
            error.message, *_advice(error.hint), f"{who}, and {wait} waits for that"
        )
    return error


def follow_until_running(
    client: AgentClient,
    name: str,
    seconds: float | None = None,
    asked: ServerView | None = None,
) -> ServerView:
    """The server once it runs, with what it does meanwhile told as `wait` does.

    `asked` is how it was when a start was asked for that has not begun yet.

    Raises:
        CommandError: it does not run, and the agent will not start it again by itself.
        TimedOutError: it took too long.
    """

    def is_over(server: ServerView) -> bool:
        is_tried = asked is None or _position(asked) != _position(server)
        return is_tried and is_vain(server)

    with goes_on(name):
        server = follow(client, name, (ServerState.RUNNING,), seconds, is_over)
    if server["state"] != ServerState.RUNNING:
        raise failure(server)
    return server


def is_vain(server: ServerView) -> bool:
    """Whether a managed server will not run unless somebody does something."""
    managed = managed_of(server)
    if managed is None:
        return False
    if managed["goal"] == "down":
        return True
    is_planned = managed["next_restart_timestamp_seconds"] is not None
    return server["state"] in _FAILURES and server["pid"] is None and not is_planned


def failure(server: ServerView) -> CommandError:
    """Why a managed server does not run, and what to do about it."""
    name, word, managed = plain(server["name"]), shell_word(server["name"]), managed_of(server)
    if managed is not None and managed["goal"] == "down":
        return CommandError(
            f"{name} is {server['state']}: somebody stopped it meanwhile",
            f"to start it: vllm-agent start {word}",
        )
    told = [f"{name} is {server['state']}", server["reason"] or "", server["detail"]]
    more = [f"what happened: vllm-agent history {word} --log"]
    if managed is not None and managed["is_dry_run"]:
        more.append("restart.dry_run keeps the agent from starting it again")
    more += _advice(plain(server["advice"] or ""), f"vllm-agent start {word}")
    return CommandError(plain(": ".join(filter(None, told))), *more)


@contextmanager
def goes_on(name: str) -> Iterator[None]:
    """Says to whoever presses Ctrl-C that it ends the command only."""
    try:
        yield
    except KeyboardInterrupt:
        told = f"the agent goes on with what was asked: vllm-agent status {shell_word(name)}"
        print(f"vllm-agent: {told}", file=sys.stderr)
        raise


def started(server: ServerView) -> str:
    """How far a start has come, and how to wait for the rest of it."""
    pid = "" if server["pid"] is None else f" (PID {server['pid']})"
    told = f"{plain(server['name'])} is {server['state']}{pid}"
    if server["state"] == ServerState.RUNNING:
        return told
    return f"{told}: vllm-agent wait {shell_word(server['name'])} --for running"


def _position(server: ServerView) -> tuple[str, int] | None:
    managed = managed_of(server)
    return None if managed is None else (managed["phase"], managed["attempts"])


def _advice(advice: str, command: str = "") -> list[str]:
    """What to do, and the command to run then, which the advice may have named."""
    told = [f"advice: {advice}"] if advice else []
    is_told = not command or f"'{command}'" in advice
    return told if is_told else [*told, f"when that is mended: {command}"]


class _Meanwhile:
    """Tells of a server while the agent works on it."""

    def __init__(self, client: AgentClient, name: str, aim: str) -> None:
        self._client = client
        self._path = server_path(name)
        self._aim = aim
        self._began = time.monotonic()
        self._answer: Answer | None = None
        self._display: Display | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def tell(self) -> None:
        """Tells what is new, once it takes long."""
        now = time.monotonic()
        if now - self._began < SILENT_SECONDS:
            return
        trouble = ""
        try:
            etag = None if self._answer is None else self._answer.etag
            self._answer = self._client.read_if_changed(self._path, etag) or self._answer
        except NoAgentError as error:
            # The request that is waited for tells of it, too, and ends this.
            trouble = error.line
        if self._answer is None:
            return
        if self._display is None:
            self._display = self._open.enter_context(display())
        look = WaitLook(self._answer.json, (self._aim,), math.inf, trouble, now, time.time())
        self._display.show(look)
