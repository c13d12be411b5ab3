"""What comes to a torch.compile cache, laid out as a real one."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from vllm_agent.host.load import compile_cache as module
from vllm_agent.host.load.compile_cache import MAX_DEPTH, MAX_FOLDERS, CompileCache
from vllm_agent.host.proc import Proc

if TYPE_CHECKING:
    from pathlib import Path

PROC = Proc()
NOBODY = 65534
STARTED = 1_000_000_000
TIMES = itertools.count((STARTED + 1) * 10**9)
"""Of changes: the clock of a file system ticks too slowly for a test."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


def changed(folder: Path, at_ns: int | None = None) -> None:
    time_ns = next(TIMES) if at_ns is None else at_ns
    os.utime(folder, ns=(time_ns, time_ns))


def add(path: Path) -> None:
    """An artifact comes, and with it the folders that it needs."""
    parents = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in parents:
        changed(parent)
        changed(parent.parent)
    path.write_bytes(b"x")
    changed(path.parent)


@pytest.fixture
def folder(tmp_path):
    cache = tmp_path / "torch_compile_cache"
    cache.mkdir()
    changed(cache, 0)
    return cache


def cache_of(folder: Path, pid: int | None = None) -> CompileCache:
    return CompileCache(PROC, os.getpid() if pid is None else pid, str(folder), STARTED)


@pytest.mark.parametrize(
    "artifact",
    [
        "torch_aot_compile/764ce/inductor_cache/5u/c5ujs.so",
        "torch_aot_compile/764ce/inductor_cache/triton/0/KEY/kernel.cubin",
        "torch_aot_compile/764ce/inductor_cache/aotautograd/awh3y/kbaly",
        "torch_aot_compile/764ce/rank_0_0/model",
        "5e1a9c/rank_0_0/backbone/vllm_compile_cache.py",
        "5e1a9c/rank_0_0/triton_cache/KEY/kernel.cubin",
    ],
)
def test_artifact_is_seen_wherever_it_comes(folder, artifact):
    cache = cache_of(folder)
    assert cache.changes() == 0
    add(folder / artifact)
    first = cache.changes()
    assert first
    add((folder / artifact).with_name("another"))
    assert cache.changes() == first + 1
    assert cache.changes() == first + 1


def test_what_was_there_before_the_launch_does_not_count(folder):
    path = folder / "torch_aot_compile/764ce/inductor_cache/5u/c5ujs.so"
    add(path)
    for parent in (path.parent, path.parents[1], path.parents[2], path.parents[3], folder):
        changed(parent, (STARTED - 1) * 10**9)
    cache = cache_of(folder)
    assert cache.changes() == 0
    # A folder from before, as a launch leaves that did not come to its end.
    add(path.with_name("c5ujs.main.so"))
    assert cache.changes() == 1


def test_what_came_since_the_launch_counts_for_an_agent_that_came_later(folder):
    add(folder / "764ce/rank_0_0/model")
    assert cache_of(folder).changes() == 3


def test_cache_is_unknown_until_it_is_there(tmp_path):
    cache = cache_of(tmp_path / "torch_compile_cache")
    assert cache.changes() is None
    add(tmp_path / "torch_compile_cache/764ce/rank_0_0/model")
    assert cache.changes() == 3


def test_what_is_no_folder_is_unknown(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "pipe", "loop"):
        assert cache_of(tmp_path / name).changes() is None


def test_process_that_is_gone_is_unknown(folder):
    started = subprocess.Popen(["true"])
    started.wait()
    assert cache_of(folder, started.pid).changes() is None


