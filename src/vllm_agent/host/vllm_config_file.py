"""Reads the file of `vllm serve --config` as the process sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError, read_inside
from vllm_agent.host.contained_tree import working_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.config.problem import Problem
    from vllm_agent.host.proc import Proc

MAX_CONFIG_FILE_BYTES: Final = 64 * 1024
"""Of one file, which has some 20 lines. YAML is slow: this much takes 0.2 s of a processor."""


def read_config_file(proc: Proc, pid: int, path: str) -> Mapping[str, object]:
    """The keys of the file; `path` is as the process wrote it, relative to its working directory.

    It is read with the rights of who started the process. This blocks: call it in a thread.

    Raises:
        UnreadableFileError: it cannot be read, or is not a YAML mapping of keys.
    """
    user = proc.real_user(pid)
    if user is None:
        raise UnreadableFileError("its process is gone")
    root = proc.path(pid, "root")
    content = read_inside(root, working_folder(proc, pid), path, MAX_CONFIG_FILE_BYTES, user)
    return _parse(content)


def _parse(content: bytes) -> Mapping[str, object]:
    # Few servers have such a file, and YAML costs memory and time to import.
    from vllm_agent.config.document import parse_document  # noqa: PLC0415
    from vllm_agent.config.problem import ConfigError  # noqa: PLC0415

    try:
        document = parse_document(content.decode("utf-8"), "")
    except UnicodeDecodeError:
        raise UnreadableFileError("it is not UTF-8 text") from None
    except ConfigError as error:
        raise UnreadableFileError(_sentence(error.problems[0])) from None
    if document.problems:
        raise UnreadableFileError(_sentence(document.problems[0]))
    if not isinstance(document.value, dict):
        raise UnreadableFileError("it is not a mapping of keys")
    return document.value


def _sentence(problem: Problem) -> str:
    # Without the key: it is text of a stranger.
    return f"its line {problem.line}: {problem.message}"
