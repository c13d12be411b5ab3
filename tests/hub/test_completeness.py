"""What is said of a cache that the real huggingface_hub made, beside what it says itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

from tests.hub.downloader import Downloader
from tests.hub.model import INDEX, REPO, SHARDS, sharded, single
from tests.hub.standin import COMMIT, Hub
from vllm_agent.host.contained_tree import open_tree
from vllm_agent.host.hf_hub.completeness import Completeness, Presence, is_complete

if TYPE_CHECKING:
    from pathlib import Path

PATTERNS = ("*.safetensors", "*.json")


def downloaded(files: dict[str, bytes], home: Path, *patterns: str) -> Path:
    """The cache of a process that downloaded all it asked for."""
    with Hub(REPO, files) as hub, Downloader(hub, home, *patterns) as server:
        server.begin()
        assert server.outcome() == "done"
    return home / ".cache/huggingface/hub"


def said_of(cache: Path, revision: str | None = None, load_format: str | None = None):
    with open_tree("/") as files:
        return is_complete(files, str(cache), REPO, revision, load_format)


def can_load(cache: Path, patterns: tuple[str, ...] = PATTERNS) -> bool:
    """Whether the real library gives the snapshot, with a configuration, without the network."""
    try:
        snapshot_download(REPO, cache_dir=cache, local_files_only=True, allow_patterns=[*patterns])
    except (IncompleteSnapshotError, LocalEntryNotFoundError):
        return False
    return isinstance(try_to_load_from_cache(REPO, "config.json", cache_dir=cache), str)


@pytest.mark.parametrize("files", [sharded(), single()], ids=["sharded", "single"])
def test_whole_download_is_complete(files, tmp_path):
    cache = downloaded(files, tmp_path, *PATTERNS)
    assert can_load(cache)
    assert said_of(cache) == Completeness(Presence.COMPLETE)
    assert said_of(cache, COMMIT).is_complete
    (repo,) = scan_cache_dir(cache).repos
    assert repo.repo_id == REPO


@pytest.mark.parametrize("name", [SHARDS[1], "config.json"])
def test_each_file_that_is_needed_is_missed(tmp_path, name):
    cache = downloaded(sharded(), tmp_path, *PATTERNS)
    (link,) = cache.rglob(name)
    link.resolve().unlink()  # a link to nothing is left
    assert not can_load(cache)
    said = said_of(cache)
    assert (said.presence, said.missing) == (Presence.INCOMPLETE, (name,))
    assert said.why == f"it lacks {name}"


@pytest.mark.parametrize("left", [("config.json",), ("config.json", INDEX)])
def test_download_that_had_only_begun_lacks_its_weights(tmp_path, left):
    cache = downloaded(sharded(), tmp_path, *left)
    (listing,) = cache.rglob("trees/*.json")
    for _ in ("as huggingface_hub 2 leaves it", "and 1"):
        said = said_of(cache)
        assert said.presence is Presence.INCOMPLETE
        assert said.why in {f"it lacks {', '.join(SHARDS)}", "it lacks its weights"}
        assert not can_load(cache) or not listing.exists()
        listing.unlink(missing_ok=True)


def test_other_revision_and_other_model_are_absent(tmp_path):
    cache = downloaded(single(), tmp_path, "*")
    assert said_of(cache, "v2").presence is Presence.ABSENT
    assert said_of(cache, "v2").why == "revision v2 is not in the cache"
    assert said_of(cache.parent).presence is Presence.ABSENT


def test_older_format_is_complete_where_there_is_no_other(tmp_path):
    files = {name: content for name, content in single().items() if name != "model.safetensors"}
    cache = downloaded(files, tmp_path, "*")
    assert said_of(cache).is_complete
    assert said_of(cache, load_format="safetensors").presence is Presence.INCOMPLETE


def test_cache_of_somebody_else_is_unknown(tmp_path):
    cache = downloaded(single(), tmp_path, "*")
    nobody = (65534, 65534) if os.geteuid() == 0 else None
    cache.chmod(0)
    try:
        with open_tree("/", user=nobody) as files:
            said = is_complete(files, str(cache), REPO)
    finally:
        cache.chmod(0o700)
    assert said == Completeness(
        Presence.UNKNOWN, (), "its cache cannot be read: it may not be read"
    )
