"""`vllm-agent history`: what happened to a server or to all of them, newest last."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.cli.agent_client import SERVERS_PATH, AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir, whole_number
from vllm_agent.cli.history_lines import merged_entries, server_entries
from vllm_agent.cli.outcome import ExitCode, UnknownServerError
from vllm_agent.cli.text import plain
from vllm_agent.expose.history_view import MAX_HISTORY_LIMIT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from vllm_agent.expose.history_view import HistoryView, LaunchView, TransitionView
    from vllm_agent.expose.json_view import ServersView

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50
"""About two screens."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server and how much of its past."""
    parser.add_argument(
        "server", metavar="SERVER", nargs="?", help="Only this server. Default: all of them."
    )
    parser.add_argument(
        "--limit",
        type=whole_number(1, MAX_HISTORY_LIMIT),
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"Show the newest N entries. Default: {DEFAULT_LIMIT}.",
    )
    parser.add_argument(
        "--log",
        action="store_true",
        help="Show what was kept of the server's log below each ending.",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print the answer of the API, for all servers a list of these; "
        "N is then that of transitions and that of launches.",
    )
    add_client_flags(parser)


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the past as lines."""
    with AgentClient(state_dir(arguments, environ)) as client:
        if arguments.server is None:
            return _show_all(client, arguments)
        answer = client.history(arguments.server, arguments.limit)
    if arguments.json:
        print(answer.body.decode(), end="")
        return ExitCode.DONE
    entries = server_entries(answer.json, with_log=arguments.log)
    _print_newest(entries, arguments.limit, plain(arguments.server))
    return ExitCode.DONE


def newest(histories: Sequence[HistoryView], limit: int) -> list[HistoryView]:
    """The same histories with the newest `limit` transitions and launches of them all."""
    transitions = _kept([h["transitions"] for h in histories], limit, _transition_time)
    launches = _kept([h["launches"] for h in histories], limit, _launch_time)
    return [
        {"server": history["server"], "transitions": changes, "launches": seen}
        for history, changes, seen in zip(histories, transitions, launches, strict=True)
    ]


def _show_all(client: AgentClient, arguments: argparse.Namespace) -> int:
    limit = arguments.limit
    histories = _all_histories(client, limit)
    if arguments.json:
        view = {"servers": newest(histories, limit)}
        print(json.dumps(view, ensure_ascii=False, separators=(",", ":")))
    else:
        entries = merged_entries(histories, with_log=arguments.log)
        _print_newest(entries, limit, "any server")
    return ExitCode.DONE


def _all_histories(client: AgentClient, limit: int) -> list[HistoryView]:
    view: ServersView = client.read(SERVERS_PATH).json
    histories = []
    for server in view["servers"]:
        try:
            histories.append(client.history(server["name"], limit).json)
        except UnknownServerError:
            # It went away after the list was made.
            continue
    return histories


def _print_newest(entries: Sequence[str], limit: int, whose: str) -> None:
    if entries:
        print("\n".join(entries[-limit:]))
    else:
        print(f"nothing is recorded of {whose} yet", file=sys.stderr)


def _kept(lists: Sequence[Sequence[T]], limit: int, time_of: Callable[[T], float]) -> list[list[T]]:
    """Of lists that are each newest first, what the newest `limit` of all their entries are."""
    everything = [
        (time_of(entry), index) for index, entries in enumerate(lists) for entry in entries
    ]
    everything.sort(key=lambda entry: entry[0], reverse=True)
    owners = [index for _, index in everything[:limit]]
    return [list(entries[: owners.count(index)]) for index, entries in enumerate(lists)]


def _transition_time(transition: TransitionView) -> float:
    return transition["timestamp_seconds"] or 0.0


def _launch_time(launch: LaunchView) -> float:
    return launch["first_seen_timestamp_seconds"] or 0.0
