"""Opens a file as another process sees it, without trust in anything that process can arrange.

Whoever owns the process chooses its root, its folders and its links. So the path is resolved inside
that root only; nothing but a regular file is ever opened, because opening a device can act (a
watchdog reboots the host); and the rights are those of the process, not of the agent.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPENAT2: Final = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NO_PATH: Final = "its path is not one"
_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SENTENCES: Final = MappingProxyType(
    {
        errno.ENOENT: "there is no such file",
        errno.ENOTDIR: "a part of its path is no directory",
        errno.EACCES: "it may not be read",
        errno.EPERM: "it may not be read, or openat2 is not allowed here",
        errno.ELOOP: "its path has too many links, or one of /proc",
        errno.EAGAIN: "something on its path is being moved",
        errno.ENOSYS: "this kernel has no openat2: Linux 5.6 or newer is needed",
    }
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class UnreadableFileError(Exception):
    """A file was not read; the text is a clause that says why, without the path."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def read_inside(
    root: str, folder: str, path: str, limit: int, user: tuple[int, int] | None = None
) -> bytes:
    """The content of `path`, relative to `folder`, both as a process with that `root` sees them.

    `root` may be /proc/PID/root. No link leads out of it, and none of /proc is followed. It is read
    with the rights of `user`, a uid and gid, if the agent may change to them (it can as root), else
    with its own. A file system that hangs blocks this: call it in a thread.

    Raises:
        UnreadableFileError: it is missing, no regular file, longer than `limit` bytes, not allowed.
    """
    try:
        name = os.fsencode(os.path.join(folder, path))
        if b"\0" in name or not path:
            raise UnreadableFileError(_NO_PATH)
        root_descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except ValueError:
        raise UnreadableFileError(_NO_PATH) from None
    except OSError as error:
        raise UnreadableFileError(f"its root cannot be opened: {sentence_of(error)}") from None
    try:
        with rights_of(user):
            return _read_below(root_descriptor, name, limit)
    except OSError as error:
        raise UnreadableFileError(sentence_of(error)) from None
    finally:
        os.close(root_descriptor)


def _read_below(root: int, name: bytes, limit: int) -> bytes:
    descriptor = open_regular(root, name)
    if descriptor is None:
        return b""
    try:
        return _read_up_to(descriptor, limit)
    finally:
        os.close(descriptor)


def open_regular(root: int, name: bytes) -> int | None:
    """A descriptor to read what `open_place` finds; None for a file of length 0.

    Raises:
        OSError: it cannot be reached or read.
        UnreadableFileError: it is no regular file.
    """
    # O_PATH first: it acts on nothing, and what it points to cannot be swapped any more.
    place = open_place(root, name)
    try:
        information = os.fstat(place)
        if not stat.S_ISREG(information.st_mode):
            raise UnreadableFileError(f"it is {_kind(information.st_mode)}, not a regular file")
        if information.st_size == 0:
            return None  # as are those of /proc, of which some act when read
        return os.open(f"/proc/self/fd/{place}", _READ_FLAGS)
    finally:
        os.close(place)


def open_place(root: int, name: bytes) -> int:
    """A descriptor (O_PATH) of what a path leads to below `root`, itself a descriptor.

    Raises:
        OSError: it cannot be reached.
    """
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    place = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(root),
        ctypes.c_char_p(name),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if place < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(place)


def _read_up_to(descriptor: int, limit: int) -> bytes:
    # Not by its size: it may grow while it is read.
    content = b""
    while piece := os.read(descriptor, limit + 1 - len(content)):
        content += piece
        if len(content) > limit:
            raise UnreadableFileError(f"it is longer than {limit} bytes")
    return content


@contextmanager
def rights_of(user: tuple[int, int] | None) -> Iterator[None]:
    """Let this thread, and any that it starts, reach files as `user` does (setfsuid(2))."""
    if user is None or user == (os.geteuid(), os.getegid()):
        yield
        return
    uid, gid = user
    is_dumpable = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    try:
        yield
    finally:
        _libc.setfsuid(ctypes.c_uint(os.geteuid()))
        _libc.setfsgid(ctypes.c_uint(os.getegid()))
        if is_dumpable:  # which the whole process loses by the change
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _kind(mode: int) -> str:
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")


def sentence_of(error: OSError) -> str:
    """Why a file cannot be reached, as a clause without its path."""
    number = error.errno or 0
    return _SENTENCES.get(number, os.strerror(number).lower())
