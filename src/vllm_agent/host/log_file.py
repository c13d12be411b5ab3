"""Follows a file that grows, and may be truncated, rotated or removed.

All of this reads files that somebody else chose and may hang with their disk: call it in a thread
with a deadline, and leave a file alone whose read did not return.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.host.log_line import MAX_LINE_BYTES, MAX_WRAPPED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES: Final = 256 * 1024
"""Read at a time: with its copies and its lines taken apart a third of the 2 MiB that the log of a
server may cost, and some milliseconds of work."""

MAX_TAIL_BYTES: Final = 256 * 1024
"""Read of what was there before the agent: the last minutes of a busy server's access log."""

MAX_READ_BYTES: Final = 4 * 1024 * 1024
"""Read of what came since the last time. When an engine dies, each open request logs 5 to 10 kB of
traceback after the marker: that of 400 requests."""

_SEAM_BYTES: Final = 512  # what was read last is compared to see whether a file was written anew
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotAFileError(OSError):
    """What was to be followed is no regular file."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines of a file: `content` up to `end`.

    Before `old_end` they were there when it was opened. The last one has no end if it is longer
    than `max_line_bytes`, which is what counts of a line.
    """

    content: bytes
    end: int
    old_end: int
    max_line_bytes: int


class LogFile:
    """The lines that come to a file, in pieces of at most CHUNK_BYTES and a line.

    `is_rotated` means that the file at `path` may be replaced by a new one. `is_wrapped`: its lines
    may be in envelopes. `is_all_new`: none of them is old. Counts `log_bytes` when more came than
    is read.
    """

    def __init__(
        self,
        path: str,
        count_dropped: Callable[[str], None],
        *,
        is_rotated: bool = False,
        is_wrapped: bool = False,
        is_all_new: bool = False,
    ) -> None:
        """Opens the file.

        Raises:
            NotAFileError: it is a FIFO, a device, a folder or a socket; it was not opened.
            OSError: it cannot be opened.
        """
        self._path = path
        self._count_dropped = count_dropped
        self._is_rotated = is_rotated
        self._max_line_bytes = MAX_WRAPPED_BYTES if is_wrapped else MAX_LINE_BYTES
        self._file, found = _open(path)
        self._identity = found.st_dev, found.st_ino
        self._old_end = 0 if is_all_new else found.st_size
        # The byte before tells whether a whole line begins there.
        self._position = max(0, self._old_end - MAX_TAIL_BYTES - 1)
        self._is_inside_line = self._position > 0
        self._seam = b""
        self._rest = b""

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return self._file >= 0

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file that is read, which another replaces by rotation."""
        return self._identity

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def pieces(self, max_bytes: int) -> Iterator[Piece]:
        """What came since the last time, at most `max_bytes`; what is left comes the next time.

        If more than MAX_READ_BYTES are left, only the newest are read.

        Raises:
            OSError: reading failed; what was not read may come the next time.
        """
        yield from self._unread(max_bytes)
        if self._is_rotated and self._is_replaced():
            file, found = _open(self._path)
            os.close(self._file)
            self._file, self._identity = file, (found.st_dev, found.st_ino)
            self._begin_anew()
            yield from self._unread(max_bytes)

    def _is_replaced(self) -> bool:
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            # Between the two steps of a rotation there is no file.
            return False
        found = os.fstat(self._file)
        return found.st_size <= self._position and not os.path.samestat(now, found)

    def _begin_anew(self) -> None:
        self._position, self._is_inside_line, self._seam, self._rest = 0, False, b"", b""
        self._old_end = 0

    def _unread(self, max_bytes: int) -> Iterator[Piece]:
        size = os.fstat(self._file).st_size
        if size < self._position or not self._is_seam_there():
            self._begin_anew()
        if size - self._position > MAX_READ_BYTES:
            self._count_dropped("log_bytes")
            self._position = size - max_bytes - 1
            self._is_inside_line, self._rest, self._seam = True, b"", b""
        # What comes meanwhile is left for the next time: a log may grow as fast as it is read.
        end = min(size, self._position + max_bytes + 1)
        while self._position < end:
            chunk = os.pread(self._file, min(CHUNK_BYTES, end - self._position), self._position)
            if not chunk:
                return
            self._position += len(chunk)
            self._seam = (self._seam + chunk[-_SEAM_BYTES:])[-_SEAM_BYTES:]
            piece = self._cut(chunk)
            if piece is not None:
                yield piece

    def _is_seam_there(self) -> bool:
        """Whether the end of what was read is still where it was: truncated files grow again."""
        place = self._position - len(self._seam)
        return place >= 0 and os.pread(self._file, len(self._seam), place) == self._seam

    def _cut(self, chunk: bytes) -> Piece | None:
        """What is whole of a chunk, after what was left over from the one before."""
        if self._is_inside_line:
            begin = _first_end(chunk)
            if begin < 0:
                return None
            self._is_inside_line = False
            chunk = chunk[begin + 1 :]
        content = self._rest + chunk
        begin = self._position - len(content)
        end = _last_end(content) + 1
        # Where a file was truncated below a writer, zeros stand for what is gone.
        self._rest = content[end:].lstrip(b"\0")
        if len(self._rest) > self._max_line_bytes:
            # Its beginning is all that counts of a line without an end.
            self._rest, self._is_inside_line = b"", True
            end = len(content)
        if not end:
            return None
        return Piece(content, end, max(0, self._old_end - begin), self._max_line_bytes)


def _first_end(chunk: bytes) -> int:
    feed = chunk.find(b"\n")
    back = chunk.find(b"\r", 0, len(chunk) if feed < 0 else feed)
    return feed if back < 0 else back


def _last_end(content: bytes) -> int:
    feed = content.rfind(b"\n")
    return max(feed, content.rfind(b"\r", max(0, feed)))


def _open(path: str) -> tuple[int, os.stat_result]:
    """A regular file, and what it is; nothing else is opened, or kept open."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotAFileError(f"{path} is no regular file")
    file = os.open(path, _FLAGS)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise NotAFileError(f"{path} is no regular file any more")
    return file, found
