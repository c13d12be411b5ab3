"""The files of a repository while they come into the Hugging Face cache.

What is on its way is known by its name, that it is of this launch by its time. A look opens some
ten files: folders are listed only after they changed.
"""

from __future__ import annotations

import re
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import MissingFileError
from vllm_agent.host.hf_hub.cached_repo import (
    MAX_NAMES,
    find_commit,
    find_index,
    find_listing,
    snapshot_folder,
)
from vllm_agent.host.hf_hub.checkpoint import Index, is_weight, weights_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from vllm_agent.host.contained_tree import ContainedTree

SETTLED_SECONDS: Final = 3.0
"""A folder may change again without a new time: on some file systems times are 2 s apart. So it is
listed again until it has not changed for so long."""

_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system's own are (stat(2))
_NANOSECONDS: Final = 1_000_000_000
_ON_ITS_WAY: Final = re.compile(r"(.+?)(?:\.[0-9a-f]{8})?\.incomplete", re.DOTALL)


class RepoFiles:
    """A revision of a repository in the cache at `folder`, as the last look saw it.

    `load_format` is that of the server; None where that does not tell which weights it fetches.
    """

    def __init__(
        self, folder: str, revision: str, load_format: str | None, started_unix_seconds: float
    ) -> None:
        self._blobs = _Blobs(f"{folder}/blobs", started_unix_seconds)
        self._folder = folder
        self._revision = revision
        self._load_format = load_format
        self._of(None)

    def _of(self, commit: str | None) -> None:
        self._commit = commit
        self._snapshot = _Snapshot(snapshot_folder(self._folder, commit or self._revision))
        self._listing: dict[str, int] | None = None
        self._index: Index | None = None
        self._is_index_bad = False
        self._wanted: frozenset[str] | None = None

    def look(self, files: ContainedTree) -> None:
        """Sees what is there.

        Raises:
            TooManyNamesError: it has more files than are read.
            UnreadableFileError: that cannot be told.
        """
        has_changed = self._blobs.look(files)
        commit = find_commit(files, self._folder, self._revision)
        if commit != self._commit:
            self._of(commit)
        has_changed = self._snapshot.look(files) or has_changed
        if not has_changed or commit is None or self._load_format is None:
            return
        if self._listing is None:
            self._listing = find_listing(files, self._folder, commit)
        if self._index is None and not self._is_index_bad:
            try:
                self._index = find_index(files, self._snapshot.folder)
            except UnreadableFileError:
                self._is_index_bad = True
        self._wanted = self._found_wanted()
        self._snapshot.look_below(files, self._wanted or frozenset())

    @property
    def on_their_way(self) -> Mapping[str, int]:
        """The bytes allocated to each blob that this launch fetches."""
        return self._blobs.on_their_way

    @property
    def is_whole(self) -> bool | None:
        """Whether all weights are finished; None where it is not known which those are."""
        wanted = self._wanted
        return None if wanted is None else wanted <= self._snapshot.files.keys()

    @property
    def done_bytes(self) -> int:
        """What is there, finished or not."""
        linked = {file.identity for file in self._snapshot.files.values()}
        unlinked = (file for file in self._blobs.came if file.identity not in linked)
        coming_bytes = sum(self.on_their_way.values())
        return self._weight_bytes + self.other_bytes + _bytes_of(unlinked) + coming_bytes

    @property
    def other_bytes(self) -> int:
        """Configuration and tokenizer: in no total, and here before the weights."""
        files = self._snapshot.files
        return _bytes_of(file for name, file in files.items() if not is_weight(name))

    @property
    def listed_bytes(self) -> int | None:
        """What the weights come to by the list of the Hub."""
        wanted, listing = self._wanted, self._listing
        if listing is None or wanted is None or not wanted <= listing.keys():
            return None
        return sum(listing[name] for name in wanted)

    @property
    def indexed_bytes(self) -> int | None:
        """What the weights come to by their index."""
        return None if self._index is None else self._index.tensor_bytes

    @property
    def _weight_bytes(self) -> int:
        """The finished weights that the server fetches; where those are not known, all."""
        wanted, files = self._wanted, self._snapshot.files
        return _bytes_of(
            file
            for name, file in files.items()
            if (is_weight(name) if wanted is None else name in wanted)
        )

    def _found_wanted(self) -> frozenset[str] | None:
        """The weights that the server fetches; None where that is not known."""
        if self._index is not None:
            return self._index.files
        if self._listing is None:
            return None
        return weights_of(self._listing.keys(), self._load_format) or None


