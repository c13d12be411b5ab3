"""Which file of a checkpoint a process has mapped: the log-free progress of loading weights.

vLLM maps the files of a safetensors checkpoint one after the other in natural order, in each
process that loads. Loaders that read them (`--safetensors-load-strategy eager`, .bin and .pt files,
streamers) map nothing. All names and sizes are what the owner of the process arranged.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import open_tree_of
from vllm_agent.host.proc import read_small
from vllm_agent.observations import Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_agent.host.contained_tree import ContainedTree
    from vllm_agent.host.proc import Proc

MAX_MAPS_BYTES: Final = 2 * 2**20
"""Read of the mappings of one process. One with torch has 1,000 lines of 160 bytes, one with GPUs
several thousand; Linux allows 65,530."""

MAX_LOOK_BYTES: Final = 16 * 2**20
"""Read of mappings in one look, which takes 60 ms: 16 workers with GPUs have as much."""

MAX_PATHS: Final = 64
"""Files of checkpoints that one process has mapped and that are looked at; vLLM has one or two."""

MAX_SEARCHES: Final = 4
"""Folders that are searched in one look. What a search gave is remembered, so that a load needs
one for its checkpoint, or one for each file in a Hugging Face cache."""

MAX_NAMES: Final = 4096
"""Names in a folder that is searched; a larger one tells no sizes."""

MAX_FILES: Final = 1024
"""Files whose sizes are asked for in one search. The largest checkpoints have some 200."""

MAX_REVISIONS: Final = 32
"""Snapshots of one model in a Hugging Face cache."""

MAX_KNOWN: Final = 4096
"""Mapped files whose place in a checkpoint is remembered."""

_BLOBS: Final = b"blobs"
_SNAPSHOTS: Final = "snapshots"
_OF_CACHE: Final = b"models--"
_DELETED: Final = b" (deleted)"
_ENDINGS: Final = (b".safetensors", b".bin", b".pt", _DELETED)
_IN_BLOBS: Final = b"/blobs/"
_CHUNK_BYTES: Final = 64 * 1024
_NUMBERED: Final = re.compile(r"(.*?)(\d{1,6})-of-(\d{1,6})\.(?:safetensors|bin|pt)", re.ASCII)
_SINGLE: Final = re.compile(r"(.*?)(\d{0,6})\.safetensors", re.ASCII)
_ADAPTER: Final = "adapter_"
"""A LoRA adapter: it is loaded beside a model, and is none."""


@dataclass(frozen=True, slots=True)
class _Series:
    """What the names of the files of one checkpoint share; `count` is None where none says it."""

    stem: str
    count: int | None
    ending: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file stands in its checkpoint; fields as those of `Shard`."""

    number: int
    count: int
    done_bytes: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Paths of files that may be of a checkpoint; `is_whole` unless there was more to look at."""

    paths: frozenset[bytes]
    is_whole: bool


@dataclass(slots=True)
class _Budget:
    """What is left of the bounds of one look."""

    maps_bytes: int
    searches: int


class MappedShards:
    """Looks at the processes of one launch again and again; remembers the files that it met.

    Looks may overlap: one that hung comes back late, and may then replace what others remembered,
    which costs a search and changes nothing that is told.
    """

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._seen: dict[int, tuple[bytes, _Mapped]] = {}
        self._places: dict[bytes, _Place | None] = {}

    def look(self, pids: Iterable[int]) -> tuple[Shard, ...] | None:
        """What each process has mapped of a checkpoint; None where nothing tells.

        Of several files of a process the last one counts: vLLM opens the next before it lets go of
        the one before. This blocks as the disk of the processes does: call it in a thread.
        """
        budget = _Budget(MAX_LOOK_BYTES, MAX_SEARCHES)
        seen: dict[int, tuple[bytes, _Mapped]] = {}
        shards: list[Shard] = []
        has_read, is_certain = False, True
        for pid in pids:
            stat = read_small(self._proc.path(pid, "stat")) or b""
            mapped = self._mapped(pid, stat, budget)
            if mapped is None:
                continue
            has_read = True
            if mapped.is_whole:
                seen[pid] = stat, mapped
            places = [self._place(pid, path, budget) for path in mapped.paths]
            is_certain &= mapped.is_whole and None not in places
            known = [place for place in places if place is not None]
            if known:
                last = max(known, key=lambda place: (place.count, place.number))
                shards.append(Shard(pid, last.number, last.count, last.done_bytes, last.size_bytes))
        self._seen = seen
        return tuple(shards) if shards or (has_read and is_certain) else None

    def _mapped(self, pid: int, stat: bytes, budget: _Budget) -> _Mapped | None:
        known = self._seen.get(pid)
        if known is not None and known[0] == stat != b"":
            # It waits: no page fault, no memory more or less, no time used. A file that was newly
            # mapped has been read from, which is a page fault.
            return known[1]
        limit = min(budget.maps_bytes, MAX_MAPS_BYTES)
        read = _read_maps(self._proc.path(pid, "maps"), limit)
        if read is None:
            return None
        content, is_whole = read
        budget.maps_bytes -= len(content)
        paths = candidates(content)
        return _Mapped(frozenset(sorted(paths)[-MAX_PATHS:]), is_whole and len(paths) <= MAX_PATHS)

    def _place(self, pid: int, path: bytes, budget: _Budget) -> _Place | None:
        if path in self._places:
            return self._places[path]
        if not budget.searches:
            return _by_name(path)
        budget.searches -= 1
        try:
            with open_tree_of(self._proc, pid) as tree:
                found = _search(tree, self._as_seen(pid, path))
        except (UnreadableFileError, OSError):
            found = {}
        folder, _, name = path.rpartition(b"/")
        places: dict[bytes, _Place | None] = {
            folder + b"/" + os.fsencode(other): place for other, place in found.items()
        }
        places[path] = found.get(os.fsdecode(name)) or _by_name(path)
        if len(self._places) + len(places) > MAX_KNOWN:
            self._places = {}
        self._places |= places
        return places[path]

    def _as_seen(self, pid: int, path: bytes) -> str:
        """A path below the root of the process: one that is in a chroot is shown from here."""
        root = os.readlink(self._proc.path(pid, "root")).rstrip("/")
        text = os.fsdecode(path)
        return text.removeprefix(root) if text.startswith(f"{root}/") else text


def candidates(content: bytes) -> set[bytes]:
    """The files in /proc/PID/maps that may be of a checkpoint, by their names.

    Linear in the content, whatever the names are.
    """
    paths, has_blobs = set(), _IN_BLOBS in content
    for line in content.split(b"\n"):
        if line.endswith(_ENDINGS) or (has_blobs and _IN_BLOBS in line):
            _, slash, path = line.removesuffix(_DELETED).partition(b"/")
            paths.add(slash + path)
    return {path for path in paths if _is_blob(path) or _series(path) is not None}


def _is_blob(path: bytes) -> bool:
    """Whether it is a file in a Hugging Face cache, named by its digest."""
    *_, model, folder, _ = (b"", b"", b"", *path.split(b"/"))
    return folder == _BLOBS and model.startswith(_OF_CACHE)


def _series(path: bytes) -> tuple[_Series, int] | None:
    """The checkpoint of a file and its number there, by its name; None where it is of none.

    A file without any number is the first.
    """
    name = os.fsdecode(path.rpartition(b"/")[2])
    if found := _NUMBERED.fullmatch(name):
        number, count = int(found[2]), int(found[3])
        ending = name.rpartition(".")[2]
        return (_Series(found[1], count, ending), number) if 1 <= number <= count else None
    if (found := _SINGLE.fullmatch(name)) and not name.startswith(_ADAPTER):
        return _Series(found[1], None, "safetensors"), int(found[2] or 0)
    return None


def _by_name(path: bytes) -> _Place | None:
    """What the name alone tells."""
    found = None if _is_blob(path) else _series(path)
    if found is None:
        return None
    series, number = found
    if series.count is not None:
        return _Place(number, series.count)
    return None if number else _Place(1, 1)


def _search(tree: ContainedTree, path: str) -> dict[str, _Place]:
    """The places of the files of a checkpoint by their names; for a blob, of that one alone."""
    folder, _, name = path.rpartition("/")
    if not _is_blob(os.fsencode(path)):
        return _places_in(tree, folder, name)
    for snapshot, link in _links_to(tree, path):
        found = _places_in(tree, snapshot, link).get(link)
        if found is not None:
            return {name: found}
    return {}


def _links_to(tree: ContainedTree, path: str) -> Iterator[tuple[str, str]]:
    """The names of a blob in the snapshots that have it, with their folders."""
    blob, left = tree.file_status(path), MAX_FILES
    snapshots = f"{path.rpartition('/blobs/')[0]}/{_SNAPSHOTS}"
    for revision in tree.names(snapshots, MAX_REVISIONS):
        folder = f"{snapshots}/{revision}"
        for name in _names(tree, folder):
            if left and _series(os.fsencode(name)) is not None:
                left -= 1
                status = tree.file_status(f"{folder}/{name}")
                if blob is not None and status is not None and os.path.samestat(blob, status):
                    yield folder, name


def _places_in(tree: ContainedTree, folder: str, name: str) -> dict[str, _Place]:
    """The places of the files in a folder that are of the same checkpoint as this one."""
    own = _series(os.fsencode(name))
    files: dict[int, str] = {}
    for other in _names(tree, folder):
        found = _series(os.fsencode(other))
        if own is not None and found is not None and found[0] == own[0]:
            files[found[1]] = other
    if own is None or len(files) > MAX_FILES:
        return {}
    count = own[0].count or len(files)
    statuses = [tree.file_status(f"{folder}/{files[number]}") for number in sorted(files)]
    sizes = [status.st_size for status in statuses if status is not None]
    sums = [0, *accumulate(sizes)] if len(sizes) == count else [None] * (len(files) + 1)
    return {
        files[number]: _Place(
            number if own[0].count else index + 1,
            count,
            done_bytes=sums[index],
            size_bytes=sums[-1],
        )
        for index, number in enumerate(sorted(files))
    }


def _names(tree: ContainedTree, folder: str) -> list[str]:
    try:
        return tree.names(folder, MAX_NAMES)
    except UnreadableFileError:
        return []


def _read_maps(path: str, limit: int) -> tuple[bytes, bool] | None:
    """Whole lines of the mappings of a process, up to `limit` bytes, and whether these are all.

    None where they may not be read, or it has none, as a zombie.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    pieces, left = [], limit
    try:
        # The kernel gives a page at a time.
        while left and (piece := os.read(descriptor, min(left, _CHUNK_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    content = b"".join(pieces)
    if left:
        return (content, True) if content else None
    return content[: content.rfind(b"\n") + 1], False
