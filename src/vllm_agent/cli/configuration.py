"""Loads what `run` and `check-config` need: every flag and the whole configuration file."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.outcome import ConfigurationError
from vllm_agent.config.flags import FLAGS, resolve
from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_agent.config.flags import Settings
    from vllm_agent.config.model import Config
    from vllm_agent.config.problem import Problem

_FILE_FLAG: Final = next(flag for flag in FLAGS if flag.setting == "config_file")


def load_all(arguments: Namespace, environ: Mapping[str, str]) -> tuple[Settings, Config]:
    """The value of every flag, and the configuration.

    Raises:
        ConfigurationError: with every problem of flags, environment and file.
    """
    settings = resolve_all(arguments, environ)
    try:
        return settings, _load(settings.config_file, environ)
    except ConfigError as error:
        raise ConfigurationError(str(error)) from None


def resolve_all(arguments: Namespace, environ: Mapping[str, str]) -> Settings:
    """The value of every flag.

    Raises:
        ConfigurationError: with every problem of flags and environment, and then of the file too.
    """
    try:
        return resolve(arguments, environ)
    except ConfigError as error:
        problems = error.problems + _file_problems(arguments, environ)
        raise ConfigurationError(str(ConfigError(problems))) from None


def _load(path: Path | None, environ: Mapping[str, str]) -> Config:
    from vllm_agent.config.load import load  # noqa: PLC0415 - not for the agent: config.apart

    return load(path, environ)


def _file_problems(arguments: Namespace, environ: Mapping[str, str]) -> tuple[Problem, ...]:
    """What is wrong with the file, where a flag is wrong too but the file can be found."""
    only_file = Namespace(config_file=arguments.config_file)
    variable = {_FILE_FLAG.variable: environ.get(_FILE_FLAG.variable, "")}
    # State files lie nowhere here; the default would ask for a home that there may not be.
    try:
        settings = resolve(only_file, {**variable, "STATE_DIRECTORY": "unused"})
        _load(settings.config_file, environ)
    except ConfigError as error:
        is_told = any(problem.key_path == _FILE_FLAG.name for problem in error.problems)
        return () if is_told else error.problems
    return ()


def describe(config: Config) -> str:
    """The configuration that was found to be valid, in one line."""
    count = len(config.servers)
    servers = f"{count or 'no'} server{'' if count == 1 else 's'}"
    return f"configuration is valid: {config.source or 'no --config.file'}, {servers}"
