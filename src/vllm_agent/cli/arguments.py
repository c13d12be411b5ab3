"""What the parsers of all commands share: flags, types of arguments, and helpful errors."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vllm_agent.cli.outcome import ConfigurationError, UsageError
from vllm_agent.config.duration import parse_duration
from vllm_agent.config.flags import FLAGS, resolve
from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_CLIENT_SETTINGS: Final = frozenset({"state_dir", "log_level"})
CLIENT_FLAGS: Final = tuple(flag for flag in FLAGS if flag.setting in _CLIENT_SETTINGS)
"""What a command needs that talks to a running agent."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors say what was probably meant."""

    def __init__(self, **options: Any) -> None:
        self._flag_names: list[str] = []
        self._argv: Sequence[str] = ()
        self._no_flags: dict[str, str] = {}
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse has it; remembers the flags for suggestions."""
        self._flag_names += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def refuse_flag_as(self, argument: str, text: str) -> None:
        """Has `text` said to a word that begins with '-' where a value of `argument` belongs."""
        self._no_flags[argument] = text

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Reads all of `argv`; raises `UsageError` for what is not known."""
        self._argv = argv
        arguments, unknown = self.parse_known_args(argv)
        self._argv = ()
        if unknown:
            flag = unknown[0].partition("=")[0]
            kind = "flag" if flag.startswith("-") else "argument"
            self.error(f"unknown {kind} {flag!r}{did_you_mean(flag, self._flag_names)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Says what is wrong, and where to read what is right."""
        known = {*self._flag_names, "--"}
        no_flags = (
            word
            for word in self._argv
            if word.startswith("-") and word.partition("=")[0] not in known
        )
        odd = next(no_flags, None)
        for argument, text in self._no_flags.items():
            if odd is not None and argument in message:
                message = f"{text}, got {odd!r}"
        raise UsageError(f"{message}; see '{self.prog} --help'")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""


def is_terminal() -> bool:
    """Whether a person reads standard output. It is None where the caller closed it."""
    return sys.stdout is not None and sys.stdout.isatty()


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what is shown once or live, drawn or as JSON."""
    parser.add_argument("--watch", action="store_true", help="Keep showing it until Ctrl-C.")
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print the answer of the API, with --watch a line per change.",
    )


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """Adds where to find the agent, and how much to tell of a fault."""
    for flag in CLIENT_FLAGS:
        text = f"{flag.help} [${flag.variable}]"
        parser.add_argument(flag.name, dest=flag.setting, metavar=flag.metavar, help=text)


def state_dir(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The folder in which a client looks for the agent.

    Raises:
        ConfigurationError: the flag or its variable cannot be used.
    """
    # A client ignores what is only for the agent, and so does not fail on it either.
    others = {flag.variable for flag in FLAGS if flag not in CLIENT_FLAGS}
    relevant = {name: value for name, value in environ.items() if name not in others}
    try:
        return resolve(arguments, relevant).state_dir
    except ConfigError as error:
        raise ConfigurationError(str(error)) from None


def duration(text: str) -> float:
    """A duration of the command line, in seconds."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be longer than 0")
    return seconds


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """The type of a number between two bounds, both allowed."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(maximum))
        if not is_number or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {minimum} to {maximum}, got {text!r}"
            )
        return int(text)

    return parse
