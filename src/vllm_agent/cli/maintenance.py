"""`vllm-agent maintenance`: says that an end of a server is planned, and pages nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, duration, state_dir
from vllm_agent.cli.outcome import ExitCode, UsageError
from vllm_agent.cli.text import local_time, plain
from vllm_agent.config.duration import format_duration
from vllm_agent.expose.json_view import MAX_MAINTENANCE_SECONDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.expose.json_view import ServerView


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, what to do, and for how long."""
    parser.add_argument("server", metavar="SERVER", help="Name of the server.")
    parser.add_argument("switch", choices=("on", "off"), help="Begin or end maintenance.")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=duration,
        metavar="DURATION",
        help="End it by itself after this long, such as 30m. Default: only by 'off'.",
    )
    add_client_flags(parser)
    parser.epilog = (
        "It works in every mode. Meanwhile nobody is paged, and the agent starts a managed server "
        "again only where somebody asks for it."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and tells what holds now."""
    is_on = arguments.switch == "on"
    if arguments.seconds is not None and not is_on:
        raise UsageError("--for goes with 'on' only: 'off' ends maintenance at once")
    if arguments.seconds is not None and arguments.seconds > MAX_MAINTENANCE_SECONDS:
        longest = format_duration(MAX_MAINTENANCE_SECONDS)
        raise UsageError(f"--for must be at most {longest}: leave it out for one without an end")
    name, seconds = arguments.server, arguments.seconds
    with AgentClient(state_dir(arguments, environ)) as client:
        answer = client.set_maintenance(name, is_on=is_on, for_seconds=seconds)
    server: ServerView = answer.json
    print(f"{plain(server['name'])} {_what_holds(server)}")
    return ExitCode.DONE


def _what_holds(server: ServerView) -> str:
    if not server["in_maintenance"]:
        return "is not in maintenance: an end counts as a crash"
    until = server["maintenance_until_timestamp_seconds"]
    end = "until it is switched off" if until is None else f"until {local_time(until)}"
    return f"is in maintenance {end}: an end counts as planned"
