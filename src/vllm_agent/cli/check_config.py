"""`vllm-agent check-config`: everything that `run` would say about its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_agent.cli.configuration import describe, load_all
from vllm_agent.cli.outcome import ExitCode
from vllm_agent.config.flags import add_to

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of the agent, since a wrong one is a problem too."""
    add_to(parser)


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Checks; what is wrong goes to standard error by way of the exception."""
    _, config = load_all(arguments, environ)
    print(describe(config))
    return ExitCode.DONE
