"""Which file of a checkpoint real processes have mapped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.load.mapper import Mapper
from vllm_agent.host.contained_tree import ContainedTree
from vllm_agent.host.load import mapped_shards as module
from vllm_agent.host.load.mapped_shards import (
    MAX_FILES,
    MAX_NAMES,
    MAX_SEARCHES,
    MappedShards,
    candidates,
)
from vllm_agent.host.proc import Proc
from vllm_agent.observations import Shard

if TYPE_CHECKING:
    from pathlib import Path

PROC = Proc()
NOBODY = 65534
SIZES = (1000, 2000, 4000)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def mapper():
    with Mapper() as process:
        yield process


def shard_name(number: int, count: int = len(SIZES), ending: str = "safetensors") -> str:
    return f"model-{number:05}-of-{count:05}.{ending}"


@pytest.fixture
def checkpoint(tmp_path):
    """The files of a local checkpoint, in a folder with others."""
    folder = tmp_path / "model"
    folder.mkdir()
    for number, size in enumerate(SIZES, 1):
        (folder / shard_name(number)).write_bytes(b"x" * size)
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"x" * 99)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 99)
    (folder / "pytorch_model-00001-of-00003.bin").write_bytes(b"x" * 99)
    return folder


class Cache:
    """A model in a Hugging Face cache: snapshots of links to blobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "models--org--name"
        self.blobs = self.folder / "blobs"
        self.blobs.mkdir(parents=True)

    def add(self, revision: str, name: str, digest: str, size: int) -> Path:
        snapshot = self.folder / "snapshots" / revision
        snapshot.mkdir(parents=True, exist_ok=True)
        blob = self.blobs / digest
        blob.write_bytes(b"x" * size)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
        return snapshot / name


def only(shards: tuple[Shard, ...] | None) -> Shard:
    assert shards is not None
    (shard,) = shards
    return shard


def test_file_that_is_mapped_tells_how_far_the_load_is(mapper, checkpoint):
    witness = MappedShards(PROC)
    assert witness.look([mapper.pid]) == ()
    done = 0
    for number, size in enumerate(SIZES, 1):
        path = checkpoint / shard_name(number)
        mapper.map(path)
        assert witness.look([mapper.pid]) == (Shard(mapper.pid, number, 3, done, sum(SIZES)),)
        mapper.drop(path)
        done += size
    assert witness.look([mapper.pid]) == ()


def test_of_two_files_the_later_one_counts(mapper, checkpoint):
    for number in (2, 1):
        mapper.map(checkpoint / shard_name(number))
    assert only(MappedShards(PROC).look([mapper.pid])).number == 2


def test_each_process_has_a_shard_of_its_own(checkpoint):
    with Mapper() as one, Mapper() as other, Mapper() as idle:
        one.map(checkpoint / shard_name(1))
        other.map(checkpoint / shard_name(3))
        shards = MappedShards(PROC).look([idle.pid, one.pid, other.pid])
    assert shards is not None
    assert [(shard.pid, shard.number) for shard in shards] == [(one.pid, 1), (other.pid, 3)]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.safetensors", (1, 1, 0, 4000)),
        ("consolidated.safetensors", (1, 1, 0, 4000)),
        ("gptq_model-4bit-128g.safetensors", (1, 1, 0, 4000)),
        ("model-1-of-1.safetensors", (1, 1, 0, 4000)),
        ("model-00007-of-000163.safetensors", (7, 163, None, None)),
        ("pytorch_model-00002-of-00003.bin", (2, 3, None, None)),
        ("consolidated-00002-of-00003.pt", (2, 3, None, None)),
        ("model-00004-of-00003.safetensors", None),
        ("model-00000-of-00003.safetensors", None),
        ("model-9999999-of-9999999.safetensors", (1, 1, 0, 4000)),
        ("adapter_model.safetensors", None),
        ("pytorch_model.bin", None),
        ("model.safetensors.index.json", None),
        ("model-00001-of-00003.safetensors.incomplete", None),
    ],
)
def test_name_tells_the_place(mapper, tmp_path, name, place):
    (tmp_path / name).write_bytes(b"x" * 4000)
    mapper.map(tmp_path / name)
    expected = () if place is None else (Shard(mapper.pid, *place),)
    assert MappedShards(PROC).look([mapper.pid]) == expected


def test_numbers_without_a_count_are_counted_in_the_folder(mapper, tmp_path):
    for part in (0, 2, 10):
        (tmp_path / f"model-part-{part}.safetensors").write_bytes(b"x" * (part + 1))
    (tmp_path / "other-1.safetensors").write_bytes(b"x")
    mapper.map(tmp_path / "model-part-10.safetensors")
    assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 3, 3, 4, 15)


