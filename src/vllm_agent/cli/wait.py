"""`vllm-agent wait`: returns once a server is in a state; made for scripts."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, did_you_mean, duration, state_dir
from vllm_agent.cli.outcome import ExitCode, NoAgentError, TimedOutError
from vllm_agent.cli.text import plain
from vllm_agent.config.duration import format_duration
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.expose.json_view import ServerView

POLL_SECONDS: Final = 0.2
"""Shorter than anybody notices; an unchanged server costs the agent a tenth of a millisecond."""

DEFAULT_TIMEOUT_SECONDS: Final = 300.0
"""As long as a load may go without progress."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, the states to wait for, and the patience."""
    parser.add_argument("server", metavar="SERVER", help="Name of the server.")
    parser.add_argument(
        "--for",
        dest="states",
        type=_states,
        required=True,
        metavar="STATE[,STATE]",
        help=f"One of {', '.join(ServerState)}; with several, any of them will do.",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="DURATION",
        help=f"Patience. Default: {format_duration(DEFAULT_TIMEOUT_SECONDS)}.",
    )
    add_client_flags(parser)


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks until the server is in one of the states, or patience ends."""
    name, states = arguments.server, arguments.states
    with AgentClient(state_dir(arguments, environ)) as client:
        server = _wait(client, server_path(name), states, arguments.timeout)
    if server["state"] not in states:
        raise TimedOutError(_still(server, states, arguments.timeout))
    print(f"{plain(name)} is {server['state']}")
    return ExitCode.DONE


def _wait(
    client: AgentClient, path: str, states: tuple[ServerState, ...], timeout_seconds: float
) -> ServerView:
    """The server as soon as it is in one of the states, or as it is when patience ends."""
    deadline = time.monotonic() + timeout_seconds
    answer = client.read(path)
    server: ServerView = answer.json
    while server["state"] not in states:
        rest = deadline - time.monotonic()
        if rest <= 0:
            break
        time.sleep(min(POLL_SECONDS, rest))
        try:
            changed = client.read_if_changed(path, answer.etag)
        except NoAgentError:
            # It may only be restarting; the timeout bounds this.
            continue
        if changed is not None:
            answer, server = changed, changed.json
    return server


def _still(server: ServerView, states: tuple[ServerState, ...], timeout_seconds: float) -> str:
    why = f" ({server['reason']})" if server["reason"] else ""
    name = plain(server["name"])
    return (
        f"{name} is still {server['state']}{why}, not {' or '.join(states)}, after "
        f"{format_duration(timeout_seconds)}; 'vllm-agent status {name}' says more"
    )


def _states(text: str) -> tuple[ServerState, ...]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in set(ServerState):
            raise argparse.ArgumentTypeError(
                f"{word!r} is not a state{did_you_mean(word, ServerState)} "
                f"(states: {', '.join(ServerState)})"
            )
    return tuple(ServerState(word) for word in words)
