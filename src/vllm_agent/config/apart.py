"""Loads the configuration in a process of its own, which ends with it.

pydantic and YAML take 10 MiB that an agent would hold for ever and use for a tenth of a second.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from typing import TYPE_CHECKING, Final, NoReturn, cast

from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vllm_agent.config.model import Config

MAX_ANSWER_BYTES: Final = 64 * 2**20
"""Of what the other process answers. 2,000 servers with every key written come to half a MiB, and
100,000 unknown keys, each told with all that are known, to 18."""

_CHUNK_BYTES: Final = 64 * 1024
CHECK: Final = "vllm-agent check-config reads it without another process"


class NoConfigError(Exception):
    """The other process did not answer; the message says what to do."""


def load_apart(
    path: Path | None, environ: Mapping[str, str], meanwhile: Callable[[], object] = lambda: None
) -> Config:
    """Load as `load` does, in a fork, and call `meanwhile` here until it has.

    To be called while this process has one thread: another one could hold a lock for ever in the
    fork. So a reload, once the agent runs, needs a process that is started afresh.

    Raises:
        ConfigError: as `load` raises it.
        NoConfigError: the other process could not be started, or did not answer.
    """
    # Whoever started the agent may have it ignore this: then the kernel keeps no exit status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise cannot_start(error) from None
    if child == 0:
        # Or it would wait for itself to read, should the agent end.
        os.close(reading)
        _answer(writing, path, environ)
    os.close(writing)
    try:
        meanwhile()
        content = _read(reading)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    return configuration(content, os.waitstatus_to_exitcode(status))


def _answer(writing: int, path: Path | None, environ: Mapping[str, str]) -> NoReturn:
    """What the fork does. It leaves by `_exit`: what is buffered or registered is the parent's."""
    status = 1
    try:
        content = outcome(path, environ)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(content)
        status = 0
    finally:
        os._exit(status)


def outcome(path: Path | None, environ: Mapping[str, str]) -> bytes:
    """The configuration, or the error that `configuration` raises, pickled."""
    from vllm_agent.config.load import load  # noqa: PLC0415 - this import is what the fork is for

    try:
        return pickle.dumps(load(path, environ).plain())
    except ConfigError as error:
        return pickle.dumps(error)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        # Not the error itself: not each can be pickled, and none with its traceback.
        fault = RuntimeError(f"{type(error).__name__}: {error}")
        fault.add_note(traceback.format_exc())
        return pickle.dumps(fault)


def _read(reading: int) -> bytes:
    content = bytearray()
    while chunk := os.read(reading, _CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise too_long()
    return bytes(content)


def cannot_start(error: OSError) -> NoConfigError:
    """Why there is no other process."""
    return NoConfigError(
        f"cannot start the process that reads the configuration: {error.strerror}: "
        "let the agent have one process more (TasksMax=, pids.max, ulimit -u)"
    )


def too_long() -> NoConfigError:
    """What is the matter with an answer beyond the bound."""
    return NoConfigError(
        "the configuration, or what is wrong with it, takes more than "
        f"{MAX_ANSWER_BYTES // 2**20} MiB to tell: {CHECK}"
    )


def configuration(content: bytes, status: int) -> Config:
    """What another process of this agent made with `outcome`; `status` is how it ended.

    Raises:
        ConfigError: as `load` raises it.
        NoConfigError: it did not answer.
    """
    try:
        # From a process that this one started, through a pipe that nobody else has.
        answer = pickle.loads(content)  # noqa: S301 - see above
    except (EOFError, pickle.UnpicklingError):
        raise NoConfigError(_ending(status)) from None
    except (AttributeError, ImportError):
        raise NoConfigError("the agent was replaced while it runs: restart the agent") from None
    if isinstance(answer, Exception):
        raise answer
    return cast("Config", answer)


def _ending(status: int) -> str:
    text = "the process that reads the configuration"
    if status == -signal.SIGKILL:
        return f"{text} was killed: if memory ran out (dmesg tells), allow the agent 64 MiB more"
    ending = f"was ended by signal {-status}" if status < 0 else "ended without an answer"
    return f"{text} {ending}: {CHECK}, and shows why"
