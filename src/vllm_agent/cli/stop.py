"""`vllm-agent stop`: stops a managed server, and says how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, state_dir
from vllm_agent.cli.managed_lines import managed_of, stop_text
from vllm_agent.cli.operation import Operation, add_server, ask
from vllm_agent.cli.outcome import ExitCode, TimedOutError
from vllm_agent.cli.text import plain, shell_word

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.expose.managed_view import StopView

_NO_PROCESS: Final = "all its processes to end"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server."""
    add_server(parser)
    add_client_flags(parser)
    parser.epilog = (
        "It gets SIGTERM, and after managed.stop_timeout SIGKILL goes to whatever is left of it. "
        "This ends once nothing is. The server stays down until it is started again by hand."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and tells how it ended."""
    name, word = arguments.server, shell_word(arguments.server)
    with AgentClient(state_dir(arguments, environ)) as client:
        before = _last_stop(client.read(server_path(name)).json)
        operation = Operation(name, "stop", f"vllm-agent stop {word}", _NO_PROCESS)
        answer = ask(client, operation, {})
    server: ServerView = answer.json
    told = f"{plain(server['name'])} is {server['state']}"
    if answer.is_under_way:
        raise TimedOutError(f"{told}, not stopped yet: vllm-agent wait {word} --for stopped")
    stop = _last_stop(server)
    # A server that was not there has nothing to tell but a stop of long ago.
    print(told if stop is None or stop == before else f"{told}: {stop_text(stop)}")
    return ExitCode.DONE


def _last_stop(server: ServerView) -> StopView | None:
    managed = managed_of(server)
    return None if managed is None else managed["last_stop"]
