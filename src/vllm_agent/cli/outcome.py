"""How a command ends: its exit code, and what it tells when it fails."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_AGENT = 3
    TIMEOUT = 4


class CommandError(Exception):
    """A command cannot do what it was asked; the message says what to do next.

    `more` are sentences that stand on lines of their own.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message)
        self.more = more

    @property
    def line(self) -> str:
        """What goes to standard error."""
        return "\n".join(f"vllm-agent: {told}" for told in (str(self), *self.more))


class RefusedError(CommandError):
    """The agent did not do what it was asked; `code` is its word for why, empty for none."""

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(f"{message}: {hint}" if hint else message)
        self.message, self.hint, self.code = message, hint, code


class UnknownServerError(RefusedError):
    """The agent watches no server of this name."""


class UnknownPathError(RefusedError):
    """The agent has no such answer: it is of an older version."""


class UsageError(CommandError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class ConfigurationError(CommandError):
    """The configuration cannot be used; the message is complete, one problem per line."""

    exit_code = ExitCode.USAGE

    @property
    def line(self) -> str:
        """The problems and nothing else, so that editors can jump to their files and lines."""
        return str(self)


class NoAgentError(CommandError):
    """No agent runs where the command looked for one."""

    exit_code = ExitCode.NO_AGENT


class TimedOutError(CommandError):
    """What was waited for did not happen in time."""

    exit_code = ExitCode.TIMEOUT
