"""A file of an older schema is brought up to date, with all that is in it, or left as it was."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.store import values
from vllm_agent.store import History, LaunchRecord, schema

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.observations import ProcessId

# As the agents that had these schemas created them.
SCHEMA_1 = """
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    CREATE TABLE servers (
        server TEXT NOT NULL PRIMARY KEY,
        phase TEXT NOT NULL,
        reason TEXT,
        has_served INTEGER NOT NULL,
        newest_start_seconds REAL,
        is_load_balanced INTEGER NOT NULL,
        budget_limit INTEGER NOT NULL,
        budget_remaining INTEGER NOT NULL,
        is_limit_reached INTEGER NOT NULL,
        maintenance_until_unix_seconds REAL,
        entered_unix_seconds REAL,
        last_ending_launch INTEGER,
        model_name TEXT,
        version TEXT,
        committed_unix_seconds REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE counters (
        server TEXT NOT NULL,
        counter TEXT NOT NULL,
        key TEXT NOT NULL,
        value NUMERIC NOT NULL,
        PRIMARY KEY (server, counter, key)
    ) WITHOUT ROWID;
    CREATE TABLE launches (
        server TEXT NOT NULL,
        number INTEGER NOT NULL,
        start_seconds REAL,
        first_seen_unix_seconds REAL NOT NULL,
        has_served INTEGER NOT NULL,
        ended_unix_seconds REAL,
        end_state TEXT,
        end_reason TEXT,
        end_rule INTEGER,
        end_evidence TEXT,
        end_exit_code INTEGER,
        end_signal INTEGER,
        PRIMARY KEY (server, number)
    ) WITHOUT ROWID;
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        server TEXT NOT NULL,
        at_unix_seconds REAL NOT NULL,
        from_phase TEXT NOT NULL,
        to_phase TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        launch_number INTEGER
    );
    CREATE INDEX transitions_by_server ON transitions (server, id);
    PRAGMA application_id = 1984719969;
    PRAGMA user_version = 1;
"""

SCHEMA_2 = """
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    CREATE TABLE servers (
        server TEXT NOT NULL PRIMARY KEY,
        phase TEXT NOT NULL,
        reason TEXT,
        has_served INTEGER NOT NULL,
        newest_start_seconds REAL,
        is_load_balanced INTEGER NOT NULL,
        budget_limit INTEGER NOT NULL,
        budget_remaining INTEGER NOT NULL,
        is_limit_reached INTEGER NOT NULL,
        maintenance_until_unix_seconds REAL,
        entered_unix_seconds REAL,
        last_ending_launch INTEGER,
        model_name TEXT,
        version TEXT,
        committed_unix_seconds REAL NOT NULL,
        process_boot_id TEXT,
        process_pid INTEGER,
        process_start_ticks INTEGER,
        launch_has_served INTEGER NOT NULL DEFAULT 0,
        url TEXT,
        is_discovered INTEGER NOT NULL DEFAULT 0,
        is_wanted INTEGER NOT NULL DEFAULT 1,
        is_forgotten INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE counters (
        server TEXT NOT NULL,
        counter TEXT NOT NULL,
        key TEXT NOT NULL,
        value NUMERIC NOT NULL,
        PRIMARY KEY (server, counter, key)
    ) WITHOUT ROWID;
    CREATE TABLE launches (
        server TEXT NOT NULL,
        number INTEGER NOT NULL,
        start_seconds REAL,
        first_seen_unix_seconds REAL NOT NULL,
        has_served INTEGER NOT NULL,
        ended_unix_seconds REAL,
        end_state TEXT,
        end_reason TEXT,
        end_rule INTEGER,
        end_evidence TEXT,
        end_exit_code INTEGER,
        end_signal INTEGER,
        process_boot_id TEXT,
        process_pid INTEGER,
        process_start_ticks INTEGER,
        PRIMARY KEY (server, number)
    ) WITHOUT ROWID;
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        server TEXT NOT NULL,
        at_unix_seconds REAL NOT NULL,
        from_phase TEXT NOT NULL,
        to_phase TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        launch_number INTEGER
    );
    CREATE INDEX transitions_by_server ON transitions (server, id);
    PRAGMA application_id = 1984719969;
    PRAGMA user_version = 2;
