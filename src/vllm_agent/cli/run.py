"""`vllm-agent run`: the agent itself."""

from __future__ import annotations

import mimetypes
import os
from typing import TYPE_CHECKING

from vllm_agent.cli.configuration import describe, load_all, resolve_all
from vllm_agent.cli.outcome import CommandError, ConfigurationError, ExitCode
from vllm_agent.config.apart import NoConfigError, load_apart
from vllm_agent.config.flags import add_to
from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of the agent."""
    add_to(parser)


def execute(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the agent until it is told to end, or only checks with --config.check."""
    settings = resolve_all(arguments, environ)
    if settings.config_check:
        _, config = load_all(arguments, environ)
        print(describe(config))
        return ExitCode.DONE
    _spare_memory()
    try:
        config = load_apart(settings.config_file, environ, _import_agent)
    except ConfigError as error:
        raise ConfigurationError(str(error)) from None
    except NoConfigError as error:
        raise CommandError(str(error)) from None
    from vllm_agent.agent import run  # noqa: PLC0415 - checking needs nothing of the agent

    return run(settings, config)


def _import_agent() -> None:
    import vllm_agent.agent  # noqa: F401, PLC0415 - no sooner than it is needed


def _spare_memory() -> None:
    """Keeps aiohttp, which is not imported yet, from loading what the agent has no use for."""
    # Its lists of callbacks bring the C++ runtime, 1 MiB. Those in Python cost the same time.
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")
    # What the endings of file names mean, 0.3 MiB, is for who serves files.
    mimetypes.knownfiles.clear()
