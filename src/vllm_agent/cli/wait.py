"""`vllm-agent wait`: returns once a server is in a state; made for scripts.

Standard output and the exit code are for the script; what happens meanwhile goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, did_you_mean, duration, state_dir
from vllm_agent.cli.load_bar import load_of
from vllm_agent.cli.load_lines import NOT_SEEN_YET, load_parts
from vllm_agent.cli.outcome import ExitCode, NoAgentError, TimedOutError
from vllm_agent.cli.patience import DEFAULT_SECONDS, Patience
from vllm_agent.cli.text import age, age_of, local_time, plain
from vllm_agent.cli.wait_lines import StderrLines, WaitLook
from vllm_agent.config.duration import format_duration
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.cli.wait_lines import Display
    from vllm_agent.expose.json_view import ServerView

POLL_SECONDS: Final = 0.2
"""Shorter than anybody notices; an unchanged server costs the agent a tenth of a millisecond."""


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
    default = format_duration(DEFAULT_SECONDS)
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="DURATION",
        help=f"Give up after this long, whatever happens. Default: {default}, but with running "
        f"among the states a load is waited for until {default} after its last progress.",
    )
    add_client_flags(parser)
    parser.epilog = (
        "A server that fails or crashes is waited for too, since a supervisor may start it again: "
        "its reason goes to standard error. To return at once then, ask for these states as well: "
        "--for running,failed,crashed, and read which one is printed. An agent that goes away "
        "meanwhile is waited for; without one at the start this ends at once with exit code 3."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks until the server is in one of the states, or patience ends."""
    states = arguments.states
    with AgentClient(state_dir(arguments, environ)) as client:
        patience = Patience(arguments.timeout, states, time.monotonic())
        server = _wait(client, server_path(arguments.server), states, patience)
    if server["state"] not in states:
        spent = patience.spent_seconds(time.monotonic())
        limit = age(spent) if arguments.timeout is None else format_duration(arguments.timeout)
        raise TimedOutError(_still(server, states, limit, time.time()))
    print(f"{plain(arguments.server)} is {server['state']}")
    return ExitCode.DONE


def _wait(
    client: AgentClient, path: str, states: tuple[ServerState, ...], patience: Patience
) -> ServerView:
    """The server as soon as it is in one of the states, or as it is when patience ends."""
    answer = client.read(path)
    server: ServerView = answer.json
    trouble = ""
    if server["state"] in states:
        return server
    with _display() as display:
        while server["state"] not in states:
            now = time.monotonic()
            patience.note(None if trouble else server, now)
            rest = patience.rest_seconds(now)
            display.show(WaitLook(server, states, rest, trouble, now, time.time()))
            if rest <= 0:
                break
            time.sleep(min(POLL_SECONDS, rest))
            try:
                changed = client.read_if_changed(path, answer.etag)
            except NoAgentError as error:
                # It may only be restarting; patience bounds this.
                trouble = error.line
                continue
            trouble = ""
            if changed is not None:
                answer, server = changed, changed.json
    return server


def _display() -> Display:
    if sys.stderr is not None and os.isatty(sys.stderr.fileno()):
        from vllm_agent.cli.wait_terminal import LiveBar, can_draw  # noqa: PLC0415 - see terminal

        if can_draw():
            return LiveBar()
    return StderrLines()


def _still(
    server: ServerView, states: tuple[ServerState, ...], limit: str, now_unix_seconds: float
) -> str:
    why = f" ({server['reason']})" if server["reason"] else ""
    name = plain(server["name"])
    load = load_of(server)
    told = ""
    if load is not None:
        at = load["last_progress_timestamp_seconds"]
        moved = NOT_SEEN_YET
        if at is not None:
            moved = f"last progress {age_of(at, now_unix_seconds)} ago, at {local_time(at)}"
        told = f": {', '.join((*load_parts(load), moved))}"
    return (
        f"{name} is still {server['state']}{why}, not {' or '.join(states)}, after {limit}{told}; "
        f"'vllm-agent status {name}' says more"
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
