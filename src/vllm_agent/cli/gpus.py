"""`vllm-agent gpus`: every GPU, and who holds its memory; once or live.

The exit code is 0 when the answer was shown, whatever it says.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import GPUS_PATH, AgentClient
from vllm_agent.cli.arguments import add_client_flags, add_watch_flags, is_terminal, state_dir
from vllm_agent.cli.gpu_rows import advice, gpu_notices, plain_lines
from vllm_agent.cli.outcome import CommandError, ExitCode

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from vllm_agent.expose.gpu_view import GpusView

_OLDER_AGENT: Final = "the agent is of an older version, without GPUs: restart it to use this"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds how to show it."""
    add_watch_flags(parser)
    add_client_flags(parser)
    parser.epilog = (
        "An orphan is a part of a vLLM that outlived its main process; the command that frees what "
        "it holds is shown below the table."
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Shows what the agent says of GPUs."""
    with AgentClient(state_dir(arguments, environ)) as client:
        answer = client.gpus()
        if answer is None:
            raise CommandError(_OLDER_AGENT)
        if arguments.watch:
            from vllm_agent.cli.watch import watch  # noqa: PLC0415 - one look does without

            return watch(client, GPUS_PATH, answer, as_json=arguments.json)
    if arguments.json:
        print(answer.body.decode(), end="")
        return ExitCode.DONE
    view: GpusView = answer.json
    for notice in gpu_notices(view):
        print(notice, file=sys.stderr)
    if view["gpus"]:
        _show(view)
    return ExitCode.DONE


def _show(view: GpusView) -> None:
    now = time.time()
    if is_terminal():
        from vllm_agent.cli import gpu_terminal, terminal  # noqa: PLC0415 - see terminal

        terminal.print_once(gpu_terminal.devices(view, now))
        # Not drawn: a command that is to be copied must not be broken into lines.
        print("".join(f"\n{line}" for line in advice(view)))
        return
    print("\n".join(plain_lines(view, now)), flush=True)
    for line in advice(view):
        print(line, file=sys.stderr)