"""

SCHEMA_3 = """
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    CREATE TABLE servers (
        server TEXT NOT NULL PRIMARY KEY,
        phase TEXT NOT NULL,
        reason TEXT,
        has_served INTEGER NOT NULL,
        newest_start_seconds REAL,
        is_load_balanced INTEGER NOT NULL,
        budget_limit INTEGER NOT NULL,
        budget_remaining INTEGER NOT NULL,
        is_limit_reached INTEGER NOT NULL,
        maintenance_until_unix_seconds REAL,
        entered_unix_seconds REAL,
        last_ending_launch INTEGER,
        model_name TEXT,
        version TEXT,
        committed_unix_seconds REAL NOT NULL,
        process_boot_id TEXT,
        process_pid INTEGER,
        process_start_ticks INTEGER,
        launch_has_served INTEGER NOT NULL DEFAULT 0,
        url TEXT,
        is_discovered INTEGER NOT NULL DEFAULT 0,
        is_wanted INTEGER NOT NULL DEFAULT 1,
        is_forgotten INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE counters (
        server TEXT NOT NULL,
        counter TEXT NOT NULL,
        key TEXT NOT NULL,
        value NUMERIC NOT NULL,
        PRIMARY KEY (server, counter, key)
    ) WITHOUT ROWID;
    CREATE TABLE launches (
        server TEXT NOT NULL,
        number INTEGER NOT NULL,
        start_seconds REAL,
        first_seen_unix_seconds REAL NOT NULL,
        has_served INTEGER NOT NULL,
        ended_unix_seconds REAL,
        end_state TEXT,
        end_reason TEXT,
        end_rule INTEGER,
        end_evidence TEXT,
        end_exit_code INTEGER,
        end_signal INTEGER,
        process_boot_id TEXT,
        process_pid INTEGER,
        process_start_ticks INTEGER,
        end_holder TEXT,
        end_log TEXT,
        PRIMARY KEY (server, number)
    ) WITHOUT ROWID;
    CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        server TEXT NOT NULL,
        at_unix_seconds REAL NOT NULL,
        from_phase TEXT NOT NULL,
        to_phase TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        launch_number INTEGER
    );
    CREATE INDEX transitions_by_server ON transitions (server, id);
    PRAGMA application_id = 1984719969;
    PRAGMA user_version = 3;
"""

ROWS_1 = """
    INSERT INTO servers VALUES (
        'llama', 'ready', 'engine_died', 1, 1699999994.5, 0, 3, 1, 0, NULL,
        1699999997.5, 4, 'tiny', '0.32.0', 1700000000
    );
    INSERT INTO launches VALUES
        ('llama', 4, 1699999998.75, 1700000000, 0, 1700000000, 'crashed', 'signal', 5,
         '["it died"]', NULL, 9),
        ('llama', 5, 1699999998.75, 1700000000, 0, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL);
