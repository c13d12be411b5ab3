"""`vllm-agent history`: what happened to a server, newest last."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, state_dir, whole_number
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.cli.text import local_time, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from vllm_agent.expose.json_view import EndingView, HistoryView, LaunchView, TransitionView

DEFAULT_LIMIT: Final = 50
"""About two screens."""

MAX_LIMIT: Final = 1000
"""What the agent gives at most."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server and how much of its past."""
    parser.add_argument("server", metavar="SERVER", help="Name of the server.")
    parser.add_argument(
        "--limit",
        type=whole_number(1, MAX_LIMIT),
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"Show the newest N lines. Default: {DEFAULT_LIMIT}.",
    )
    parser.add_argument("--json", action="store_true", help="Print the answer of the API.")
    add_client_flags(parser)


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the past as lines."""
    with AgentClient(state_dir(arguments, environ)) as client:
        answer = client.history(arguments.server, arguments.limit)
    if arguments.json:
        print(answer.body.decode(), end="")
        return ExitCode.DONE
    lines = history_lines(answer.json)[-arguments.limit :]
    if lines:
        print("\n".join(lines))
    else:
        print(f"nothing is recorded of {plain(arguments.server)} yet", file=sys.stderr)
    return ExitCode.DONE


def history_lines(history: HistoryView) -> list[str]:
    """Transitions, launches and endings in the order of time, in local time."""
    events = [
        *(event for launch in history["launches"] for event in _launch_events(launch)),
        *((t["timestamp_seconds"] or 0.0, 2, _transition(t)) for t in history["transitions"]),
    ]
    events.sort()
    return [f"{local_time(at)}  {plain(text)}" for at, _, text in events]


def _launch_events(launch: LaunchView) -> Iterator[tuple[float, int, str]]:
    """A launch and its end. The number orders what happened at the same moment."""
    number, start = launch["number"], launch["process_start_time_seconds"]
    process = "" if start is None else f", its process started at {local_time(start)}"
    yield launch["first_seen_timestamp_seconds"] or 0.0, 1, f"launch {number} seen{process}"
    ending = launch["ending"]
    if ending is not None:
        yield ending["timestamp_seconds"] or 0.0, 0, f"launch {number} {_ended(ending)}"


def _ended(ending: EndingView) -> str:
    told = [ending["state"]]
    if ending["reason"]:
        told.append(ending["reason"])
    if ending["exit_code"] is not None:
        told.append(f"exit code {ending['exit_code']}")
    if ending["signal"] is not None:
        told.append(f"signal {ending['signal']}")
    return f"ended: {', '.join(told)}" + "".join(f"; {fact}" for fact in ending["evidence"])


def _transition(transition: TransitionView) -> str:
    old, new = transition["from_state"], transition["to_state"]
    if old == new:
        moved = f"{new} ({transition['from_phase']} -> {transition['to_phase']})"
    else:
        moved = f"{old} -> {new}"
    return "  ".join(filter(None, (moved, transition["reason"], transition["detail"])))
