"""The tables of history.sqlite, and how a connection to them is set up."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from vllm_agent.store.bounds import BUSY_TIMEOUT_SECONDS, MAX_FILE_BYTES, WAL_BYTES
from vllm_agent.store.faults import NewerSchemaError, UnusableFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SCHEMA_VERSION: Final = 4
"""In PRAGMA user_version; a file with a greater one is left alone, an older one is migrated."""

APPLICATION_ID: Final = 0x764C6C61
"""In PRAGMA application_id, so that no other program's database is taken for ours: "vLla"."""

_TABLES: Final = {
    "servers": """(
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
        is_forgotten INTEGER NOT NULL DEFAULT 0,
        is_goal_up INTEGER,
        chosen_model TEXT
    ) WITHOUT ROWID""",
    "counters": """(
        server TEXT NOT NULL,
        counter TEXT NOT NULL,
        key TEXT NOT NULL,
        value NUMERIC NOT NULL,
        PRIMARY KEY (server, counter, key)
    ) WITHOUT ROWID""",
    "launches": """(
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
        end_bundle TEXT,
        PRIMARY KEY (server, number)
    ) WITHOUT ROWID""",
    "transitions": """(
        id INTEGER PRIMARY KEY,
        server TEXT NOT NULL,
        at_unix_seconds REAL NOT NULL,
        from_phase TEXT NOT NULL,
        to_phase TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        launch_number INTEGER
    )""",
}
_ADDED_COLUMNS: Final[Mapping[int, Mapping[str, tuple[str, ...]]]] = {
    2: {
        "servers": (
            "process_boot_id",
            "process_pid",
            "process_start_ticks",
            "launch_has_served",
            "url",
            "is_discovered",
            "is_wanted",
            "is_forgotten",
        ),
        "launches": ("process_boot_id", "process_pid", "process_start_ticks"),
    },
    3: {"launches": ("end_holder", "end_log")},
    4: {"servers": ("is_goal_up", "chosen_model"), "launches": ("end_bundle",)},
}
"""What a version added to the tables of the one before it: nothing else ever changes."""

_INDEX: Final = "CREATE INDEX transitions_by_server ON transitions (server, id)"


def connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open the database, or create it; return also whether it was created.

    Only the calling thread can use the connection.

    Raises:
        UnusableFileError: the file is some other database.
        NewerSchemaError: the file is of a newer agent.
        sqlite3.Error, OSError: it cannot be opened, or is damaged.
    """
    _create_private(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        _configure(connection)
        version = _version(connection)
        is_new = version == 0
        if is_new:
            # Has to come before anything is written, and would itself write into an old file.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _begin_log(connection)
        if is_new:
            _create_tables(connection)
            version = SCHEMA_VERSION
        _check(connection, version)
        if version < SCHEMA_VERSION:
            _migrate(connection, version)
    except BaseException:
        connection.close()
        raise
    return connection, is_new


def _create_private(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    # Some file systems have no modes.
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o600)
    os.close(descriptor)


def _version(connection: sqlite3.Connection) -> int:
    """The version of its schema, 0 where nothing is in it yet. Raises for what is not ours."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not (application_id or version or objects):
        return 0
    if application_id != APPLICATION_ID or version < 1:
        raise UnusableFileError("it is not a database of vllm-agent")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"history.sqlite has schema {version}, this vllm-agent knows {SCHEMA_VERSION}"
        )
    return int(version)


def _configure(connection: sqlite3.Connection) -> None:
    """Settings of the connection that change nothing in the file: it may not be ours."""
    # Bytes that are no UTF-8 cost a character, not the whole answer.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    # Before the first read. Exclusive: no -shm file, which a full disk has no room for, and no
    # reader from outside that could keep the log from being checkpointed.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA temp_store = MEMORY")


def _begin_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}").fetchall()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA max_page_count = {MAX_FILE_BYTES // page_bytes}").fetchall()


def _create_tables(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        for name, definition in _TABLES.items():
            connection.execute(f"CREATE TABLE {name} {definition}")
        connection.execute(_INDEX)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check(connection: sqlite3.Connection, version: int) -> None:
    """Raises UnusableFileError for what is not in order. Takes 0.1 s for a full file."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise UnusableFileError(f"it is damaged: {verdict}")
    for name, definition in _TABLES.items():
        newer = {column for table, column in _columns_after(version) if table == name}
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
        if found != _columns(definition).keys() - newer:
            raise UnusableFileError(f"its table {name} has other columns")


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file of an older agent up to date. Its rows are not rewritten, however many."""
    with transaction(connection):
        for table, column in _columns_after(version):
            declaration = _columns(_TABLES[table])[column]
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _columns_after(version: int) -> Iterator[tuple[str, str]]:
    """Each table and column that versions after `version` added."""
    for newer in range(version + 1, SCHEMA_VERSION + 1):
        for table, columns in _ADDED_COLUMNS[newer].items():
            for column in columns:
                yield table, column


def _columns(definition: str) -> dict[str, str]:
    """The columns of a table and their declarations."""
    lines = (line.strip().rstrip(",").partition(" ") for line in definition.splitlines()[1:-1])
    return {name: declaration for name, _, declaration in lines if name != "PRIMARY"}


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back after some errors, a full disk for one.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
