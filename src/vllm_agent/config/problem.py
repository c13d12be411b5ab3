"""What is wrong with a configuration, one line each. No secret ever enters a problem."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# A value longer than this adds nothing to a message that already names its line and key.
QUOTE_LIMIT = 60

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.<-]{1,64}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct; `str()` is the line an operator reads.

    `file` and `line` are None where the value did not come from a file; `line` counts from 1.
    """

    file: str | None
    line: int | None
    key_path: str
    message: str

    def __str__(self) -> str:
        place = self.file
        if place is not None and self.line is not None:
            place = f"{place}:{self.line}"
        return ": ".join(part for part in (place, self.key_path, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def key_path(parts: tuple[str | int, ...]) -> str:
    """Render a path of keys and list positions: `servers[0].probe.interval`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_KEY.fullmatch(part) else quoted(part))
    return text


def quoted(text: str) -> str:
    """Quote a value for a message: one line, no control characters, at most `QUOTE_LIMIT`."""
    return repr(text if len(text) <= QUOTE_LIMIT else text[:QUOTE_LIMIT] + "...")


def shown(value: Any) -> str:
    """Show a value of a file for a message; what is inside a list or mapping stays out of it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value}"
        case str():
            return quoted(value)
        case None:
            return "nothing"
        case list():
            return "a list"
        case _:
            return "a mapping of keys"