@dataclass(frozen=True, slots=True)
class _File:
    identity: tuple[int, int]
    size_bytes: int

    @classmethod
    def of(cls, status: os.stat_result) -> _File:
        return cls((status.st_dev, status.st_ino), status.st_size)


def _bytes_of(files: Iterable[_File]) -> int:
    return sum(file.size_bytes for file in files)


@dataclass(slots=True)
class _Listed:
    """A folder that is listed again only after it changed."""

    folder: str
    names: frozenset[str] = frozenset()
    _changed_ns: int = -1
    _is_settled: bool = False

    def look(self, files: ContainedTree) -> bool:
        """Whether it was listed.

        Raises:
            TooManyNamesError: it holds too much.
            UnreadableFileError: it is missing, or cannot be read.
        """
        changed_ns = files.status(self.folder).st_mtime_ns
        if changed_ns == self._changed_ns and self._is_settled:
            return False
        # Both times are from before the list is made: what comes during it is seen next time.
        is_settled = time.time_ns() > changed_ns + int(SETTLED_SECONDS * _NANOSECONDS)
        self.names = frozenset(files.names(self.folder, MAX_NAMES))
        self._changed_ns, self._is_settled = changed_ns, is_settled
        return True


@dataclass(slots=True)
class _Snapshot:
    """The files of a commit: links to blobs that are finished, which never change."""

    folder: str
    files: dict[str, _File] = field(default_factory=dict)
    _listed: _Listed | None = None

    def look(self, files: ContainedTree) -> bool:
        """Whether there may be more than before."""
        if self._listed is None:
            self._listed = _Listed(self.folder)
        try:
            is_new = self._listed.look(files)
        except MissingFileError:
            return False
        if is_new:
            self._find(files, self._listed.names)
        return is_new

    def look_below(self, files: ContainedTree, names: frozenset[str]) -> None:
        """Looks for files in folders of the snapshot, too."""
        self._find(files, (name for name in names if "/" in name))

    def _find(self, files: ContainedTree, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.files:
                status = files.file_status(f"{self.folder}/{name}")
                if status is not None:
                    self.files[name] = _File.of(status)


class _Blobs:
    """The folder of finished files and of those on their way."""

    def __init__(self, folder: str, started_unix_seconds: float) -> None:
        self.on_their_way: dict[str, int] = {}
        self.came: list[_File] = []
        self._listed = _Listed(folder)
        self._started_ns = int(started_unix_seconds * _NANOSECONDS)
        self._awaited: set[str] = set()
        self._first_seen: dict[str, tuple[int, int]] = {}

    def look(self, files: ContainedTree) -> bool:
        """Whether files were finished or begun since the last look."""
        is_new = self._listed.look(files)
        names = self._listed.names
        unfinished = {name: match[1] for name in names if (match := _ON_ITS_WAY.fullmatch(name))}
        statuses = files.own_statuses(self._listed.folder, unfinished)
        self._first_seen = {
            name: self._first_seen.get(name) or _stamp(status) for name, status in statuses.items()
        }
        self.on_their_way = {}
        for name, status in statuses.items():
            blob = unfinished[name]
            if blob not in names and self._is_of_this_launch(name, status):
                # Two processes may fetch the same file, each into its own.
                allocated_bytes = min(status.st_size, status.st_blocks * _BLOCK_BYTES)
                self.on_their_way[blob] = max(self.on_their_way.get(blob, 0), allocated_bytes)
        self._awaited |= self.on_their_way.keys()
        self._note_finished(files, names)
        return is_new

    def _is_of_this_launch(self, name: str, status: os.stat_result) -> bool:
        """Whether it was written to since the launch, or before our eyes; clocks may differ."""
        is_moving = _stamp(status) != self._first_seen[name]
        return stat.S_ISREG(status.st_mode) and (
            is_moving or status.st_mtime_ns >= self._started_ns
        )

    def _note_finished(self, files: ContainedTree, names: frozenset[str]) -> None:
        """Finds those that were on their way: their links come a moment later."""
        for blob in self._awaited & names:
            self._awaited.discard(blob)
            status = files.file_status(f"{self._listed.folder}/{blob}")
            if status is not None:
                self.came.append(_File.of(status))


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