def test_blob_of_a_hugging_face_cache_is_found_by_its_snapshot(mapper, tmp_path):
    cache = Cache(tmp_path)
    cache.add("old", shard_name(1, 2), "aa", 100)
    files = [cache.add("new", shard_name(n), f"b{n}", size) for n, size in enumerate(SIZES, 1)]
    cache.add("new", "config.json", "ee", 5)
    for number, path in enumerate(files, 1):
        mapper.map(path)
        expected = Shard(mapper.pid, number, 3, sum(SIZES[: number - 1]), 7000)
        assert only(MappedShards(PROC).look([mapper.pid])) == expected
        mapper.drop(path)


def test_files_of_a_cache_are_asked_for_up_to_a_bound(mapper, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    link = cache.add("new", "model.safetensors", "aa", 100)
    mapper.map(link)
    link.unlink()
    for number in range(1, 10):
        cache.add(f"revision-{number % 3}", shard_name(number, 9), f"b{number}", 100)
    asked = []
    real_status = ContainedTree.file_status

    def file_status(self, path):
        asked.append(path)
        return real_status(self, path)

    monkeypatch.setattr(ContainedTree, "file_status", file_status)
    monkeypatch.setattr(module, "MAX_FILES", 4)
    assert MappedShards(PROC).look([mapper.pid]) is None
    assert len(asked) == 1 + 4


def test_blob_that_no_snapshot_names_is_unknown_and_not_nothing(mapper, tmp_path):
    cache = Cache(tmp_path)
    link = cache.add("new", shard_name(1), "aa", 100)
    mapper.map(link)
    link.unlink()
    assert MappedShards(PROC).look([mapper.pid]) is None
    shutil.rmtree(cache.folder / "snapshots")
    assert MappedShards(PROC).look([mapper.pid]) is None


def test_folder_that_is_only_called_blobs_is_no_cache(mapper, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "aa").write_bytes(b"x")
    mapper.map(tmp_path / "blobs" / "aa")
    assert MappedShards(PROC).look([mapper.pid]) == ()


def test_file_that_was_deleted_is_still_being_loaded(mapper, checkpoint):
    mapper.map(checkpoint / shard_name(2))
    (checkpoint / shard_name(2)).unlink()
    assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 2, 3)


@pytest.mark.parametrize("name", [b"a\nb", b"a b", b"\xff", b"a\\012b", b"models--x"])
def test_names_of_folders_may_be_anything(mapper, tmp_path, name):
    folder = bytes(tmp_path) + b"/" + name
    os.mkdir(folder)  # noqa: PTH102  Path has no bytes
    path = folder + b"/model-00001-of-00001.safetensors"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"x" * 10)
    mapper.map(path)
    shard = only(MappedShards(PROC).look([mapper.pid]))
    assert (shard.number, shard.count) == (1, 1)
    # A newline is written as \012, and so is one that stands there as such.
    assert shard.size_bytes in {10, None if b"\n" in name else 10}


def test_what_is_no_file_has_no_size(mapper, checkpoint, tmp_path):
    mapper.map(checkpoint / shard_name(1))
    third = checkpoint / shard_name(3)
    for make in (
        lambda: os.mkfifo(third),
        lambda: third.symlink_to(third),
        lambda: third.symlink_to("/proc/self/exe"),
        third.mkdir,
    ):
        third.unlink()
        make()
        assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 1, 3)
        if third.is_dir():
            break


@as_root
def test_files_are_those_below_the_root_of_the_process(tmp_path):
    jail = tmp_path / "jail"
    (jail / "model").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 7)
    (jail / "model" / shard_name(1, 2)).write_bytes(b"x" * 3)
    (jail / "model" / shard_name(2, 2)).write_bytes(b"x" * 4)
    with Mapper(jail) as mapper:
        mapper.map(b"/model/" + shard_name(1, 2).encode())
        assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 1, 2, 0, 7)
        (jail / "model" / shard_name(2, 2)).unlink()
        (jail / "model" / shard_name(2, 2)).symlink_to(outside)
        assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 1, 2)


def test_process_that_is_gone_or_shows_nothing_is_unknown(mapper, checkpoint):
    with Mapper() as gone:
        pass
    assert MappedShards(PROC).look([]) is None
    assert MappedShards(PROC).look([gone.pid]) is None
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert MappedShards(PROC).look([zombie.pid]) is None
    assert MappedShards(PROC).look([gone.pid, zombie.pid, mapper.pid]) == ()
    mapper.map(checkpoint / shard_name(1))
    assert only(MappedShards(PROC).look([gone.pid, zombie.pid, mapper.pid])).number == 1
    zombie.wait()


