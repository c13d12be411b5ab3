"""`vllm-agent status`: every server in a table, or one in full; once or live.

The exit code is 0 when the answer was shown, whatever it says: scripts use `wait`.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import SERVERS_PATH, AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, add_watch_flags, is_terminal, state_dir
from vllm_agent.cli.gpu_lines import compact_rows
from vllm_agent.cli.outcome import CommandError, ExitCode
from vllm_agent.cli.server_details import detail_rows
from vllm_agent.cli.status_table import HEADINGS, notices, rows_in_order, table_row
from vllm_agent.cli.text import columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.cli.agent_client import Answer
    from vllm_agent.expose.gpu_view import GpusView
    from vllm_agent.expose.json_view import ServersView, ServerView


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, and how to show it."""
    parser.add_argument("server", metavar="SERVER", nargs="?", help="Show this server in full.")
    add_watch_flags(parser)
    add_client_flags(parser)
    parser.epilog = (
        "The exit code is 0 when the answer was shown, whatever it says; "
        "a script that needs a state uses 'vllm-agent wait'."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Shows what the agent says."""
    path = SERVERS_PATH if arguments.server is None else server_path(arguments.server)
    with AgentClient(state_dir(arguments, environ)) as client:
        answer = client.read(path)
        if arguments.watch:
            from vllm_agent.cli.watch import watch  # noqa: PLC0415 - one look does without

            return watch(client, path, answer, as_json=arguments.json)
        if arguments.json:
            print(answer.body.decode(), end="")
            return ExitCode.DONE
        gpus = _gpus(client)
    show = _show_servers if arguments.server is None else _show_server
    show(answer, gpus)
    return ExitCode.DONE


def _gpus(client: AgentClient) -> GpusView | None:
    """The GPUs, None where the agent does not tell: the servers are shown all the same."""
    try:
        answer = client.gpus()
    except CommandError as error:
        print(error.line, file=sys.stderr)
        return None
    return None if answer is None else answer.json


def _show_servers(answer: Answer, gpus: GpusView | None) -> None:
    view: ServersView = answer.json
    for notice in notices(view):
        print(notice, file=sys.stderr)
    lines = [] if gpus is None else compact_rows(gpus)
    if not view["servers"] and not lines:
        return
    now = time.time()
    if is_terminal():
        from vllm_agent.cli import gpu_terminal, terminal  # noqa: PLC0415 - see terminal

        terminal.print_once(gpu_terminal.servers_and_gpus(view, gpus, now))
        return
    if view["servers"]:
        print(columns([HEADINGS, *(table_row(server, now) for server in rows_in_order(view))]))
    if lines:
        print("\n" * bool(view["servers"]) + columns(lines))


def _show_server(answer: Answer, gpus: GpusView | None) -> None:
    server: ServerView = answer.json
    now = time.time()
    if is_terminal():
        from vllm_agent.cli.terminal import print_once, server_grid  # noqa: PLC0415 - see terminal

        print_once(server_grid(server, gpus, now))
        return
    print(columns([(row.label, row.text) for row in detail_rows(server, gpus, now)]))
