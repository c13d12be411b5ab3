"""The state directory: created, locked by one agent, damaged databases moved aside."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from vllm_agent.store.bounds import MAX_CORRUPT_FILES

if TYPE_CHECKING:
    from pathlib import Path

_SQLITE_SUFFIXES: Final = ("", "-wal", "-shm")
_MAX_PID_BYTES: Final = 32  # a PID has at most 7 digits


class StateDirectoryInUse(Exception):  # noqa: N818 - a fact for the operator, not a fault
    """Another agent keeps its history in this directory; `pid` is None where it cannot be read."""

    def __init__(self, state_dir: Path, pid: int | None) -> None:
        holder = "another vllm-agent" if pid is None else f"another vllm-agent (PID {pid})"
        super().__init__(
            f"the state directory {state_dir} is in use by {holder}: "
            "stop it, or give this one its own --state.dir"
        )
        self.pid = pid


class DirectoryLock:
    """Holds `STATE_DIR/lock` until it is released or the process ends, however it ends."""

    def __init__(self, state_dir: Path) -> None:
        """Creates the directory and takes the lock.

        Raises:
            StateDirectoryInUse: another agent has it.
            OSError: the directory or the lock cannot be created.
        """
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        # Not inherited by children (PEP 446): a managed server must not hold it after the agent.
        self._descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(state_dir)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, state_dir: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateDirectoryInUse(state_dir, self._holder()) from None
        # The lock is what counts: a full disk may refuse the PID.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _holder(self) -> int | None:
        text = os.pread(self._descriptor, _MAX_PID_BYTES, 0).strip()
        return int(text) if text.isdigit() else None

    def release(self) -> None:
        """Lets another agent have the directory. The file stays: removing it would be a race."""
        os.close(self._descriptor)


def set_aside(database: Path, unix_seconds: float) -> Path:
    """Rename a damaged database and its log out of the way; return its new name.

    Only the newest few stay. Raises OSError.
    """
    second = int(unix_seconds)
    while (aside := database.with_name(f"{database.name}.corrupt-{second}")).exists():
        second += 1
    for suffix in _SQLITE_SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            _with_suffix(database, suffix).rename(_with_suffix(aside, suffix))
    _remove_oldest(database)
    return aside


def _remove_oldest(database: Path) -> None:
    prefix = f"{database.name}.corrupt-"
    names = (path.name.removeprefix(prefix) for path in database.parent.glob(f"{prefix}*"))
    seconds = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for second in seconds[MAX_CORRUPT_FILES:]:
        for suffix in _SQLITE_SUFFIXES:
            _with_suffix(database.with_name(f"{prefix}{second}"), suffix).unlink(missing_ok=True)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
