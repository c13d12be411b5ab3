"""The log files of managed servers: one for each launch, in a folder that only the agent fills.

All of this waits for the disk: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from vllm_agent.host.clock import now
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vllm_agent.observations import Instant

KEPT_LOGS: Final = 10
"""Of a server, the newest: a crash loop ends after three restarts, so the launches before it are
still there."""

MAX_LOG_BYTES: Final = 32 * 1024 * 1024
"""Of one log, and of what was cut from it: with its access log a server at 10 requests a second
writes that in a day. At most 640 MiB for a server that fills all of its logs twice."""

MIN_FREE_BYTES: Final = 1024 * 1024
"""Of the disk when a launch begins: a start writes up to 100 kB, a failed one its tracebacks. A
vLLM that cannot write its log serves on, and nobody learns why it ends."""

FOLDER: Final = "logs"
ASIDE_SUFFIX: Final = ".1"

_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CUT_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAME: Final = re.compile(r"(\d{8}T\d{6}\.\d{6})Z-[0-9a-f]{1,64}\.log")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_LOGGER: Final = logging.getLogger(__name__)


class LogFileError(StartError):
    """There is no file for the log of a launch: `reason` is a full disk, or a failed start."""


class LaunchFiles:
    """The logs below `STATE_DIR/logs/<server>/`; their names sort by the order of the launches."""

    def __init__(self, state_dir: Path, clock: Callable[[], Instant] = now) -> None:
        self._state_dir = state_dir
        self._clock = clock

    def open(self, server: str, launch_id: str) -> tuple[int, Path]:
        """A new log, as a descriptor that appends, which is the caller's to close, and its path.

        The oldest logs go. `launch_id` has hexadecimal digits.

        Raises:
            LogFileError: there is none.
        """
        path = self._state_dir / FOLDER / server
        try:
            self._state_dir.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with self._folder(server, is_made=True) as folder:
                name = self._next_name(folder, launch_id)
                file = os.open(name, _NEW_FLAGS | os.O_APPEND, _FILE_MODE, dir_fd=folder)
                try:
                    _check_room(file)
                    _prune(folder)
                except OSError:
                    os.close(file)
                    os.unlink(name, dir_fd=folder)
                    raise
        except OSError as error:
            raise _refusal(path, error) from None
        return file, path / name

    def bound(self, server: str) -> int:
        """Cuts every log that grew beyond MAX_LOG_BYTES; returns how many.

        The newest MAX_LOG_BYTES of what it held are kept aside. What the server writes between
        copying and cutting is lost.
        """
        cut = 0
        try:
            with self._folder(server) as folder:
                for name in _logs(folder):
                    cut += _cut(folder, name)
        except FileNotFoundError:
            pass
        except OSError as error:
            text = "the log of a server is not cut, and grows on"
            _LOGGER.warning(text, extra={"server": server, "detail": error.strerror})
        return cut

    def prune(self, server: str) -> None:
        """Removes all but the newest KEPT_LOGS."""
        with contextlib.suppress(FileNotFoundError), self._folder(server) as folder:
            _prune(folder)

    @contextlib.contextmanager
    def _folder(self, server: str, *, is_made: bool = False) -> Iterator[int]:
        """The folder of a server as a descriptor; below the state directory no link is followed."""
        with contextlib.ExitStack() as opened:
            folder = os.open(self._state_dir, _FOLDER_FLAGS)
            opened.callback(os.close, folder)
            for name in (FOLDER, server):
                if is_made:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, _FOLDER_MODE, dir_fd=folder)
                folder = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
                opened.callback(os.close, folder)
            yield folder

    def _next_name(self, folder: int, launch_id: str) -> str:
        at = datetime.fromtimestamp(self._clock().unix_seconds, UTC).replace(tzinfo=None)
        last = next(iter(_logs(folder)), None)
        if last is not None:
            # The wall clock may have been set back.
            at = max(at, datetime.fromisoformat(_stamp(last)) + timedelta(microseconds=1))
        return f"{at:%Y%m%dT%H%M%S.%f}Z-{launch_id}.log"


def _logs(folder: int) -> list[str]:
    """The names of the logs in a folder, the newest first."""
    return sorted((name for name in os.listdir(folder) if _stamp(name)), reverse=True)


def _stamp(name: str) -> str:
    """When a log was begun, as its name says; empty for a file that is no log."""
    match = _NAME.fullmatch(name)
    return "" if match is None else match[1]


def _prune(folder: int) -> None:
    kept = set(_logs(folder)[:KEPT_LOGS])
    for name in os.listdir(folder):
        log = name.removesuffix(ASIDE_SUFFIX)
        if log not in kept and _stamp(log):
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as error:
                # It takes room, and no more than that.
                text = "an old log of a server cannot be removed"
                _LOGGER.warning(text, extra={"file": name, "detail": error.strerror})


def _check_room(file: int) -> None:
    disk = os.fstatvfs(file)
    # Without blocks at all it is none that can be full, such as a network's.
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _cut(folder: int, name: str) -> bool:
    file = os.open(name, _CUT_FLAGS, dir_fd=folder)
    try:
        size = os.fstat(file).st_size
        if size <= MAX_LOG_BYTES:
            return False
        try:
            _copy(file, size - MAX_LOG_BYTES, folder, name + ASIDE_SUFFIX)
        except OSError as error:
            # Such as a full disk, which this log may have filled.
            text = "a log of a server is cut, and what it held is lost"
            _LOGGER.warning(text, extra={"file": name, "detail": error.strerror})
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + ASIDE_SUFFIX, dir_fd=folder)
        os.ftruncate(file, 0)
    finally:
        os.close(file)
    return True


def _copy(file: int, start: int, folder: int, name: str) -> None:
    """Copies all from `start` to the end, what comes meanwhile too, up to a bound."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    aside = os.open(name, _NEW_FLAGS, _FILE_MODE, dir_fd=folder)
    try:
        end = start + 2 * MAX_LOG_BYTES
        while copied := os.sendfile(aside, file, start, end - start):
            start += copied
    finally:
        os.close(aside)


def _refusal(folder: Path, error: OSError) -> LogFileError:
    if error.errno in _FULL:
        return LogFileError(
            Reason.DISK_FULL,
            f"there is no room for the log of the server: free some on the disk of {folder}",
        )
    return LogFileError(
        Reason.SPAWN_FAILED,
        f"the log of the server cannot be made in {folder} ({error.strerror}): "
        "make that a folder that the agent can write, without links, or set another --state.dir",
    )