@as_root
def test_process_of_somebody_else_is_unknown(mapper):
    code = f"""
import os, sys
from vllm_agent.host.load.mapped_shards import MappedShards
from vllm_agent.host.proc import Proc
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
print(MappedShards(Proc()).look([int(sys.argv[1])]))
"""
    command = [sys.executable, "-c", code, str(mapper.pid)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"None\n"


def test_more_mappings_than_the_bound_are_not_looked_at(mapper, checkpoint, monkeypatch):
    mapper.map(checkpoint / shard_name(1))
    mapper.sparse(3000)
    assert only(MappedShards(PROC).look([mapper.pid])).number == 1
    monkeypatch.setattr(module, "MAX_MAPS_BYTES", 4096)
    # What is not looked at is unknown, not nothing.
    assert MappedShards(PROC).look([mapper.pid]) is None


def test_all_processes_of_a_look_share_a_bound(checkpoint, monkeypatch):
    with Mapper() as one, Mapper() as other:
        witness = MappedShards(PROC)
        other.map(checkpoint / shard_name(1))
        monkeypatch.setattr(module, "MAX_LOOK_BYTES", 4096)
        assert witness.look([one.pid, other.pid]) is None
        monkeypatch.undo()
        assert only(witness.look([one.pid, other.pid])).pid == other.pid


def test_of_too_many_files_only_some_are_looked_at(mapper, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_PATHS", 9)
    for number in range(module.MAX_PATHS + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        mapper.map(folder / "model.safetensors")
    witness = MappedShards(PROC)
    assert only(witness.look([mapper.pid])).count == 1
    assert len(witness._places) == MAX_SEARCHES
    for _ in range(9):
        witness.look([mapper.pid])
    assert len(witness._places) == module.MAX_PATHS


def test_folder_of_too_many_names_tells_no_sizes(mapper, checkpoint):
    unnumbered = checkpoint / "part-2.safetensors"
    unnumbered.write_bytes(b"x")
    mapper.map(unnumbered)
    for number in range(MAX_NAMES):
        (checkpoint / str(number)).touch()
    assert MappedShards(PROC).look([mapper.pid]) is None
    mapper.map(checkpoint / shard_name(1))
    assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 1, 3)


def test_checkpoint_of_too_many_files_tells_no_sizes(mapper, tmp_path):
    for number in range(1, MAX_FILES + 2):
        (tmp_path / shard_name(number, MAX_FILES + 1)).write_bytes(b"x")
    mapper.map(tmp_path / shard_name(9, MAX_FILES + 1))
    assert only(MappedShards(PROC).look([mapper.pid])) == Shard(mapper.pid, 9, MAX_FILES + 1)


def test_what_is_remembered_is_bounded(mapper, checkpoint, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    witness = MappedShards(PROC)
    for path in (checkpoint / shard_name(1), checkpoint / "consolidated.safetensors"):
        mapper.map(path)
        witness.look([mapper.pid])
        assert len(witness._places) <= 3


def test_folder_is_searched_once_and_mappings_are_read_when_they_changed(
    mapper, checkpoint, monkeypatch
):
    searched: list[str] = []
    read: list[str] = []
    mapped: list[int] = []
    real_names, real_read = ContainedTree.names, module._read_maps

    def names(self, path, limit):
        searched.append(path)
        return real_names(self, path, limit)

    def read_maps(path, limit):
        read.append(path)
        return real_read(path, limit)

    monkeypatch.setattr(ContainedTree, "names", names)
    monkeypatch.setattr(module, "_read_maps", read_maps)
    monkeypatch.setattr(module, "read_small", lambda _: b"stat %d" % len(mapped))
    witness = MappedShards(PROC)
    for number in (1, 2, 3):
        mapper.map(checkpoint / shard_name(number))
        mapped.append(number)
        for _ in range(3):
            assert only(witness.look([mapper.pid])).number == number
    assert searched == [str(checkpoint)]
    assert len(read) == 3


LINE = b"7f0-7f1 r--p 00000000 08:02 173521     "
NAMES = [b"model-00001-of-00002", b".safetensors", b".bin", b".pt", b"blobs", b"models--a--b"]
SIGNS = [b"/", b" (deleted)", b"\\012", b" ", b"\xff", b"-of-", b"00000", b"[anon:", b"]", b"\0"]
PARTS = st.lists(st.sampled_from([*NAMES, *SIGNS]), max_size=12).map(b"".join)


@given(st.lists(st.one_of(PARTS, st.binary(max_size=30)), max_size=20))
def test_any_mappings_are_read(lines):
    planted = b"/models/m/model-00001-of-00002.safetensors"
    found = candidates(b"\n".join([LINE + line for line in lines] + [LINE + planted + b"\n"]))
    assert planted in found
    assert all(path.startswith(b"/") or path[:1] not in {b"[", b" "} for path in found)
    for path in found:
        module._by_name(path)
