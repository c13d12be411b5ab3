"""A process that maps files as it is told."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CODE = """
import mmap, os, sys
if len(sys.argv) > 1:
    os.chroot(sys.argv[1])
held = {}
print(flush=True)
for line in sys.stdin:
    act, _, path = line[:-1].partition(" ")
    path = bytes.fromhex(path)
    if act == "map":
        with open(path, "rb") as file:
            held[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            held[path][0]
    elif act == "sparse":
        # Neighbours of another kind are mappings of their own.
        space = mmap.mmap(-1, 2 * int(path) * mmap.PAGESIZE)
        for page in range(int(path)):
            space.madvise(mmap.MADV_DONTFORK, 2 * page * mmap.PAGESIZE, mmap.PAGESIZE)
        held[path] = space
    else:
        held.pop(path).close()
    print(flush=True)
"""


class Mapper:
    """Maps files in a process of its own; use it as a context manager."""

    def __init__(self, *arguments: object, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CODE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            pass

    def map(self, path: Path | bytes) -> None:
        """Maps a file, which is not empty."""
        self._tell("map", path if isinstance(path, bytes) else bytes(path))

    def drop(self, path: Path) -> None:
        """Unmaps it again."""
        self._tell("drop", bytes(path))

    def sparse(self, count: int) -> None:
        """Makes so many mappings of nothing, and as many between them."""
        self._tell("sparse", str(count).encode())

    def _tell(self, act: str, path: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{act} {path.hex()}\n".encode())
        self._process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n"
