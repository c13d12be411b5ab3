"""A disk that fails, fills up or hangs costs history, never the agent; it comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.store import values
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.store import LaunchRecord
from vllm_agent.store.backlog import Backlog
from vllm_agent.store.database import Database
from vllm_agent.store.directory import DirectoryLock
from vllm_agent.store.rows import EndingRow, ending_row, memory_rows, transition_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.store import Store


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the store has no events: it is asked, as here
            await asyncio.sleep(0.005)


async def until_up(store: Store) -> None:
    await until(lambda: store.status.is_up)


def outage_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.WARNING]


async def test_a_file_where_the_directory_should_be(open_store, state_dir, caplog):
    state_dir.write_text("not a directory")
    store = await open_store()
    assert not store.status.is_up
    assert store.status.last_success_unix_seconds is None
    assert "File exists" in store.status.detail
    assert f"Make {state_dir} a directory this user can write" in store.status.detail
    await store.commit("llama", values.memory(1), values.transition(), launch=values.launch())
    await store.commit("llama", values.memory(2), ending=values.ending())
    assert await store.recall("llama") == values.memory(2)
    history = await store.history("llama")
    assert history.transitions == (values.transition(),)
    assert history.launches == (LaunchRecord(values.launch(), values.ending()),)
    assert len(outage_lines(caplog)) == 1


async def test_a_path_that_no_user_can_create(open_store):
    store = await open_store(Path("/proc/vllm-agent/state"))
    await store.commit("llama", values.memory())
    assert await store.recall("llama") == values.memory()
    assert not store.status.is_up


async def test_a_directory_that_appears_later_gets_everything(
    open_store, state_dir, caplog, quick_retry
):
    state_dir.write_text("not a directory")
    caplog.set_level(logging.INFO, logger="vllm_agent.store")
    store = await open_store()
    await store.commit("llama", values.memory(2), values.transition())
    state_dir.unlink()
    await until_up(store)
    assert caplog.records[-1].getMessage() == f"history is on disk again in {state_dir}"
    await store.close()
    assert store.dropped["store_write"] == 0
    reopened = await open_store()
    assert await reopened.recall("llama") == values.memory(2)
    assert (await reopened.history("llama")).transitions == (values.transition(),)


async def test_what_is_lost_at_the_end_is_counted(open_store, state_dir, caplog):
    state_dir.write_text("not a directory")
    store = await open_store()
    await store.commit("llama", values.memory(), values.transition())
    await store.close()
    assert store.dropped["store_write"] == 2
    assert caplog.records[-1].getMessage() == "2 rows of history could not be written and are lost"


async def test_the_log_says_an_outage_once(open_store, caplog, monkeypatch, quick_retry):
    store = await open_store()
    tries = []

    def failing(self, batch):
        tries.append(batch)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", failing)
        for number in range(5):
            await store.commit("llama", values.memory(number))
        await until(lambda: len(tries) >= 4)
        assert not store.status.is_up
    await until_up(store)
    assert len(outage_lines(caplog)) == 1


async def test_a_connection_that_failed_is_made_anew(open_store, monkeypatch, quick_retry):
    """After a network mount came back, only new file descriptors reach it."""
    store = await open_store()
    stale = store._file._database
    write = Database.write

    def failing(self, batch):
        if self is stale:
            raise sqlite3.OperationalError("disk I/O error")
        write(self, batch)

    monkeypatch.setattr(Database, "write", failing)
    await store.commit("llama", values.memory())
    assert not store.status.is_up
    await until_up(store)


async def test_history_in_an_outage_is_that_on_disk_and_that_in_memory(open_store, monkeypatch):
    store = await open_store()
    for number in (1, 2):
        await store.commit(
            "llama", values.memory(), values.transition(number), launch=values.launch(number)
        )

    def failing(self, batch):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", failing)
        await store.commit("qwen", values.memory(), values.transition(9))
        await store.commit("llama", values.memory(), ending=values.ending(2))
        await store.commit("llama", values.memory(), values.transition(3), launch=values.launch(3))
        expected = await store.history("llama", limit=2)
        assert [t.launch_number for t in expected.transitions] == [3, 2]
        assert expected.launches == (
            LaunchRecord(values.launch(3), None),
            LaunchRecord(values.launch(2), values.ending(2)),
        )
    await store.close()
    assert await (await open_store()).history("llama", limit=2) == expected


async def test_memory_is_bounded_while_the_disk_is_down(monkeypatch):
    monkeypatch.setattr("vllm_agent.store.backlog.MAX_UNWRITTEN_ROWS", 3)
    dropped: Counter[str] = Counter()
    backlog = Backlog(dropped)
    rows = memory_rows("llama", values.memory(), values.NOW)

    def add(number: int) -> int:
        return backlog.add(rows, [transition_row("llama", values.transition(number), dropped)])

    for number in (1, 2, 3):
        add(number)
    batch = backlog.take()
    last = add(4)
    assert dropped["store_write"] == 1
    backlog.confirm(batch)
    assert not backlog.is_confirmed(last)
    (left,) = backlog.take().rows
    assert left == transition_row("llama", values.transition(4), dropped)


async def test_log_lines_are_bounded_while_the_disk_is_down(monkeypatch):
    monkeypatch.setattr("vllm_agent.store.backlog.MAX_UNWRITTEN_LOGS", 2)
    dropped: Counter[str] = Counter()
    backlog = Backlog(dropped)
    rows = memory_rows("llama", values.memory(), values.NOW)
    for number in range(1, 6):
        ending = replace(values.ending(number), log=("ERROR",) if number != 2 else ())
        backlog.add(
            rows,
            [
                ending_row("llama", ending, dropped),
                transition_row("llama", values.transition(number), dropped),
            ],
        )
    endings = [row for row in backlog.take().rows if isinstance(row, EndingRow)]
    assert [row.end_log is not None for row in endings] == [False, False, False, True, True]
    assert dropped["store_log"] == 2
    assert dropped["store_write"] == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs is not permitted")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Takes the space that is left."""
    with (disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


async def test_a_disk_that_fills_up_and_gets_room_again(
    open_store, small_disk, caplog, quick_retry
):
    store = await open_store(small_disk / "state")
    await store.commit("llama", values.memory(1), values.transition(detail="before"))
    fill(small_disk)
    for number in range(2, 102):
        await store.commit("llama", values.memory(number), values.transition(detail="x" * 2000))
    assert not store.status.is_up
    assert "Free some space" in store.status.detail
    assert await store.recall("llama") == values.memory(101)
    assert len((await store.history("llama", limit=1000)).transitions) == 101
    (small_disk / "fill").unlink()
    await until_up(store)
    assert len(outage_lines(caplog)) == 1
    await store.close()
    assert store.dropped["store_write"] == 0
    reopened = await open_store(small_disk / "state")
    assert await reopened.recall("llama") == values.memory(101)
    assert len((await reopened.history("llama", limit=1000)).transitions) == 101


async def test_a_disk_that_is_full_from_the_start(open_store, small_disk, quick_retry):
    fill(small_disk)
    store = await open_store(small_disk / "state")
    await store.commit("llama", values.memory(5))
    assert not store.status.is_up
    (small_disk / "fill").unlink()
    await until_up(store)
    await store.close()
    assert await (await open_store(small_disk / "state")).recall("llama") == values.memory(5)


async def test_a_full_disk_still_gives_the_counters_of_before(open_store, small_disk):
    store = await open_store(small_disk / "state")
    await store.commit("llama", values.memory(5))
    await store.close()
    fill(small_disk)
    assert await (await open_store(small_disk / "state")).recall("llama") == values.memory(5)


async def test_a_disk_that_turns_read_only(open_store, small_disk, quick_retry):
    store = await open_store(small_disk / "state")
    await store.commit("llama", values.memory(50))
    await store.close()
    remount(small_disk, "ro")
    store = await open_store(small_disk / "state")
    assert await store.recall("llama") is None
    smaller = replace(values.memory(1), reason=Reason.NCCL)
    await store.commit("llama", smaller)
    assert "Read-only file system" in store.status.detail
    assert await store.recall("llama") == smaller
    remount(small_disk, "rw")
    await until_up(store)
    await store.close()
    recalled = await (await open_store(small_disk / "state")).recall("llama")
    assert recalled == replace(smaller, tally=values.tally(50))


async def test_our_own_bound_makes_room_for_the_newest(open_store, monkeypatch):
    """Without it, a file at its bound would look like a full disk for ever."""
    monkeypatch.setattr("vllm_agent.store.schema.MAX_FILE_BYTES", 400 * 1024)
    monkeypatch.setattr("vllm_agent.store.retention.SHRINK_ABOVE_BYTES", 300 * 1024)
    store = await open_store()
    for number in range(300):
        await store.commit(
            "llama", values.memory(number), values.transition(number, detail="x" * 4000)
        )
    assert store.status.is_up
    assert store.dropped["store_history"] > 200
    (newest, *_) = (await store.history("llama")).transitions
    assert newest.launch_number == 299


class HungDisk:
    """Holds every call of one method until it is told to let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, of: type = Database) -> None:
        self.let_go = threading.Event()
        self.calls = 0
        original = getattr(of, method)

        def hanging(owner, *arguments):
            self.calls += 1
            assert self.let_go.wait(30)
            return original(owner, *arguments)

        monkeypatch.setattr(of, method, hanging)


@pytest.fixture
def hang(monkeypatch):
    disks = []

    def begin(method):
        disks.append(HungDisk(monkeypatch, method))
        return disks[-1]

    yield begin
    for disk in disks:
        disk.let_go.set()


async def longest_pause_seconds(task: asyncio.Task) -> float:
    """The longest time between two turns of the event loop while `task` runs."""
    loop = asyncio.get_running_loop()
    longest, last = 0.0, loop.time()
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, loop.time() - last), loop.time()
    return longest


async def test_a_hung_disk_delays_one_commit_by_the_deadline(
    open_store, hang, caplog, quick_deadline
):
    store = await open_store()
    await store.commit("llama", values.memory(1))
    disk = hang("write")
    loop = asyncio.get_running_loop()
    started = loop.time()
    commit = asyncio.create_task(store.commit("llama", values.memory(2), values.transition()))
    assert await longest_pause_seconds(commit) < 1.0
    assert 0.1 <= loop.time() - started < 2.0
    assert not store.status.is_up
    assert "did not answer" in store.status.detail
    started = loop.time()
    for number in range(3, 103):
        await store.commit("llama", values.memory(number))
    assert await store.recall("llama") == values.memory(102)
    assert await store.recall("qwen") is None
    assert (await store.history("llama")).transitions == (values.transition(),)
    assert loop.time() - started < 2.0
    assert disk.calls == 1
    disk.let_go.set()
    await until_up(store)
    await until(lambda: not store._backlog)
    await store.close()
    reopened = await open_store()
    assert await reopened.recall("llama") == values.memory(102)
    assert (await reopened.history("llama")).transitions == (values.transition(),)
    assert len(outage_lines(caplog)) == 1


async def test_a_hung_read_takes_the_deadline_once(open_store, hang, quick_deadline, quick_retry):
    store = await open_store()
    await store.commit("llama", values.memory(), values.transition())
    await store.close()
    store = await open_store()
    disk = hang("memory")
    assert await store.recall("llama") is None
    assert not store.status.is_up
    assert await store.recall("llama") is None
    assert disk.calls == 1
    disk.let_go.set()
    await until_up(store)
    assert await store.recall("llama") == values.memory()


async def test_a_disk_that_hangs_at_the_start(open_store, hang, quick_deadline):
    disk = hang("write")
    store = await open_store()
    assert not store.status.is_up
    await store.commit("llama", values.memory())
    disk.let_go.set()
    await until_up(store)
    await store.close()
    assert await (await open_store()).recall("llama") == values.memory()


async def test_a_hung_disk_does_not_keep_the_agent_from_ending(open_store, hang, quick_deadline):
    store = await open_store()
    hang("write")
    await store.commit("llama", values.memory(), values.transition())
    async with asyncio.timeout(5):
        await store.close()
    assert store.dropped["store_write"] == 2


async def test_a_directory_that_turns_out_to_be_in_use_too_late_to_refuse(
    open_store, hang, quick_deadline, monkeypatch
):
    first = await open_store()
    disk = HungDisk(monkeypatch, "_take", of=DirectoryLock)
    second = await open_store()
    disk.let_go.set()
    await until(lambda: "in use by another vllm-agent" in second.status.detail)
    assert second.status.detail.endswith("stop it, or give this one its own --state.dir")
    await second.commit("llama", values.memory())
    assert await first.recall("llama") is None


async def test_another_program_that_holds_the_database(open_store, state_dir, quick_retry):
    await (await open_store()).close()
    other = sqlite3.connect(state_dir / "history.sqlite", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        store = await open_store()
        assert "Close the other program" in store.status.detail
        await store.commit("llama", values.memory())
    finally:
        other.close()
    await until_up(store)
    assert await store.recall("llama") == values.memory()
