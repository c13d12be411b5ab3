"""`vllm-agent start`: starts a managed server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.model_argument import add_model
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

    from vllm_agent.cli.arguments import Parser


def configure(parser: Parser) -> None:
    """Adds the server, the model, and how long to wait."""
    add_server(parser)
    add_model(parser, "--model", "Serve this model from now on. Default: the one it served last.")
    add_wait(parser)
    add_client_flags(parser)
    parser.epilog = (
        "A server that is there already stays as it is, unless another model is asked for. "
        "A start by hand is tried at once, and the restart limit counts from there on again."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and tells how far it has come."""
    name, model = arguments.server, arguments.model
    command, wish = f"vllm-agent start {shell_word(name)}", {}
    if model is not None:
        command, wish = f"{command} --model {shell_word(model)}", {"model": model}
    with AgentClient(state_dir(arguments, environ)) as client:
        server = ask(client, Operation(name, "start", command), wish).json
        if arguments.wait:
            server = follow_until_running(client, name)
    print(started(server))
    return ExitCode.DONE
