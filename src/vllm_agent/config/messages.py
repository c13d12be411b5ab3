"""Says in the agent's own words what pydantic found. None of pydantic's wording gets out."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, get_args

from vllm_agent.config.model import ConfigFile
from vllm_agent.config.problem import quoted, shown
from vllm_agent.config.values import OWN_ERROR, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

# Follows from another error of the same section, which is reported.
FOLLOWING_ERROR = "default_factory_not_called"


def message(error: ErrorDetails) -> str:
    """Give the message for one error that validation of a `ConfigFile` reports."""
    write = _MESSAGES.get(error["type"])
    return f"is not valid, got {shown(error['input'])}" if write is None else write(error)


def keys_of(section: type[Section]) -> Mapping[str, FieldInfo]:
    """Give the keys of a section as the file spells them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """Give the section that a key holds, directly, in a list or optionally; None for a value."""
    candidates: list[Any] = [field.annotation]
    while candidates:
        candidate = candidates.pop()
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
        candidates += get_args(candidate)
    return None


def _section_at(path: tuple[int | str, ...]) -> type[Section]:
    section: type[Section] = ConfigFile
    for part in path:
        if isinstance(part, str):
            section = section_of(keys_of(section)[part]) or section
    return section


def _missing(error: ErrorDetails) -> str:
    *parents, key = error["loc"]
    example = (keys_of(_section_at(tuple(parents)))[str(key)].examples or ["..."])[0]
    return f"is missing: write {key}: {example}"


def _unknown(error: ErrorDetails) -> str:
    *parents, key = error["loc"]
    known = sorted(keys_of(_section_at(tuple(parents))))
    nearest = difflib.get_close_matches(str(key), known, n=1)
    question = f", did you mean {nearest[0]}?" if nearest else ""
    return f"is not a known key{question} (known: {', '.join(known)})"


def _text(error: ErrorDetails) -> str:
    value = error["input"]
    if isinstance(value, bool | int | float):
        return f"must be text, got {shown(value)}: put it in quotes"
    return f"must be text, got {shown(value)}"


def _whole_number(error: ErrorDetails) -> str:
    value = error["input"]
    if isinstance(value, str) and value.isdecimal():
        return f"must be a whole number, got the text {quoted(value)}: remove the quotes"
    return f"must be a whole number, got {shown(value)}"


_MESSAGES: dict[str, Callable[[ErrorDetails], str]] = {
    OWN_ERROR: lambda error: str(error["ctx"]["message"]),
    "missing": _missing,
    "extra_forbidden": _unknown,
    "string_type": _text,
    "string_unicode": lambda _: "must be text that is valid Unicode",
    "int_type": _whole_number,
    "int_from_float": _whole_number,
    "bool_type": lambda error: f"must be true or false, got {shown(error['input'])}",
    "tuple_type": lambda error: (
        f"must be a list, each entry behind '- ', got {shown(error['input'])}"
    ),
    "model_type": lambda error: (
        f"must be a mapping of keys, each as key: value, got {shown(error['input'])}"
    ),
    "greater_than_equal": lambda error: (
        f"must be at least {error['ctx']['ge']}, got {shown(error['input'])}"
    ),
    "less_than_equal": lambda error: (
        f"must be at most {error['ctx']['le']}, got {shown(error['input'])}"
    ),
    "too_long": lambda error: (
        f"must have at most {error['ctx']['max_length']:,} entries, got {len(error['input']):,}"
    ),
}
