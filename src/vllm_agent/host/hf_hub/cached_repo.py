"""The layout of the Hugging Face cache: where a repository is, and what the cache says of it.

models--org--name/refs/REVISION                    the commit
models--org--name/snapshots/COMMIT/FILE            a link to a blob
models--org--name/blobs/ETAG                       a finished file
models--org--name/blobs/ETAG[.8 HEX].incomplete    one on its way
models--org--name/trees/COMMIT.json                all files with sizes, by huggingface_hub 2
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import MissingFileError
from vllm_agent.host.hf_hub.checkpoint import (
    INDEXES,
    MAX_INDEX_BYTES,
    MAX_WEIGHT_BYTES,
    Index,
    is_inside,
    read_index,
)

if TYPE_CHECKING:
    from vllm_agent.host.contained_tree import ContainedTree

DEFAULT_REVISION: Final = "main"

MAX_NAMES: Final = 4096
"""In one folder of a repository; those with hundreds of files are rare."""

MAX_LISTING_BYTES: Final = 512 * 1024
"""Of the list of a repository's files, which has some 350 bytes for each. Parsing it stops every
other thread, for 4 ms at this length."""

_MAX_REF_BYTES: Final = 256
_COMMIT: Final = re.compile(r"[0-9A-Za-z]{1,128}")


def repo_folder(cache_folder: str, repo: str) -> str:
    """Where a cache has a repository."""
    return f"{cache_folder.rstrip('/')}/models--{repo.replace('/', '--')}"


def snapshot_folder(folder: str, commit: str) -> str:
    """Where a repository's folder has the files of a commit."""
    return f"{folder}/snapshots/{commit}"


def find_commit(files: ContainedTree, folder: str, revision: str) -> str | None:
    """The commit that a revision stands for in a repository's folder; None where it has none.

    Raises:
        UnreadableFileError: that cannot be told.
    """
    try:
        written = files.read(f"{folder}/refs/{revision}", _MAX_REF_BYTES)
    except MissingFileError:
        written = revision.encode()
    commit = written.decode("ascii", "replace").strip()
    return commit if _COMMIT.fullmatch(commit) else None


def find_index(files: ContainedTree, snapshot: str) -> Index | None:
    """The index of a checkpoint of several files; None where there is none yet.

    Raises:
        UnreadableFileError: there is one that cannot be read, or is not what it should be.
    """
    for name in INDEXES:
        try:
            index = read_index(files.pieces(f"{snapshot}/{name}", MAX_INDEX_BYTES))
        except MissingFileError:
            continue
        if index is None:
            raise UnreadableFileError(f"{name} is no index of a checkpoint")
        return index
    return None


def find_listing(files: ContainedTree, folder: str, commit: str) -> dict[str, int] | None:
    """The size of every file of a commit, as the Hub told it; None where that is not known here."""
    try:
        content = files.read(f"{folder}/trees/{commit}.json", MAX_LISTING_BYTES)
        listed = json.loads(content)["files"]
        sizes = {name: entry["size"] for name, entry in listed.items() if is_inside(name)}
    except (UnreadableFileError, ValueError, LookupError, TypeError, AttributeError):
        return None
    except RecursionError:  # a nest of brackets
        return None
    return sizes if all(map(_is_size, sizes.values())) else None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_WEIGHT_BYTES
