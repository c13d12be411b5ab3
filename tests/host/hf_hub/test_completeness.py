"""What is said of caches that no library would make; for real ones see tests/hub."""

from __future__ import annotations

import json
import os

import pytest

from tests.host.hf_hub.cache import COMMIT, Cache
from vllm_agent.host.contained_tree import open_tree
from vllm_agent.host.hf_hub.cached_repo import MAX_LISTING_BYTES, MAX_NAMES
from vllm_agent.host.hf_hub.checkpoint import INDEXES, MAX_INDEX_BYTES
from vllm_agent.host.hf_hub.completeness import (
    Completeness,
    Presence,
    is_complete,
    why_airgapped,
)

INDEX = INDEXES[0]
SHARDS = tuple(f"model-0000{number}-of-00005.safetensors" for number in range(1, 6))


def said_of(
    cache: Cache,
    repo: str = "org/name",
    revision: str | None = None,
    load_format: str | None = None,
) -> Completeness:
    with open_tree(str(cache.root)) as files:
        return is_complete(files, "/cache/", repo, revision, load_format)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path)


def unknown(why: str) -> Completeness:
    return Completeness(Presence.UNKNOWN, (), why)


def test_all_files_of_the_index_are_needed(cache):
    cache.index(*SHARDS)
    assert said_of(cache).missing == SHARDS
    assert said_of(cache).why == f"it lacks {', '.join(SHARDS[:3])} and 2 more"
    for name in SHARDS:
        assert not said_of(cache).is_complete
        cache.add(name)
    assert said_of(cache) == Completeness(Presence.COMPLETE)


def test_index_can_name_files_in_folders(cache):
    cache.index("weights/a.safetensors")
    assert said_of(cache).missing == ("weights/a.safetensors",)
    cache.add("weights/a.safetensors")
    assert said_of(cache).is_complete


def test_index_of_the_older_format(cache):
    cache.add(INDEXES[1], json.dumps({"weight_map": {"a": "pytorch_model.bin"}}).encode())
    assert said_of(cache).missing == ("pytorch_model.bin",)
    cache.add("pytorch_model.bin")
    assert said_of(cache).is_complete


def test_list_of_the_hub_tells_what_is_missing(cache):
    cache.list({"files": {"model.safetensors": {"size": 5}, "README.md": {"size": 1}}})
    assert said_of(cache).missing == ("model.safetensors",)
    cache.add("model.safetensors")
    assert said_of(cache).is_complete


def test_names_of_a_set_tell_what_is_missing(cache):
    cache.add(SHARDS[1])
    assert said_of(cache).missing == (SHARDS[0], *SHARDS[2:])


def test_model_of_mistral_has_a_configuration_of_its_own(cache):
    (cache.snapshot / "config.json").unlink()
    cache.add("consolidated.safetensors")
    assert said_of(cache, load_format="mistral").missing == ("config.json",)
    cache.add("params.json")
    assert said_of(cache, load_format="mistral").is_complete


def test_weights_of_a_format_of_its_own_are_unknown(cache):
    cache.add("model.tensors")
    why = "which of its files are the weights cannot be told"
    assert said_of(cache, load_format="tensorizer") == unknown(why)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b'{"weight_map": 7}',
        b'{"weight_map": {"a": "../../../../etc/passwd.bin"}}',
        b'{"weight_map": {"a": "/etc/passwd.bin"}}',
        b'{"weight_map": {"a": ' + b'"' * 100_000,
        b"[" * 100_000,
    ],
)
def test_index_that_lies_leaves_it_unknown(cache, content):
    cache.add(INDEX, content)
    cache.add("model.safetensors")
    assert said_of(cache) == unknown(
        f"its cache cannot be read: {INDEX} is no index of a checkpoint"
    )


def test_index_of_ten_million_entries_is_not_read(cache):
    with (cache.repo / "blobs/huge").open("wb") as file:
        file.truncate(MAX_INDEX_BYTES + 1)
    (cache.snapshot / INDEX).symlink_to("../../blobs/huge")
    why = f"its cache cannot be read: it is longer than {MAX_INDEX_BYTES} bytes"
    assert said_of(cache) == unknown(why)


@pytest.mark.parametrize(
    "files",
    [
        7,
        [],
        {"files": 7},
        {"files": {"model.safetensors": {}}},
        {"files": {"model.safetensors": {"size": -1}}},
        {"files": {"model.safetensors": {"size": True}}},
        {"files": {"model.safetensors": {"size": "5"}}},
        {"files": {"x" * MAX_LISTING_BYTES: {"size": 5}}},
    ],
)
def test_list_that_lies_is_as_none(cache, files):
    cache.list(files)
    cache.add("model.bin")
    assert said_of(cache).is_complete


def test_list_that_is_a_nest_of_brackets(cache):
    cache.list({})
    (cache.repo / f"trees/{COMMIT}.json").write_text("[" * 100_000)
    cache.add("model.bin")
    assert said_of(cache).is_complete


def test_no_link_leads_out(cache):
    (cache.root.parent / "outside.bin").write_text("x")
    (cache.snapshot / "model.bin").symlink_to(cache.root.parent / "outside.bin")
    assert said_of(cache).missing == ("model.bin",)


def test_revisions(cache):
    cache.add("model.bin")
    cache.refer("v1", f"{COMMIT}\n")
    cache.refer("gone", "d" * 40)
    assert said_of(cache, revision="v1").is_complete
    assert said_of(cache, revision=COMMIT).is_complete
    assert said_of(cache, revision="gone").presence is Presence.ABSENT
    assert said_of(cache, revision="d" * 40).presence is Presence.ABSENT


@pytest.mark.parametrize("content", ["", "../../x", "a b", "/", "x" * 200])
def test_revision_that_lies_is_unknown(cache, content):
    cache.refer("main", content)
    assert said_of(cache) == unknown("its cache names no commit for revision main")


def test_what_is_no_model_is_unknown(cache):
    assert said_of(cache, "../x").presence is Presence.UNKNOWN
    assert said_of(cache, revision="../../..") == unknown("its revision is none")
    assert said_of(cache, "org/other").presence is Presence.ABSENT


@pytest.mark.timeout(10)
def test_folder_that_is_none(cache, tmp_path):
    cache.repo.rename(tmp_path / "away")
    os.mkfifo(cache.repo)
    assert said_of(cache).presence is Presence.ABSENT
    cache.repo.unlink()
    cache.repo.symlink_to("models--org--name")
    assert said_of(cache) == unknown(
        "its cache cannot be read: its path has too many links, or one of /proc"
    )


def test_snapshot_of_too_many_files_is_unknown(cache):
    for number in range(MAX_NAMES):
        (cache.snapshot / f"{number}").touch()
    why = f"its cache cannot be read: it holds more than {MAX_NAMES} names"
    assert said_of(cache) == unknown(why)


@pytest.mark.parametrize("presence", [Presence.INCOMPLETE, Presence.ABSENT])
def test_airgapped_launch_fails_without_the_model(presence):
    what = Completeness(presence, (), "it lacks a.bin")
    assert (
        why_airgapped(what, is_offline=True) == "nothing may be downloaded here, and it lacks a.bin"
    )
    assert why_airgapped(what, is_offline=False) == ""


@pytest.mark.parametrize("presence", [Presence.COMPLETE, Presence.UNKNOWN])
def test_airgapped_launch_may_go_on(presence):
    assert why_airgapped(Completeness(presence), is_offline=True) == ""
