"""The values under `match`: units, containers, and patterns for command lines."""

from __future__ import annotations

import re
import warnings

from vllm_agent.config.problem import quoted

# Names of units have at most 255 characters (systemd.unit(5)), the suffix included.
MAX_UNIT_LENGTH = 255
# What `docker ps` shows of an id; fewer digits could be those of several containers.
MIN_CONTAINER_DIGITS = 12
CONTAINER_DIGITS = 64
# A pattern that has to name every flag of a server is not one that people can check.
MAX_PATTERN_LENGTH = 256
# What a search looks at. Lines of a thousand characters are usual; who needs more of a line than
# this can match by something else.
MAX_COMMAND_CHARACTERS = 2_048
# Each `*` or `+` of a pattern multiplies the time of a search by the length of the text. With two
# of them, and MAX_COMMAND_CHARACTERS of text, the worst command line that somebody made for a
# pattern such as `vllm serve .*llama.*--port 80` costs it some 10 ms.
MAX_REPEATS = 2

_SERVICE = ".service"
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+")
# systemd.unit(5); a process runs in a service or in a scope, and a scope has no name of its own.
_OTHER_UNITS = (
    *(".socket", ".device", ".mount", ".automount", ".swap"),
    *(".target", ".path", ".timer", ".slice", ".scope"),
)
_CONTAINER = re.compile(rf"[0-9a-f]{{{MIN_CONTAINER_DIGITS},{CONTAINER_DIGITS}}}")
_TOKEN = re.compile(
    r"""
      (?P<literal>\\. | \[\^?\]?(?:\\.|[^\]\\])*\])
    | (?P<group>\))? (?P<repeat>[*+]|\{\d*,\d*\}) [?+]?
    | (?P<exact_group>\)\{\d+\})
    """,
    re.VERBOSE | re.DOTALL,
)


def parse_unit(text: str) -> str:
    """Give the full name of a systemd service, which may be written without its suffix.

    Raises:
        ValueError: it is no name of a service that can run.
    """
    unit = text if text.endswith(_SERVICE) else text + _SERVICE
    if not _UNIT.fullmatch(text) or unit == _SERVICE or len(unit) > MAX_UNIT_LENGTH:
        raise ValueError(f"must be the name of a systemd service such as vllm, got {quoted(text)}")
    if text.endswith(_OTHER_UNITS):
        raise ValueError(
            f"must be a service, got {quoted(text)}: systemctl status PID tells what a vLLM runs in"
        )
    if unit.endswith("@" + _SERVICE):
        raise ValueError(f"must be one instance of this template, such as {unit[:-8]}llama")
    return unit


def parse_container(text: str) -> str:
    """Give the id of a container, or its beginning, in lower case.

    Raises:
        ValueError: it is something else; names are known to the container runtime only.
    """
    container = text.lower()
    if not _CONTAINER.fullmatch(container):
        raise ValueError(
            f"must be the id of a container, {MIN_CONTAINER_DIGITS} to {CONTAINER_DIGITS} hex "
            f"digits, got {quoted(text)}: its name is known to its runtime only, so write the id "
            "that docker ps shows, or match by port"
        )
    return container


def parse_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern for command lines.

    The search must stay short on command lines that another user made up for it, so what makes it
    exponential (a repeated group), and more than `MAX_REPEATS`, is refused. An operator can still
    write a slow pattern, but not by accident.

    Raises:
        ValueError: it is no regular expression, or a search for it may take long.
    """
    if not 0 < len(text) <= MAX_PATTERN_LENGTH or not text.isprintable():
        raise ValueError(f"must be 1 to {MAX_PATTERN_LENGTH} printable characters")
    pattern = _compiled(text)
    repeats = 0
    for token in _TOKEN.finditer(text):
        if token["group"] or token["exact_group"]:
            raise ValueError(
                f"must not repeat a group, as it does at character {token.start() + 1}: "
                "a search for it may take for ever"
            )
        repeats += token["repeat"] is not None
    if repeats > MAX_REPEATS:
        raise ValueError(
            f"must have at most {MAX_REPEATS} of * and + and {{m,n}}, got {repeats}: "
            "a search for it may take long; the other keys of match narrow it down too"
        )
    return pattern


def _compiled(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            # What a coming Python may read in another way is better escaped now.
            warnings.simplefilter("error", FutureWarning)
            return re.compile(text)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(f"is not a regular expression: {error.msg}{place}") from None
    except (FutureWarning, OverflowError) as error:
        raise ValueError(f"is not a regular expression that can be used: {error}") from None
