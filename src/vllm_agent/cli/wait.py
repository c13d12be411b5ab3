"""`vllm-agent wait`: returns once a server is in a state; made for scripts.

Standard output and the exit code are for the script; what happens meanwhile goes to standard error.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, did_you_mean, duration, state_dir
from vllm_agent.cli.follow import follow
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.cli.patience import DEFAULT_SECONDS
from vllm_agent.cli.text import plain
from vllm_agent.config.duration import format_duration
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    with AgentClient(state_dir(arguments, environ)) as client:
        server = follow(client, arguments.server, arguments.states, arguments.timeout)
    print(f"{plain(arguments.server)} is {server['state']}")
    return ExitCode.DONE


def _states(text: str) -> tuple[ServerState, ...]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in set(ServerState):
            raise argparse.ArgumentTypeError(
                f"{word!r} is not a state{did_you_mean(word, ServerState)} "
                f"(states: {', '.join(ServerState)})"
            )
    return tuple(ServerState(word) for word in words)
