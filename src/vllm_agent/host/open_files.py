"""How many files the agent may have open, and what it was given at its start."""

from __future__ import annotations

import logging
import resource
from typing import Final

OPEN_FILES: Final = 1024
"""Enough for 32 servers with 20 processes each: a file for each process, some for each probe."""

OPEN_FILES_AT_START: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The limit that the agent was given, read before it raises its own: a server that inherits a very
high one is slow to start programs, and vLLM raises what it needs itself."""

_LOGGER: Final = logging.getLogger(__name__)


def raise_open_files() -> None:
    """Each process of a launch, each probe and each reader of the page has a file open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        _LOGGER.debug("the limit of open files cannot be raised")
    if hard < OPEN_FILES:
        _LOGGER.warning(
            "the limit of open files is low: with none left the agent answers nobody",
            extra={"limit": hard, "advice": f"raise it to {OPEN_FILES} (LimitNOFILE=, ulimit -n)"},
        )
