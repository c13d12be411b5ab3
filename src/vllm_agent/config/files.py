"""Files that a configuration names: whether they can be read, and the key in an API key file."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Keys are tens of characters long; HTTP servers refuse header lines beyond 8 KiB.
MAX_API_KEY_FILE_BYTES = 4 * 1024
# A bundle of every CA that browsers trust is about 250 KiB.
MAX_PEM_FILE_BYTES = 4 * 2**20

_VISIBLE_ASCII = re.compile(rb"[!-~]+")


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read at most `max_bytes` and one more, so that the caller can tell a file that is longer.

    Raises:
        ValueError: there is no readable file; the message does not repeat the path.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(_open_message(error)) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("must name a file: this is a directory or a device")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _open_message(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file (a relative path starts at the folder of the configuration file)"
    if isinstance(error, PermissionError):
        return "cannot be read: let the user of the agent read it"
    return f"cannot be read: {error.strerror}"


def read_api_key(path: Path) -> str:
    """Read the key of a server, each time it is needed, so that it can be rotated.

    Raises:
        ValueError: there is no key there; the message holds neither the path nor the content.
    """
    content = read_file(path, MAX_API_KEY_FILE_BYTES)
    if len(content) > MAX_API_KEY_FILE_BYTES:
        raise ValueError(f"must hold one key, at most {MAX_API_KEY_FILE_BYTES} bytes")
    key = content.strip()
    if not key:
        raise ValueError("is empty: write the key in its first line")
    if b"\n" in key or b"\r" in key:
        raise ValueError("must hold one key in one line, nothing else")
    if not _VISIBLE_ASCII.fullmatch(key):
        raise ValueError("must hold a key of visible ASCII characters, without spaces")
    return key.decode("ascii")
