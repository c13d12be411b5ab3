"""Files that cannot be used are moved aside or left alone, and the agent goes on."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.store import values
from vllm_agent.store.directory import set_aside
from vllm_agent.store.rows import memory_rows
from vllm_agent.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def database(open_store, state_dir):
    """The closed database of an agent that ran here before."""
    store = await open_store()
    for number in range(1, 101):
        await store.commit(f"s{number}", values.memory(number), values.transition(detail="x" * 500))
    await store.close()
    return state_dir / "history.sqlite"


def corrupt_files(state_dir: Path) -> list[str]:
    return sorted(path.name for path in state_dir.glob("*.corrupt-*"))


def _garbage(path):
    path.write_bytes(b"\xde\xad\xbe\xef" * 10_000)


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _overwritten_in_the_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * 40_000 + content[48_192:])


def _of_another_program(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def _with_other_columns(path):
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE servers RENAME COLUMN phase TO mood")
    connection.close()


def _without_the_newest_columns(path):
    with sqlite3.connect(path) as connection:
        for column in ("process_pid", "url", "is_discovered"):
            connection.execute(f"ALTER TABLE servers DROP COLUMN {column}")
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        _garbage,
        _truncated,
        _overwritten_in_the_middle,
        _of_another_program,
        _with_other_columns,
        _without_the_newest_columns,
    ],
)
async def test_an_unusable_database_is_moved_aside_and_a_new_one_begun(
    damage, database, open_store, state_dir, caplog
):
    damage(database)
    content = database.read_bytes()
    store = await open_store()
    aside = f"history.sqlite.corrupt-{values.NOW:.0f}"
    assert corrupt_files(state_dir) == [aside]
    assert store.status.is_up
    assert await store.recall("s1") is None
    assert (state_dir / aside).read_bytes() == content
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(state_dir / aside) in record.getMessage()
    await store.commit("s1", values.memory(7))
    await store.close()
    assert await (await open_store()).recall("s1") == values.memory(7)


async def test_an_empty_file_becomes_a_database(open_store, state_dir):
    state_dir.mkdir()
    (state_dir / "history.sqlite").touch()
    store = await open_store()
    await store.commit("llama", values.memory())
    assert store.status.is_up
    assert corrupt_files(state_dir) == []


async def test_a_newer_schema_is_left_alone(database, open_store, state_dir, caplog, quick_retry):
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    content = database.read_bytes()
    store = await open_store()
    await store.commit("llama", values.memory())
    assert await store.recall("llama") == values.memory()
    await store.close()
    assert not store.status.is_up
    assert store.status.detail == (
        f"history.sqlite has schema {SCHEMA_VERSION + 1}, this vllm-agent knows {SCHEMA_VERSION}. "
        f"Upgrade vllm-agent, or move history.sqlite out of {state_dir}."
    )
    assert database.read_bytes() == content
    assert corrupt_files(state_dir) == []
    outages = [r for r in caplog.records if "in memory only" in r.getMessage()]
    assert [record.levelno for record in outages] == [logging.WARNING]


async def test_damage_seen_by_a_write_keeps_what_this_process_knows(
    open_store, state_dir, monkeypatch
):
    store = await open_store()
    await store.commit("llama", values.memory(3))
    _fail_next(monkeypatch, "write", _sqlite_error(sqlite3.SQLITE_CORRUPT))
    await store.commit("qwen", values.memory(4), values.transition())
    assert store.status.is_up
    assert len(corrupt_files(state_dir)) == 1
    await store.close()
    reopened = await open_store()
    assert await reopened.recall("llama") == values.memory(3)
    assert await reopened.recall("qwen") == values.memory(4)
    assert (await reopened.history("qwen")).transitions == (values.transition(),)


async def test_damage_seen_by_the_last_write_keeps_what_this_process_knows(open_store, monkeypatch):
    store = await open_store()
    await store.commit("llama", values.memory(3))
    store._backlog.add(memory_rows("qwen", values.memory(4), values.NOW))
    _fail_next(monkeypatch, "write", _sqlite_error(sqlite3.SQLITE_CORRUPT))
    await store.close()
    reopened = await open_store()
    assert await reopened.recall("llama") == values.memory(3)
    assert await reopened.recall("qwen") == values.memory(4)


async def test_damage_seen_by_a_read_keeps_what_this_process_knows(
    open_store, state_dir, monkeypatch
):
    store = await open_store()
    await store.commit("llama", values.memory(3))
    _fail_next(monkeypatch, "history", _sqlite_error(sqlite3.SQLITE_CORRUPT_INDEX))
    assert (await store.history("llama")).transitions == ()
    await store.close()
    assert len(corrupt_files(state_dir)) == 1
    assert await (await open_store()).recall("llama") == values.memory(3)


async def test_a_deleted_state_directory_is_made_again(open_store, state_dir):
    store = await open_store()
    await store.commit("llama", values.memory(3))
    for path in state_dir.iterdir():
        path.unlink()
    state_dir.rmdir()
    await store.commit("qwen", values.memory(4))
    await store.close()
    reopened = await open_store()
    assert await reopened.recall("llama") == values.memory(3)
    assert await reopened.recall("qwen") == values.memory(4)


def test_only_the_newest_damaged_databases_stay(tmp_path):
    database = tmp_path / "history.sqlite"
    for second in (8, 9, 10, 10, 11):
        database.write_text(str(second))
        database.with_name("history.sqlite-wal").touch()
        aside = set_aside(database, second + 0.5)
    assert aside.name == "history.sqlite.corrupt-12"
    kept = ("10", "10-wal", "11", "11-wal", "12", "12-wal")
    assert corrupt_files(tmp_path) == [f"history.sqlite.corrupt-{name}" for name in kept]
    assert aside.read_text() == "11"


def _sqlite_error(code: int) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = code
    return error


def _fail_next(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
    """Only the first call fails: what comes after meets a new database."""
    name = f"vllm_agent.store.database.Database.{method}"

    def failing(self, *arguments):
        monkeypatch.undo()
        raise error

    monkeypatch.setattr(name, failing)
