"""`vllm-agent ensure-healthy`: returns once a server runs, and has it started if it does not.

For a server that runs this is one question to the agent: what more it may need is imported late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.cli.arguments import add_client_flags, duration, state_dir
from vllm_agent.cli.outcome import ExitCode, RefusedError
from vllm_agent.cli.text import plain, shell_word
from vllm_agent.config.duration import format_duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

DEFAULT_SECONDS: Final = 600.0
"""Most models are loaded by then; a first download may need more."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the server, and how long to wait."""
    parser.add_argument("server", metavar="SERVER", help="Name of the server.")
    parser.add_argument(
        "--timeout",
        type=duration,
        default=DEFAULT_SECONDS,
        metavar="DURATION",
        help="Give up after this long; the agent goes on. "
        f"Default: {format_duration(DEFAULT_SECONDS)}.",
    )
    add_client_flags(parser)
    parser.epilog = (
        "The exit code is 0 once it runs, 1 if it cannot come up by itself and 4 if it takes too "
        "long. A server that is only watched is started by somebody else: if it does not run, this "
        "says why and ends with 1 at once."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the agent, and follows the server if it does not run yet."""
    name = arguments.server
    with AgentClient(state_dir(arguments, environ)) as client:
        try:
            answer = client.ensure_healthy(name)
        except RefusedError as error:
            from vllm_agent.cli.operation import explained  # noqa: PLC0415 - see above

            start = f"vllm-agent start {shell_word(name)}"
            raise explained(error, name, start) from None
        if answer.is_under_way:
            from vllm_agent.cli.operation import follow_until_running  # noqa: PLC0415 - see above

            follow_until_running(client, name, arguments.timeout, answer.json)
    print(f"{plain(name)} is running")
    return ExitCode.DONE
