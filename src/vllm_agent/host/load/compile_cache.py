"""What comes to vLLM's torch.compile cache: the one sign of a compilation that is not in its log.

Below the cache are folders named by digests, and in those of Inductor and Triton, which write each
artifact under another name first. So whatever comes changes the time of the folder that it is in,
and the files themselves need no look. A compilation of minutes shows a change every few seconds;
one that finds all it needs in the cache shows next to none.

Several vLLMs may share a cache, and nothing tells whose an artifact is. Another server that
compiles then looks like progress of this one: for as long as that compilation takes, and not
longer, since the next launch finds its work done.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import open_place, rights_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.host.proc import Proc

MAX_DEPTH: Final = 7
"""Levels of folders below the cache. Triton's kernels are in the sixth: torch_aot_compile, digest,
inductor_cache, triton, device, kernel."""

MAX_FOLDERS: Final = 512
"""Folders that are looked at each time, those that changed last first; this takes 2 ms."""

MAX_NAMES: Final = 4096
"""Names that are read from folders that changed, each time. A folder of Inductor has some ten."""

MAX_KNOWN: Final = 8192
"""Folders that are remembered, of 300 bytes each; those from before the launch take half of that
at most. A model compiled for several GPUs has some hundred."""

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NANOSECONDS: Final = 1_000_000_000
_NEVER_SEEN_NS: Final = 2**63 - 1  # so that it comes first


@dataclass(slots=True)
class _Folder:
    """A folder as it was found last; `newest_ns` is the last change in it or below."""

    changed_ns: int | None = None
    newest_ns: int = _NEVER_SEEN_NS
    is_listed: bool = False
    children: dict[str, _Folder] = field(default_factory=dict)

    def size(self) -> int:
        """How many folders it is, with all below it."""
        return 1 + sum(child.size() for child in self.children.values())


@dataclass(slots=True)
class _Budget:
    """What is left of the bounds of one look."""

    folders: int
    names: int


class CompileCache:
    """Counts what came to the cache `folder`, as the process sees it, since its launch began."""

    def __init__(self, proc: Proc, pid: int, folder: str, started_unix_seconds: float) -> None:
        self._proc = proc
        self._pid = pid
        self._folder = folder
        self._started_ns = int(started_unix_seconds * _NANOSECONDS)
        self._top = _Folder()
        self._known = 1
        self._changes = 0
        self._is_looking = Lock()

    def changes(self) -> int | None:
        """How often a folder was found changed; None where the cache cannot be seen, or is none.

        What was there before the launch does not count. While another look hangs, this is the
        count so far. It blocks as the disk of the process does: call it in a thread.
        """
        if not self._is_looking.acquire(blocking=False):
            return self._changes
        try:
            with self._opened() as place:
                self._look(place, ".", self._top, MAX_DEPTH, _Budget(MAX_FOLDERS, MAX_NAMES))
        except OSError:
            return None
        else:
            return self._changes
        finally:
            self._is_looking.release()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        user = self._proc.real_user(self._pid)
        if user is None:
            raise ProcessLookupError
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        root = os.open(self._proc.path(self._pid, "root"), flags)
        try:
            with rights_of(user):
                place = open_place(root, os.fsencode(self._folder))
                try:
                    yield place
                finally:
                    os.close(place)
        finally:
            os.close(root)

    def _look(self, parent: int, name: str, folder: _Folder, levels: int, budget: _Budget) -> None:
        """Counts what changed in a folder and below.

        Raises:
            OSError: it is gone, no folder, or may not be read.
        """
        budget.folders -= 1
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError
        self._note_time(folder, status.st_mtime_ns)
        if not levels or (folder.is_listed and not folder.children):
            return
        # No link is followed: only what is in the cache itself is ever opened.
        descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
        try:
            if not folder.is_listed:
                self._list(descriptor, folder, budget)
            for child in sorted(folder.children, key=lambda c: -folder.children[c].newest_ns):
                if not budget.folders:
                    break
                with contextlib.suppress(OSError):
                    self._look(descriptor, child, folder.children[child], levels - 1, budget)
        finally:
            os.close(descriptor)
        below = (child.newest_ns for child in folder.children.values())
        folder.newest_ns = max(status.st_mtime_ns, *below, 0)

    def _note_time(self, folder: _Folder, changed_ns: int) -> None:
        if folder.changed_ns == changed_ns:
            return
        if folder.changed_ns is not None or changed_ns >= self._started_ns:
            self._changes += 1
        folder.changed_ns = folder.newest_ns = changed_ns
        folder.is_listed = False

    def _list(self, descriptor: int, folder: _Folder, budget: _Budget) -> None:
        """Finds the folders in a folder. What is beyond the bounds of a look waits for the next."""
        is_new = folder.changed_ns is not None and folder.changed_ns >= self._started_ns
        before, room = folder.children, (MAX_KNOWN if is_new else MAX_KNOWN // 2) - self._known
        folder.children = {}
        # A folder that takes all of a look has been read as far as it ever will.
        folder.is_listed = budget.names == MAX_NAMES
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if not budget.names:
                    break
                budget.names -= 1
                if not entry.is_dir(follow_symlinks=False):
                    continue
                child = before.pop(entry.name, None)
                if child is not None or room > 0:
                    room -= child is None
                    self._known += child is None
                    folder.children[entry.name] = child or _Folder()
            else:
                folder.is_listed = True
        self._known -= sum(child.size() for child in before.values())
