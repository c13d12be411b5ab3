"""`vllm-agent forget`: lets a discovered server that ended leave, and its page with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.cli.text import plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server."""
    parser.add_argument("server", metavar="SERVER", help="Name of the server.")
    add_client_flags(parser)
    parser.epilog = (
        "Only a discovered server that has stopped or crashed can be forgotten; it is shown again "
        "if it is started again. A configured server leaves with its entry in the file."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent."""
    with AgentClient(state_dir(arguments, environ)) as client:
        client.forget(arguments.server)
    print(f"{plain(arguments.server)} is forgotten until it is started again")
    return ExitCode.DONE
