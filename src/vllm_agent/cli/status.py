"""`vllm-agent status`: every server in a table, or one in full; once or live.

The exit code is 0 when the answer was shown, whatever it says: scripts use `wait`.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import SERVERS_PATH, AgentClient, server_path
from vllm_agent.cli.arguments import add_client_flags, is_terminal, state_dir
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.cli.server_details import detail_rows
from vllm_agent.cli.status_table import HEADINGS, notices, rows_in_order, table_row
from vllm_agent.cli.text import columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.cli.agent_client import Answer
    from vllm_agent.expose.json_view import ServersView, ServerView


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, and how to show it."""
    parser.add_argument("server", metavar="SERVER", nargs="?", help="Show this server in full.")
    parser.add_argument("--watch", action="store_true", help="Keep showing it until Ctrl-C.")
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print the answer of the API, with --watch a line per change.",
    )
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
    elif arguments.server is None:
        _show_servers(answer)
    else:
        _show_server(answer)
    return ExitCode.DONE


def _show_servers(answer: Answer) -> None:
    view: ServersView = answer.json
    for notice in notices(view):
        print(notice, file=sys.stderr)
    if not view["servers"]:
        return
    now = time.time()
    if is_terminal():
        from vllm_agent.cli.terminal import print_once, servers_table  # noqa: PLC0415 - see terminal

        print_once(servers_table(view, now))
        return
    print(columns([HEADINGS, *(table_row(server, now) for server in rows_in_order(view))]))


def _show_server(answer: Answer) -> None:
    server: ServerView = answer.json
    now = time.time()
    if is_terminal():
        from vllm_agent.cli.terminal import print_once, server_grid  # noqa: PLC0415 - see terminal

        print_once(server_grid(server, now))
        return
    print(columns([(row.label, row.text) for row in detail_rows(server, now)]))