def test_nothing_but_folders_of_the_cache_is_opened(folder, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    add(outside / "new")
    (folder / "link").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    (folder / "inside").mkdir()
    opened = []
    real_open = os.open

    def watched(path, flags, *arguments, **more):
        if not flags & os.O_PATH and not path.startswith("/proc/"):
            opened.append(path)
        return real_open(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", watched)
    changed(folder, 0)
    cache = cache_of(folder)
    cache.changes()
    assert opened == [".", "inside"]
    # One that is swapped for a link after it was found.
    (folder / "inside").rmdir()
    (folder / "inside").symlink_to(outside)
    changed(folder, 0)
    before = cache.changes()
    changed(outside)
    assert cache.changes() == before


def test_folder_that_is_swapped_while_it_is_looked_at_is_not_left(folder, tmp_path, monkeypatch):
    add(tmp_path / "outside/new/model")
    (folder / "inside").mkdir()
    changed(folder / "inside", 0)
    changed(folder, 0)
    real_stat = os.stat

    def swapping(path, *arguments, **more):
        status = real_stat(path, *arguments, **more)
        if path == "inside":
            (folder / "inside").rmdir()
            (folder / "inside").symlink_to(tmp_path / "outside")
            changed(folder, 0)
        return status

    monkeypatch.setattr(os, "stat", swapping)
    assert cache_of(folder).changes() == 0


def test_link_to_the_cache_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to("torch_compile_cache")
    cache = cache_of(tmp_path / "link")
    add(folder / "764ce/model")
    assert cache.changes() == 2


@as_root
def test_rights_are_those_of_the_process(folder, tmp_path):
    code = f"import os, sys; os.setuid({NOBODY}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        add(folder / "private/new")
        cache = cache_of(folder, process.pid)
        assert cache.changes() == 2
        (folder / "private").chmod(0o700)
        add(folder / "private/more/new")
        assert cache.changes() == 3
        folder.chmod(0o700)
        assert cache.changes() is None


def test_when_nothing_changes_no_folder_is_listed_again(folder, monkeypatch):
    for number in range(20):
        add(folder / f"764ce/inductor_cache/{number}/a.so")
    cache = cache_of(folder)
    cache.changes()
    listed: list[str] = []
    opened: list[str] = []
    real_open = os.open

    def listing(_self, _descriptor, found, _budget):
        listed.append(found)

    def opening(path, flags, *arguments, **more):
        opened.append(path)
        return real_open(path, flags, *arguments, **more)

    monkeypatch.setattr(CompileCache, "_list", listing)
    monkeypatch.setattr(os, "open", opening)
    cache.changes()
    assert not listed
    assert [name for name in opened if name.isdigit()] == []


def test_of_too_many_folders_those_that_changed_last_are_looked_at(folder):
    for number in range(MAX_FOLDERS + 9):
        (folder / f"{number:04}").mkdir()
        changed(folder / f"{number:04}", number)
    changed(folder, 0)
    cache = cache_of(folder)
    # Those that were not looked at yet come first, so that all are known after the second look.
    assert (cache.changes(), cache.changes()) == (0, 0)
    add(folder / "0009/new")
    assert cache.changes() == 0
    add(folder / "0010/new")
    assert cache.changes() == 1


def test_what_is_remembered_is_bounded_and_old_folders_leave_room_for_new_ones(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 20)
    for number in range(20):
        (folder / "old" / str(number)).mkdir(parents=True)
        changed(folder / "old" / str(number), 0)
    changed(folder / "old", 0)
    changed(folder, 0)
    cache = cache_of(folder)
    assert cache.changes() == 0
    assert cache._known == cache._top.size() == 10
    for number in range(20):
        add(folder / "new" / str(number) / "model")
    cache.changes()
    assert cache._known == cache._top.size() == 20
    shutil.rmtree(folder / "new")
    changed(folder)
    cache.changes()
    assert cache._known == cache._top.size() == 10


def test_folder_counts_as_changed_last_by_what_is_below_it(folder):
    for number in range(MAX_FOLDERS + 9):
        (folder / f"{number:04}").mkdir()
        changed(folder / f"{number:04}", number)
    add(folder / "0000/rank/first")
    changed(folder / "0000", 0)
    changed(folder, 0)
    cache = cache_of(folder)
    assert [cache.changes() for _ in range(3)][-1] == 1
    add(folder / "0000/rank/second")
    assert cache.changes() == 2


def test_folders_are_looked_at_down_to_a_bound(folder):
    deep = folder.joinpath(*["x"] * MAX_DEPTH)
    (deep / "deeper").mkdir(parents=True)
    for parent in (deep / "deeper", deep, *deep.parents[:MAX_DEPTH]):
        changed(parent, 0)
    cache = cache_of(folder)
    assert cache.changes() == 0
    add(deep / "new")
    assert cache.changes() == 1
    add(deep / "deeper/new")
    assert cache.changes() == 1


def test_large_folders_are_read_bit_by_bit_and_once(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_NAMES", 10)
    for name in ("a", "b", "c"):
        for number in range(8):
            (folder / name / str(number)).mkdir(parents=True)
            changed(folder / name / str(number), 0)
        changed(folder / name, 0)
    (folder / "huge").mkdir()
    for number in range(11):
        (folder / "huge" / str(number)).touch()
    changed(folder / "huge", 0)
    changed(folder, 0)
    read = []
    real_scandir = os.scandir

    class Counting:
        def __init__(self, descriptor):
            self._entries = real_scandir(descriptor)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._entries.close()

        def __iter__(self):
            for entry in self._entries:
                read.append(entry.name)
                yield entry

    monkeypatch.setattr(os, "scandir", Counting)
    cache = cache_of(folder)
    for _ in range(8):
        before = len(read)
        assert cache.changes() == 0
        # One more is taken from each list, to see whether it goes on.
        assert len(read) - before <= 10 + 4
    assert cache._top.size() == 1 + 4 + 3 * 8
    before = len(read)
    assert cache.changes() == 0
    assert len(read) == before


def test_look_that_hangs_does_not_hold_up_others(folder, monkeypatch):
    add(folder / "764ce/model")
    cache = cache_of(folder)
    assert cache.changes() == 2
    is_looking, may_go_on = Event(), Event()
    real_stat = os.stat

    def hanging(*arguments, **more):
        is_looking.set()
        may_go_on.wait()
        return real_stat(*arguments, **more)

    monkeypatch.setattr(os, "stat", hanging)
    late = Thread(target=cache.changes)
    late.start()
    is_looking.wait()
    monkeypatch.undo()
    add(folder / "764ce/more")
    assert cache.changes() == 2
    may_go_on.set()
    late.join()
    assert cache.changes() == 3
