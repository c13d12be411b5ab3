"""Tells without the network whether a model is in a cache, and if a launch can do with that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vllm_agent.config.model_id import is_revision, why_no_repo_id
from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import MissingFileError
from vllm_agent.host.hf_hub.cached_repo import (
    DEFAULT_REVISION,
    MAX_NAMES,
    find_commit,
    find_index,
    find_listing,
    repo_folder,
    snapshot_folder,
)
from vllm_agent.host.hf_hub.checkpoint import others_of, weights_of

if TYPE_CHECKING:
    from vllm_agent.host.contained_tree import ContainedTree

MAX_NAMED: Final = 3
"""Missing files that a sentence names: the others are many of a kind."""

_CONFIGS: Final = ("config.json", "params.json")  # the second is Mistral's own


class Presence(Enum):
    """How much of a model is in a cache."""

    COMPLETE = auto()
    INCOMPLETE = auto()
    ABSENT = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Completeness:
    """What of a model is in a cache.

    `missing` are files of an incomplete one; `why` is a clause, empty for a complete one.
    """

    presence: Presence
    missing: tuple[str, ...] = ()
    why: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether everything that vLLM needs of it is there."""
        return self.presence is Presence.COMPLETE


def is_complete(
    files: ContainedTree,
    cache_folder: str,
    repo: str,
    revision: str | None = None,
    load_format: str | None = None,
) -> Completeness:
    """Whether the configuration and all weights of a repository are in the cache at `cache_folder`.

    A tokenizer is not asked for: there are too many kinds. This blocks: call it in a thread.
    """
    revision = revision or DEFAULT_REVISION
    why_not = why_no_repo_id(repo) or ("" if is_revision(revision) else "its revision is none")
    if why_not:
        return _unknown(why_not)
    folder = repo_folder(cache_folder, repo)
    try:
        commit = find_commit(files, folder, revision)
        if commit is None:
            return _unknown(f"its cache names no commit for revision {revision}")
        return _of_snapshot(files, folder, commit, load_format)
    except MissingFileError:
        return Completeness(Presence.ABSENT, (), f"revision {revision} is not in the cache")
    except UnreadableFileError as error:
        return _unknown(f"its cache cannot be read: {error}")


def why_airgapped(completeness: Completeness, *, is_offline: bool) -> str:
    """Why a launch that may not use the network must fail, as a clause; empty where it need not.

    Where it is not known what the cache has, vLLM is left to find out.
    """
    if not is_offline or completeness.presence in {Presence.COMPLETE, Presence.UNKNOWN}:
        return ""
    return f"nothing may be downloaded here, and {completeness.why}"


def _of_snapshot(
    files: ContainedTree, folder: str, commit: str, load_format: str | None
) -> Completeness:
    snapshot = snapshot_folder(folder, commit)
    names = files.names(snapshot, MAX_NAMES)
    wanted = _wanted(files, folder, commit, names, load_format)
    if wanted is None:
        return _unknown("which of its files are the weights cannot be told")
    missing = [name for name in sorted(wanted) if files.file_status(f"{snapshot}/{name}") is None]
    if not any(files.file_status(f"{snapshot}/{name}") for name in _CONFIGS):
        missing.insert(0, _CONFIGS[0])
    if not wanted:
        missing.append("its weights")
    if not missing:
        return Completeness(Presence.COMPLETE)
    return Completeness(Presence.INCOMPLETE, tuple(missing), f"it lacks {_named(missing)}")


def _wanted(
    files: ContainedTree, folder: str, commit: str, names: list[str], load_format: str | None
) -> frozenset[str] | None:
    index = find_index(files, snapshot_folder(folder, commit))
    if index is not None:
        return index.files
    listing = find_listing(files, folder, commit)
    if listing is not None:
        return weights_of(listing.keys(), load_format)
    found = weights_of(names, load_format)
    if found is None:
        return None
    return frozenset[str]().union(*map(others_of, found))


def _named(missing: list[str]) -> str:
    named = ", ".join(missing[:MAX_NAMED])
    more = len(missing) - MAX_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _unknown(why: str) -> Completeness:
    return Completeness(Presence.UNKNOWN, (), why)
