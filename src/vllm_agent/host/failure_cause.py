"""What one line of a log can say about a failure, and how such a line is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason


class Rank(IntEnum):
    """How much a line says; of the lines of a failure the first of the best rank is its cause.

    SPECIFIC names the cause. GENERAL may be how another one shows: Python prints the error of a
    connection before that of the Hub. WRAPPER holds only where no line says more.
    """

    SPECIFIC = 0
    GENERAL = 1
    WRAPPER = 2


@dataclass(frozen=True, slots=True)
class Cause:
    """What one line says about a failure; `name` is that of its pattern, fit for people to read."""

    reason: Reason
    name: str
    rank: Rank


@dataclass(frozen=True, slots=True)
class Pattern:
    """An error whose text begins with one of `begins` and has `holds` further on.

    `oldest` is the first of the versions that were read (0.11.0, 0.13.0, 0.15.1, 0.18.1, 0.20.2,
    0.22.1, 0.25.1, 0.28.0 and 0.32.0) that has it, and 0.32.0 the last of all; empty for the text
    of a library. `errors` are the classes that the error may have, with or without their module;
    any where there are none. `is_logged`: the text is also a message by itself. `is_bare`: it is
    also a line by itself, without a level.
    """

    cause: Cause
    begins: tuple[str, ...]
    holds: str = ""
    oldest: str = ""
    errors: tuple[str, ...] = ()
    is_logged: bool = False
    is_bare: bool = False

    def matches(self, error: str, text: str) -> bool:
        """Whether it is an error with this class, empty where that is not told, and text."""
        if self.errors and error not in self.errors and error.rpartition(".")[2] not in self.errors:
            return False
        return text.startswith(self.begins) and self.holds in text
