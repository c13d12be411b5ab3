"""Several files of another process at a time, with the caution of `contained_file`.

Every path is as the process sees it: nothing leads out of its root, only regular files are read,
and the rights are those of who started it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import (
    UnreadableFileError,
    open_place,
    open_regular,
    rights_of,
    sentence_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_agent.host.proc import Proc

PIECE_BYTES: Final = 128 * 1024
"""Read of a large file at a time: little enough to hold, enough to be fast."""

_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


class MissingFileError(UnreadableFileError):
    """There is no such file, as the process would find as well."""


class TooManyNamesError(UnreadableFileError):
    """A folder holds more than is read."""


class ContainedTree:
    """Files below one root. Made by `open_tree`; a file system that hangs blocks every call."""

    def __init__(self, root: int, folder: str) -> None:
        self._root = root
        self._folder = folder

    def status(self, path: str) -> os.stat_result:
        """What a path leads to; links are followed, below the root.

        Raises:
            MissingFileError: there is nothing.
            UnreadableFileError: it cannot be told.
        """
        with self._place(path) as place:
            return os.fstat(place)

    def file_status(self, path: str) -> os.stat_result | None:
        """The same of a regular file; None where there is none that may be seen."""
        try:
            status = self.status(path)
        except UnreadableFileError:
            return None
        return status if stat.S_ISREG(status.st_mode) else None

    def read(self, path: str, limit: int) -> bytes:
        """The content of a regular file.

        Raises:
            MissingFileError: there is no such file.
            UnreadableFileError: it cannot be read, or is longer than `limit` bytes.
        """
        return b"".join(self.pieces(path, limit))

    def pieces(self, path: str, limit: int) -> Iterator[bytes]:
        """The content of a regular file, PIECE_BYTES at a time.

        Raises:
            MissingFileError: there is no such file.
            UnreadableFileError: it cannot be read, or is longer than `limit` bytes.
        """
        with _told():
            descriptor = open_regular(self._root, self._name(path))
        if descriptor is None:
            return
        try:
            with _told():
                if os.fstat(descriptor).st_size > limit:
                    raise UnreadableFileError(f"it is longer than {limit} bytes")
                read = 0
                while piece := os.read(descriptor, PIECE_BYTES):
                    read += len(piece)
                    if read > limit:
                        raise UnreadableFileError(f"it is longer than {limit} bytes")
                    yield piece
        finally:
            os.close(descriptor)

    def names(self, path: str, limit: int) -> list[str]:
        """What is in a folder, in no order.

        Raises:
            MissingFileError: there is no such folder.
            TooManyNamesError: it holds more than `limit` names.
            UnreadableFileError: it cannot be read.
        """
        with self._place(path) as place:
            descriptor = os.open(f"/proc/self/fd/{place}", _FOLDER_FLAGS)
            try:
                names: list[str] = []
                # Listed only as far as the limit, whatever the folder holds.
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        if len(names) == limit:
                            raise TooManyNamesError(f"it holds more than {limit} names")
                        names.append(entry.name)
                return names
            finally:
                os.close(descriptor)

    def own_statuses(self, path: str, names: Iterable[str]) -> dict[str, os.stat_result]:
        """What names in a folder are themselves, links not followed; without those that are gone.

        Raises:
            MissingFileError: there is no such folder.
            UnreadableFileError: it cannot be read.
        """
        statuses = {}
        with self._place(path) as place:
            for name in names:
                if "/" in name or name == "..":
                    raise UnreadableFileError("one of its names is a path")
                with suppress(FileNotFoundError):
                    statuses[name] = os.stat(name, dir_fd=place, follow_symlinks=False)
        return statuses

    @contextmanager
    def _place(self, path: str) -> Iterator[int]:
        with _told():
            place = open_place(self._root, self._name(path))
            try:
                yield place
            finally:
                os.close(place)

    def _name(self, path: str) -> bytes:
        try:
            name = os.fsencode(os.path.join(self._folder, path))
        except ValueError:
            name = b"\0"
        if not path or b"\0" in name:
            raise UnreadableFileError("its path is not one")
        return name


@contextmanager
def open_tree(
    root: str, folder: str = "/", user: tuple[int, int] | None = None
) -> Iterator[ContainedTree]:
    """The files below `root`; paths that are not absolute begin at `folder`, as seen from there.

    They are reached with the rights of `user`, a uid and gid, if the agent may change to them, by
    this thread, as long as this lasts.

    Raises:
        UnreadableFileError: the root cannot be opened.
    """
    try:
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFileError(f"its root cannot be opened: {sentence_of(error)}") from None
    try:
        with rights_of(user):
            yield ContainedTree(descriptor, folder)
    finally:
        os.close(descriptor)


@contextmanager
def open_tree_of(proc: Proc, pid: int) -> Iterator[ContainedTree]:
    """The files that a process sees, with the rights of who started it.

    Raises:
        UnreadableFileError: it is gone, or may not be looked into.
    """
    user = proc.real_user(pid)
    if user is None:
        raise UnreadableFileError("its process is gone")
    with open_tree(proc.path(pid, "root"), working_folder(proc, pid), user) as tree:
        yield tree


def working_folder(proc: Proc, pid: int) -> str:
    """The working directory of a process, below its root.

    Both links are shown from here: those of a chroot begin alike. A wrong answer would only name
    another file inside that root.

    Raises:
        UnreadableFileError: it may not be looked into.
    """
    try:
        folder = os.readlink(proc.path(pid, "cwd"))
        root = os.readlink(proc.path(pid, "root")).rstrip("/")
    except OSError:
        raise UnreadableFileError("its process may not be looked into") from None
    return folder.removeprefix(root) if f"{folder}/".startswith(f"{root}/") else folder


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = MissingFileError if error.errno in _MISSING else UnreadableFileError
        raise kind(sentence_of(error)) from None
