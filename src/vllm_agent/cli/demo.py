"""`vllm-agent demo`: stand-in servers under a real agent, shown live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.arguments import duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds how long it plays."""
    parser.add_argument(
        "--for",
        dest="seconds",
        type=duration,
        metavar="DURATION",
        help="End after this long, such as 40s. Default: until Ctrl-C.",
    )


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:  # noqa: ARG001 - the agent it starts reads the environment itself
    """Plays the demonstration."""
    from vllm_agent.demo.scenarios import run_demo  # noqa: PLC0415 - --help needs none of it

    return run_demo(arguments.seconds)
