"""`vllm-agent set-model`: has a managed server serve another model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.managed_lines import managed_of
from vllm_agent.cli.model_argument import add_model
from vllm_agent.cli.operation import Operation, add_server, ask, follow_until_running
from vllm_agent.cli.outcome import CommandError, ExitCode, NoAgentError, RefusedError
from vllm_agent.cli.text import plain, shell_word

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.cli.arguments import Parser


def configure(parser: Parser) -> None:
    """Adds the server and the model."""
    add_server(parser)
    add_model(parser, "MODEL", "Model to serve from now on: an id of the Hub, or a path.")
    add_client_flags(parser)
    parser.epilog = (
        "The server is stopped, started with the model, and waited for until it runs. If it does "
        "not come up, the command that brings the model before back is told, and nothing is done "
        "behind anybody's back. The choice outlives the agent; the configuration file stays as it "
        "is."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and waits until the model is served."""
    name, model = arguments.server, arguments.model
    command = f"vllm-agent set-model {shell_word(name)}"
    operation = Operation(name, "model", f"{command} {shell_word(model)}")
    with AgentClient(state_dir(arguments, environ)) as client:
        managed = managed_of(client.read(server_path(name)).json)
        try:
            ask(client, operation, {"model": model})
            follow_until_running(client, name)
        except (RefusedError, NoAgentError):
            raise
        except CommandError as error:
            before = _model_before(client, name) or (managed and managed["model"]) or model
            back = f"{command} {shell_word(before)}"
            if before != model and f"'{back}'" not in error.line:
                error.more = (*error.more, f"to serve the model before again: {back}")
            raise
    print(f"{plain(name)} is running and serves {plain(model)}")
    return ExitCode.DONE


def _model_before(client: AgentClient, name: str) -> str | None:
    """The model that was served last: the agent knows it even if others failed since."""
    try:
        managed = managed_of(client.read(server_path(name)).json)
    except CommandError:
        return None
    return managed and managed["model_before"]
