"""`vllm-agent restart`: stops a managed server and starts it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.operation import (
    Operation,
    add_server,
    add_wait,
    ask,
    follow_until_running,
    started,
)
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.cli.text import shell_word

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, and how long to wait."""
    add_server(parser)
    add_wait(parser)
    add_client_flags(parser)
    parser.epilog = "A server that is not there is started."


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and tells how far it has come."""
    name = arguments.server
    operation = Operation(name, "restart", f"vllm-agent restart {shell_word(name)}")
    with AgentClient(state_dir(arguments, environ)) as client:
        server = ask(client, operation, {}).json
        if arguments.wait:
            server = follow_until_running(client, name)
    print(started(server))
    return ExitCode.DONE
