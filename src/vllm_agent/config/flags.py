"""The command-line flags, each declared once with its environment twin, default and help.

A flag wins over its variable, a variable over the default. An empty variable counts as unset.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_agent.config.listen_address import ListenAddress, parse_listen_address
from vllm_agent.config.problem import ConfigError, Problem, quoted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

ENVIRONMENT_PREFIX = "VLLM_AGENT_"
# Near the end of the exporters' port list of the Prometheus wiki, where nothing else is listed.
DEFAULT_PORT = 10_060

_SEGMENT = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
_RESERVED_SEGMENTS = frozenset({"-", "api"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Word = TypeVar("Word", bound=StrEnum)


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line is written."""

    LOGFMT = "logfmt"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The value of every flag."""

    config_file: Path | None
    config_check: bool
    listen_addresses: tuple[ListenAddress, ...]
    telemetry_path: str
    enable_lifecycle: bool
    state_dir: Path
    log_level: LogLevel
    log_format: LogFormat


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `parse` raises ValueError with what to write; `setting` is its Settings field."""

    name: str
    setting: str
    parse: Callable[[str], Any]
    default: Callable[[Mapping[str, str]], Any]
    default_text: str
    help: str
    metavar: str | None = None
    repeatable: bool = False

    @property
    def variable(self) -> str:
        """The environment twin: `--web.listen-address` is `VLLM_AGENT_WEB_LISTEN_ADDRESS`."""
        return ENVIRONMENT_PREFIX + re.sub(r"[.-]", "_", self.name.removeprefix("--")).upper()

    @property
    def is_switch(self) -> bool:
        """A flag without a value."""
        return self.metavar is None


def _path(text: str) -> Path:
    if not text.isprintable():
        raise ValueError("must be a path of printable characters")
    return Path(text)


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError("must be true or false")
    return _BOOLEANS[text]


def _one_of(words: type[Word]) -> Callable[[str], Word]:
    def parse(text: str) -> Word:
        try:
            return words(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(words)}") from None

    return parse


def _telemetry_path(text: str) -> str:
    segments = text.split("/")[1:]
    if not text.startswith("/") or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ValueError("must be a path such as /metrics")
    if segments[0] in _RESERVED_SEGMENTS:
        raise ValueError(f"must not be below /{segments[0]}, which the agent uses itself")
    return text


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    # systemd.exec(5): with several state directories the variable lists them with colons.
    if directory := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(directory)
    if os.geteuid() == 0:
        return Path("/var/lib/vllm-agent")
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG Base Directory Specification says to ignore relative paths.
    if not state_home.is_absolute():
        state_home = _home(environ) / ".local" / "state"
    return state_home / "vllm-agent"


def _home(environ: Mapping[str, str]) -> Path:
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise ValueError("has no default for a user without a home: name a folder") from None


FLAGS: tuple[Flag, ...] = (
    Flag(
        name="--config.file",
        setting="config_file",
        parse=_path,
        default=lambda _: None,
        default_text="",
        help="Configuration file (YAML).",
        metavar="FILE",
    ),
    Flag(
        name="--config.check",
        setting="config_check",
        parse=_boolean,
        default=lambda _: False,
        default_text="false",
        help="Check flags, environment and configuration file, then exit.",
    ),
    Flag(
        name="--web.listen-address",
        setting="listen_addresses",
        parse=parse_listen_address,
        default=lambda _: (ListenAddress(None, DEFAULT_PORT),),
        default_text=f":{DEFAULT_PORT}",
        help="Address to listen on, as :PORT, HOST:PORT or [IPV6]:PORT.",
        metavar="ADDRESS",
        repeatable=True,
    ),
    Flag(
        name="--web.telemetry-path",
        setting="telemetry_path",
        parse=_telemetry_path,
        default=lambda _: "/metrics",
        default_text="/metrics",
        help="Path of the metrics.",
        metavar="PATH",
    ),
    Flag(
        name="--web.enable-lifecycle",
        setting="enable_lifecycle",
        parse=_boolean,
        default=lambda _: False,
        default_text="false",
        help="Let everybody who reaches the agent reload its configuration: POST /-/reload.",
    ),
    Flag(
        name="--state.dir",
        setting="state_dir",
        parse=_path,
        default=_default_state_dir,
        default_text=(
            "$STATE_DIRECTORY of systemd, else /var/lib/vllm-agent for root, "
            "else ${XDG_STATE_HOME:-~/.local/state}/vllm-agent"
        ),
        help="Folder for the agent's own state.",
        metavar="DIR",
    ),
    Flag(
        name="--log.level",
        setting="log_level",
        parse=_one_of(LogLevel),
        default=lambda _: LogLevel.INFO,
        default_text=LogLevel.INFO,
        help="Least severe level to log.",
        metavar="|".join(LogLevel),
    ),
    Flag(
        name="--log.format",
        setting="log_format",
        parse=_one_of(LogFormat),
        default=lambda _: LogFormat.LOGFMT,
        default_text=LogFormat.LOGFMT,
        help="Format of log lines.",
        metavar="|".join(LogFormat),
    ),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add every flag to a parser. Values stay text, so that `resolve` reports all bad ones."""
    for flag in FLAGS:
        options: dict[str, Any] = {"dest": flag.setting, "default": None, "help": _help(flag)}
        if flag.is_switch:
            parser.add_argument(flag.name, action="store_const", const="true", **options)
        elif flag.repeatable:
            parser.add_argument(flag.name, action="append", metavar=flag.metavar, **options)
        else:
            parser.add_argument(flag.name, metavar=flag.metavar, **options)


def _help(flag: Flag) -> str:
    default = f" Default: {flag.default_text}." if flag.default_text else ""
    repeatable = " Repeatable; the variable separates with commas." if flag.repeatable else ""
    return f"{flag.help}{repeatable}{default} [${flag.variable}]"


def resolve(namespace: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Give every flag its value: from the command line, else the environment, else the default.

    Raises:
        ConfigError: with every value that is wrong.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for flag in FLAGS:
        source, texts = _given(flag, namespace, environ)
        try:
            values[flag.setting] = _value(flag, texts, environ)
        except ValueError as error:
            problems.append(Problem(None, None, source, str(error)))
    if problems:
        raise ConfigError(tuple(problems))
    return Settings(**values)


def _given(
    flag: Flag, namespace: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Give the name of the source that counts and the texts it holds; none means the default."""
    written: str | list[str] | None = getattr(namespace, flag.setting, None)
    if written is not None:
        return flag.name, [written] if isinstance(written, str) else written
    text = environ.get(flag.variable, "")
    if not text:
        return flag.name, []
    return flag.variable, text.split(",") if flag.repeatable else [text]


def _value(flag: Flag, texts: list[str], environ: Mapping[str, str]) -> Any:
    if not texts:
        return flag.default(environ)
    values = [_parsed(flag, text.strip()) for text in texts]
    if not flag.repeatable:
        return values[-1]
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"must not name {value} twice")
    return tuple(values)


def _parsed(flag: Flag, text: str) -> Any:
    if not text:
        raise ValueError("must not be empty")
    try:
        return flag.parse(text)
    except ValueError as error:
        raise ValueError(f"{error}, got {quoted(text)}") from None
