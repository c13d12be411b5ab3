"""Answers that a probe must survive: `--hostile MODE[:ARG][:/PATH]`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final, Self

FAULTS: Final = (
    "garbage",
    "bad-json",
    "endless",
    "huge",
    "drip",
    "redirect",
    "silent",
    "reset",
    "status",
    "headers-huge",
    "truncated",
)
_WITH_ARGUMENT: Final = frozenset({"redirect", "status"})


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour, for one path or (`path` is None) for all."""

    mode: str
    argument: str = ""
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `MODE[:ARG][:/PATH]`.

        Raises:
            argparse.ArgumentTypeError: unknown mode, or its argument is missing.
        """
        mode, _, rest = text.partition(":")
        if mode not in FAULTS:
            raise argparse.ArgumentTypeError(f"unknown mode {mode!r}")
        head, separator, tail = rest.rpartition(":/")
        path: str | None = None
        if rest.startswith("/"):
            rest, path = "", rest
        elif separator and not tail.startswith("/"):
            rest, path = head, f"/{tail}"
        if mode in _WITH_ARGUMENT and not rest:
            raise argparse.ArgumentTypeError(f"{mode} needs an argument")
        if mode == "status" and not rest.isdigit():
            raise argparse.ArgumentTypeError(f"status needs a number, got {rest!r}")
        return cls(mode, rest, path)

    def applies_to(self, path: str) -> bool:
        """Whether a request for this path is answered by the fault."""
        return self.path is None or self.path == path