"""
ROWS_2 = """
    INSERT INTO servers VALUES (
        'llama', 'ready', 'engine_died', 1, 1699999994.5, 0, 3, 1, 0, NULL,
        1699999997.5, 4, 'tiny', '0.32.0', 1700000000,
        'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567, 1, 'http://127.0.0.1:8000', 1, 0, 0
    );
    INSERT INTO launches VALUES
        ('llama', 4, 1699999998.75, 1700000000, 0, 1700000000, 'crashed', 'signal', 5,
         '["it died"]', NULL, 9, 'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567),
        ('llama', 5, 1699999998.75, 1700000000, 0, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL, 'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567);
"""
ROWS_3 = """
    INSERT INTO servers VALUES (
        'llama', 'ready', 'engine_died', 1, 1699999994.5, 0, 3, 1, 0, NULL,
        1699999997.5, 4, 'tiny', '0.32.0', 1700000000,
        'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567, 1, 'http://127.0.0.1:8000', 1, 0, 0
    );
    INSERT INTO launches VALUES
        ('llama', 4, 1699999998.75, 1700000000, 0, 1700000000, 'crashed', 'signal', 5,
         '["it died"]', NULL, 9, 'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567,
         'PID 7', '["ERROR no port"]'),
        ('llama', 5, 1699999998.75, 1700000000, 0, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL, 'a0e1d2c3-0000-4000-8000-000000000000', 4242, 1234567, NULL, NULL);
"""
ROWS = """
    INSERT INTO counters VALUES
        ('llama', 'launches', '', 5),
        ('llama', 'restarts', 'outside', 5),
        ('llama', 'crashes', 'gpu_oom', 5),
        ('llama', 'transitions', 'running>crashed', 5),
        ('llama', 'last_crash_unix_seconds', 'gpu_oom', 1700000005);
    INSERT INTO transitions VALUES
        (1, 'llama', 1700000000, 'ready', 'crashed', 'signal', 'killed by KILL', 4);
"""


@dataclass(frozen=True)
class OldFile:
    """The database of an older agent, and what it knew of the server llama."""

    version: int
    statements: str
    memory: Memory
    process: ProcessId | None = values.PROCESS

    @property
    def history(self) -> History:
        """Its launches: the last is still there, the one before crashed."""
        launches = [replace(values.launch(number), process=self.process) for number in (5, 4)]
        return History(
            transitions=(values.transition(4),),
            launches=(
                LaunchRecord(launches[0], None),
                LaunchRecord(launches[1], self.memory.last_ending),
            ),
        )


ENDING = values.ending(4)
OLD_FILES = (
    OldFile(
        1,
        SCHEMA_1 + ROWS_1,
        replace(values.memory(5), process=None, launch_has_served=False, last_ending=ENDING),
        process=None,
    ),
    OldFile(
        2,
        SCHEMA_2 + ROWS_2,
        replace(values.discovered(5), last_ending=ENDING),
    ),
    OldFile(
        3,
        SCHEMA_3 + ROWS_3,
        replace(
            values.discovered(5),
            last_ending=replace(ENDING, holder="PID 7", log=("ERROR no port",)),
        ),
    ),
)


@pytest.fixture(params=OLD_FILES, ids=lambda old: f"schema {old.version}")
def old(request: pytest.FixtureRequest) -> OldFile:
    old: OldFile = request.param
    return old


@pytest.fixture
def old_file(old: OldFile, state_dir: Path) -> Path:
    """The database of an older agent."""
    state_dir.mkdir()
    path = state_dir / "history.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(old.statements + ROWS)
    return path


def columns(path: Path) -> dict[str, set[str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in connection.execute("SELECT name FROM pragma_table_list")]
        found = {
            name: {tuple(row)[1:5] for row in connection.execute(f"PRAGMA table_info({name})")}
            for name in tables
            if not name.startswith("sqlite_")
        }
    return {"version": {version}, **found}


async def test_everything_that_was_in_it_is_still_there(old, old_file, open_store, state_dir):
    store = await open_store()
    assert await store.recall("llama") == old.memory
    assert await store.history("llama") == old.history
    assert await store.recall_discovered() == ({} if old.version == 1 else {"llama": old.memory})
    assert store.status.is_up
    assert set(store.dropped.values()) == {0}
    assert {path.name for path in state_dir.iterdir()} == {
        "history.sqlite",
        "history.sqlite-wal",
        "lock",
    }


async def test_what_comes_new_is_kept_in_it(old, old_file, open_store):
    store = await open_store()
    newest = replace(
        values.discovered(6),
        load_history=values.loads(),
        is_goal_up=False,
        chosen_model="org/other",
    )
    ending = replace(values.ending(6), holder="PID 8", log=("ERROR",), bundle="/evidence/6")
    await store.commit("llama", newest, ending=ending, launch=values.launch(6))
    await store.close()
    store = await open_store()
    assert await store.recall_discovered() == {"llama": newest}
    history = await store.history("llama")
    assert history.launches == (LaunchRecord(values.launch(6), ending), *old.history.launches)


async def test_it_is_as_a_new_file_then(old_file, open_store, tmp_path):
    for store in (await open_store(), await open_store(tmp_path / "new")):
        await store.close()
    assert columns(old_file) == columns(tmp_path / "new" / "history.sqlite")


def test_it_is_migrated_in_one_transaction(old, old_file, monkeypatch):
    before = columns(old_file)
    added = {**schema._ADDED_COLUMNS, 4: {"launches": ("end_bundle", "end_bundle")}}
    monkeypatch.setattr(schema, "_ADDED_COLUMNS", added)
    connection = sqlite3.connect(old_file, isolation_level=None)
    with contextlib.closing(connection), pytest.raises(sqlite3.OperationalError, match="duplicate"):
        schema._migrate(connection, old.version)
    assert columns(old_file) == before


async def test_a_disk_that_is_full_leaves_it_as_it_was(
    old, old_file, open_store, monkeypatch, quick_retry
):
    before = columns(old_file)

    def full(*_arguments):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(schema, "_migrate", full)
        store = await open_store()
        assert not store.status.is_up
        assert "Free some space" in store.status.detail
        await store.close()
    assert columns(old_file) == before
    assert await (await open_store()).recall("llama") == old.memory


async def test_one_with_other_columns_is_moved_aside(old_file, open_store, state_dir, caplog):
    with contextlib.closing(sqlite3.connect(old_file)) as connection:
        connection.execute("ALTER TABLE servers ADD COLUMN mood TEXT")
    store = await open_store()
    assert await store.recall("llama") is None
    assert "has other columns" in caplog.text
    assert (state_dir / f"history.sqlite.corrupt-{values.NOW:.0f}").exists()
