"""`main`: finds the command, runs it, and turns whatever happens into an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

import vllm_agent
from vllm_agent.cli.outcome import CommandError, ExitCode, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from vllm_agent.cli.arguments import Parser

_PROGRAM: Final = "vllm-agent"
_INTERRUPTED: Final = 130
"""What shells give a command that SIGINT ended."""

_WRITE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a full or broken disk says to whoever writes; nothing that we could have done better."""


class CommandModule(Protocol):
    """What a module of this package has to be a command."""

    def configure(self, parser: Parser) -> None:
        """Adds the arguments of the command."""

    def execute(self, arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Runs the command; returns its exit code, or raises `CommandError`."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command by its name, module and purpose."""

    name: str
    module: str
    summary: str


COMMANDS: Final = (
    Command("run", "run", "watch servers and serve metrics; this is also what no command does"),
    Command("check-config", "check_config", "check flags, environment and configuration file"),
    Command("doctor", "doctor", "show what the agent may not see, why, and what would change that"),
    Command("status", "status", "show every server, or one in full"),
    Command("gpus", "gpus", "show every GPU, and who holds its memory"),
    Command("history", "history", "show what happened to the servers or to one, newest last"),
    Command("wait", "wait", "wait until a server is in a state"),
    Command("start", "start", "start a managed server"),
    Command("stop", "stop", "stop a managed server, and say how it ended"),
    Command("restart", "restart", "stop a managed server and start it again"),
    Command("set-model", "set_model", "have a managed server serve another model"),
    Command("ensure-healthy", "ensure_healthy", "have a server run: return once it does"),
    Command("maintenance", "maintenance", "say that an end of a server is planned"),
    Command("forget", "forget", "let a discovered server that ended leave, and its page with it"),
    Command("export-assets", "export_assets", "write the dashboards and alert rules to a folder"),
    Command("demo", "demo", "watch stand-in servers load, crash and come back"),
)
_COMMANDS: Final = {command.name: command for command in COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        # A name from outside must not end the command where the terminal cannot show it.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments, os.environ)
        if sys.stdout is not None:
            sys.stdout.flush()
    except CommandError as error:
        print(error.line, file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read has enough.
        _abandon_stdout()
        code = ExitCode.DONE
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user who did not ask for it
        _tell_fault(error, arguments)
        code = ExitCode.FAILED
    return code


def _dispatch(argv: list[str], environ: Mapping[str, str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"{_PROGRAM} {vllm_agent.__version__}")
        return ExitCode.DONE
    if argv[:1] in (["--help"], ["-h"]):
        print(_overview())
        return ExitCode.DONE
    position = _command_position(argv)
    if position is None:
        return _execute(_COMMANDS["run"], argv, environ)
    name = argv[position]
    if name not in _COMMANDS:
        from vllm_agent.cli.arguments import did_you_mean  # noqa: PLC0415 - only for this error

        raise UsageError(
            f"unknown command {name!r}{did_you_mean(name, _COMMANDS)}; see '{_PROGRAM} --help'"
        )
    return _execute(_COMMANDS[name], argv[:position] + argv[position + 1 :], environ)


def _command_position(argv: list[str]) -> int | None:
    """Where the command is: flags of the agent may come before it, with their values."""
    if argv and not argv[0].startswith("-"):
        return 0
    from vllm_agent.config.flags import FLAGS  # noqa: PLC0415 - not needed by most command lines

    with_value = {flag.name for flag in FLAGS if not flag.is_switch}
    is_value = False
    for position, word in enumerate(argv):
        if not is_value and not word.startswith("-"):
            return position
        is_value = not is_value and word in with_value
    return None


def _execute(command: Command, argv: list[str], environ: Mapping[str, str]) -> int:
    from vllm_agent.cli.arguments import Parser  # noqa: PLC0415 - --version does without

    module = cast("CommandModule", importlib.import_module(f"vllm_agent.cli.{command.module}"))
    summary = command.summary[0].upper() + command.summary[1:] + "."
    parser = Parser(prog=f"{_PROGRAM} {command.name}", description=summary)
    module.configure(parser)
    try:
        arguments = parser.parse_all(argv)
    except SystemExit:
        # argparse ends the program after --help, before its text is sure to be written.
        return ExitCode.DONE
    return module.execute(arguments, environ)


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS)
    listed = "\n".join(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS)
    codes = ", ".join(
        (
            f"{ExitCode.DONE:d} done",
            f"{ExitCode.FAILED:d} failed",
            f"{ExitCode.USAGE:d} usage or configuration",
            f"{ExitCode.NO_AGENT:d} no agent running",
            f"{ExitCode.TIMEOUT:d} timeout",
        )
    )
    return (
        f"usage: {_PROGRAM} [COMMAND] [FLAGS]\n\n"
        "Watches vLLM servers and tells Prometheus whether they are up, and if not, why not.\n\n"
        f"commands:\n{listed}\n\n"
        f"'{_PROGRAM} COMMAND --help' shows the flags of a command; those of the agent are with "
        f"'{_PROGRAM} run --help'.\n'{_PROGRAM} --version' shows the version.\n"
        f"exit codes: {codes}"
    )


def _tell_fault(error: Exception, argv: list[str]) -> None:
    if isinstance(error, OSError):
        _abandon_stdout()
        if error.errno in _WRITE_ERRORS and not _is_debugging(argv):
            print(f"{_PROGRAM}: cannot write: {error.strerror}", file=sys.stderr)
            return
    hint = "run with --log.level=debug"
    if _is_debugging(argv):
        traceback.print_exception(error)
        hint = "the lines above say where"
    text = f"{_PROGRAM}: internal error: {type(error).__name__}: {error}; {hint}"
    print(text, file=sys.stderr)


def _is_debugging(argv: list[str]) -> bool:
    words = " ".join(argv).replace("--log.level debug", "--log.level=debug").split()
    return "--log.level=debug" in words or os.environ.get("VLLM_AGENT_LOG_LEVEL") == "debug"


def _abandon_stdout() -> None:
    """Lets the interpreter's last flush succeed: nobody reads standard output any more."""
    if sys.stdout is not None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
