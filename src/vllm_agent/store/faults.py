"""What can be wrong with a state directory, and what an operator does about it."""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING, Final

from vllm_agent.store.bounds import CALL_DEADLINE_SECONDS
from vllm_agent.store.directory import StateDirectoryInUse

if TYPE_CHECKING:
    from pathlib import Path

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NOT_WRITABLE: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
)
_IN_USE: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

UNSTORABLE_ERRORS: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)
"""Errors of a value, not of the disk: trying again cannot help."""


class UnusableFileError(Exception):
    """The file is damaged, or a database of another program."""


class NewerSchemaError(Exception):
    """The file was written by a newer agent; this one leaves it as it is."""


def is_damaged(error: BaseException) -> bool:
    """Whether the file can only be replaced."""
    return isinstance(error, UnusableFileError) or _primary_code(error) in _DAMAGED


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the bound of the file, is full."""
    has_no_room = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return has_no_room or _primary_code(error) == sqlite3.SQLITE_FULL


def _primary_code(error: BaseException) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    # The upper bytes of an extended code say where it happened.
    return None if code is None else code & 0xFF


def explain(error: BaseException, state_dir: Path) -> str:
    """What is wrong and what to do, one sentence each."""
    if isinstance(error, TimeoutError):
        return (
            f"the disk did not answer within {CALL_DEADLINE_SECONDS:g} s. "
            f"Look at the device under {state_dir} (dmesg, network mounts)."
        )
    if isinstance(error, StateDirectoryInUse):
        return str(error)
    return f"{error}. {_advice(error, state_dir)}"


def _advice(error: BaseException, state_dir: Path) -> str:
    code = _primary_code(error)
    if is_full(error):
        return f"Free some space on the file system of {state_dir}."
    if isinstance(error, NewerSchemaError):
        return f"Upgrade vllm-agent, or move history.sqlite out of {state_dir}."
    if code in _IN_USE:
        return f"Close the other program that has {state_dir}/history.sqlite open."
    if isinstance(error, OSError) or code in _NOT_WRITABLE:
        return f"Make {state_dir} a directory this user can write, or set another --state.dir."
    return f"Look at the disk under {state_dir}; deleting history.sqlite begins a new history."
