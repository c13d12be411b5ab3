"""Reads flags as vLLM's own parser does: argparse, with the additions of FlexibleArgumentParser.

Those are: `_` in a name is `-`, and `--a.b v` sets one key of a JSON value. What vLLM would refuse
gives no value here; nothing is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.host.vllm_flags import NAMES, OPTIONALS, SHORT, SINGLES, SWITCH_FORMS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_SORTED_NAMES: Final = sorted(NAMES)
_NEGATIVE_NUMBER: Final = re.compile(r"-\d+|-\d*\.\d+")
_UNKNOWN: Final = ""


@dataclass(frozen=True, slots=True)
class Flags:
    """What a line says: its first positional, the last values of each flag, and the switches."""

    positional: str | None
    values: Mapping[str, tuple[str, ...]]
    switches: Mapping[str, bool]

    def value(self, name: str) -> str | None:
        """The value of a flag that takes one; None where it is not given, or given as none."""
        value = self.values.get(name, ("",))[0]
        return None if value in {"", "None"} else value

    def is_on(self, name: str) -> bool:
        """Whether a switch that is off by default is on."""
        return self.switches.get(name, False)


def read_flags(arguments: Iterable[str], wanted: Collection[str]) -> Flags:
    """The `wanted` flags of a line; the values of all others, secrets among them, are let go."""
    normal = [*_normalised(arguments)]
    end = normal.index("--") if "--" in normal else len(normal)
    positionals: list[str] = []
    values: dict[str, tuple[str, ...]] = {}
    switches: dict[str, bool] = {}
    position = 0
    while position < end:
        argument = normal[position]
        position += 1
        flag = _flag(argument)
        if flag is None:
            positionals.append(argument)
            continue
        name, value = flag
        given: tuple[str, ...] = () if value is None else (value,)
        if value is None:
            given = tuple(normal[position : _end_of_values(name, normal, position, end)])
            position += len(given)
            if name in SWITCH_FORMS:
                switch, is_on = SWITCH_FORMS[name]
                switches[switch] = is_on
        if given and name in wanted:
            values[name] = given
    positionals += normal[end + 1 : end + 2]
    return Flags(positionals[0] if positionals else None, values, switches)


def _normalised(arguments: Iterable[str]) -> Iterator[str]:
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and "." in name:
            # One key of a JSON value, which stands in the next argument if not here.
            if not equals:
                next(rest, None)
        elif argument.startswith("--"):
            yield name.replace("_", "-") + equals + value
        else:
            yield argument


def _flag(argument: str) -> tuple[str, str | None] | None:
    """The flag that an argument names and what stands behind its `=`; None for a value.

    The name is empty for a flag that is not known, or that could be several.
    """
    if not argument.startswith("-") or argument == "-":
        return None
    is_long = argument.startswith("--")
    key, equals, value = argument[2 if is_long else 1 :].partition("=")
    explicit = value if equals else None
    name = _full_name(key) if is_long else SHORT.get(key)
    if name is None and not is_long:
        name, explicit = _short(argument[1:])
    if name is None and (_NEGATIVE_NUMBER.fullmatch(argument) or " " in argument):
        return None
    return name or _UNKNOWN, explicit


def _full_name(key: str) -> str | None:
    if key in NAMES or key in SWITCH_FORMS:
        return key
    start = bisect_left(_SORTED_NAMES, key)
    matches = [name for name in _SORTED_NAMES[start : start + 2] if name.startswith(key)]
    if len(matches) == 1:
        return matches[0]
    return _UNKNOWN if matches else None


def _short(text: str) -> tuple[str | None, str | None]:
    """One dash: an abbreviation, or one letter with its value behind it (`-n2`)."""
    matches = [key for key in SHORT if key == text[0] or key.startswith(text)]
    if len(matches) != 1:
        return (_UNKNOWN if matches else None), None
    return SHORT[matches[0]], (text[1:] if matches[0] == text[0] else None)


def _end_of_values(name: str, arguments: Sequence[str], start: int, end: int) -> int:
    if name in SWITCH_FORMS:
        return start
    if name in SINGLES or name in OPTIONALS:
        end = min(end, start + 1)
    # A flag that is not known takes all there is: a secret must not pass for a model.
    while start < end and _flag(arguments[start]) is None:
        start += 1
    return start
