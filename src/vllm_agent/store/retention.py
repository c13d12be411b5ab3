"""What of the history may go, and when. Only the store's thread comes here.

Order of the bounds: a gone server ages out whole; a server keeps its newest launches with their
transitions whatever their age, and nothing beyond its own limits; log lines stay with the newest
endings only; the size of the file beats all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.store.bounds import (
    KEPT_LAUNCHES,
    KEPT_LOGS,
    MAX_LAUNCHES,
    MAX_LOGS,
    MAX_PRUNED_SERVERS,
    MAX_PRUNED_TRANSITIONS,
    MAX_SERVERS,
    MAX_TRANSITIONS,
    RETENTION_SECONDS,
    SHRINK_ABOVE_BYTES,
    VACUUM_PAGES,
)
from vllm_agent.store.schema import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections import Counter
    from collections.abc import Set as AbstractSet

_AGED_LAUNCHES: Final = """
    DELETE FROM launches WHERE (server, number) IN (
        SELECT server, number FROM (
            SELECT server, number, coalesce(ended_unix_seconds, first_seen_unix_seconds) AS seen,
                row_number() OVER (PARTITION BY server ORDER BY number DESC) AS place
            FROM launches
        )
        WHERE seen < :oldest AND place > :kept_launches
    )"""
_SURPLUS_LAUNCHES: Final = """
    DELETE FROM launches WHERE (server, number) IN (
        SELECT server, number FROM (
            SELECT server, number,
                row_number() OVER (PARTITION BY server ORDER BY number DESC) AS place
            FROM launches
        )
        WHERE place > :max_launches
    )"""
_SURPLUS_LOGS: Final = """
    UPDATE launches SET end_log = NULL WHERE (server, number) IN (
        SELECT server, number FROM (
            SELECT server, number,
                row_number() OVER (PARTITION BY server ORDER BY number DESC) AS place,
                row_number() OVER (ORDER BY ended_unix_seconds DESC) AS place_of_all
            FROM launches WHERE end_log IS NOT NULL
        )
        WHERE place > :kept_logs OR place_of_all > :max_logs
    )"""
# Where a server has fewer launches than are kept, the inner query is NULL and nothing goes.
_AGED_TRANSITIONS: Final = """
    DELETE FROM transitions WHERE id IN (
        SELECT id FROM transitions WHERE at_unix_seconds < :oldest AND (
            launch_number IS NULL OR launch_number < (
                SELECT number FROM launches WHERE launches.server = transitions.server
                ORDER BY number DESC LIMIT 1 OFFSET :kept_launches - 1
            )
        )
        LIMIT :max_pruned
    )"""
_SURPLUS_TRANSITIONS: Final = """
    DELETE FROM transitions WHERE id IN (
        SELECT id FROM (
            SELECT id, row_number() OVER (PARTITION BY server ORDER BY id DESC) AS place
            FROM transitions
        )
        WHERE place > :max_transitions
    )"""
_OLDEST_TENTH_OF_TRANSITIONS: Final = """
    DELETE FROM transitions
    WHERE id <= (SELECT min(id) + (max(id) - min(id)) / 10 FROM transitions)"""
_OLDEST_TENTH_OF_LAUNCHES: Final = """
    DELETE FROM launches
    WHERE first_seen_unix_seconds <= (
        SELECT min(first_seen_unix_seconds)
            + (max(first_seen_unix_seconds) - min(first_seen_unix_seconds)) / 10
        FROM launches
    )"""
_REMOVE_SERVER: Final = (
    "DELETE FROM servers WHERE server = ?",
    "DELETE FROM counters WHERE server = ?",
    "DELETE FROM launches WHERE server = ?",
    "DELETE FROM transitions WHERE server = ?",
)


def prune(
    connection: sqlite3.Connection,
    known_servers: AbstractSet[str],
    now_unix_seconds: float,
    dropped: Counter[str],
) -> None:
    """Enforce every bound; rows that go before their age are counted in `dropped`.

    `known_servers` are those that this process watches: their memory stays, however long they were
    quiet.
    """
    oldest = now_unix_seconds - RETENTION_SECONDS
    aged = {
        "oldest": oldest,
        "kept_launches": KEPT_LAUNCHES,
        "max_pruned": MAX_PRUNED_TRANSITIONS,
    }
    with transaction(connection):
        dropped["store_history"] += _remove_servers(connection, known_servers, oldest)
        connection.execute(_AGED_TRANSITIONS, aged)
        connection.execute(_AGED_LAUNCHES, aged)
        surplus = connection.execute(_SURPLUS_TRANSITIONS, {"max_transitions": MAX_TRANSITIONS})
        dropped["store_history"] += surplus.rowcount
        surplus = connection.execute(_SURPLUS_LAUNCHES, {"max_launches": MAX_LAUNCHES})
        dropped["store_history"] += surplus.rowcount
        surplus = connection.execute(_SURPLUS_LOGS, {"kept_logs": KEPT_LOGS, "max_logs": MAX_LOGS})
        dropped["store_log"] += surplus.rowcount
    shrink(connection, dropped)


def _remove_servers(
    connection: sqlite3.Connection, known_servers: AbstractSet[str], oldest: float
) -> int:
    """Remove servers that are gone and old, and the oldest beyond the bound; count the latter."""
    servers = connection.execute(
        "SELECT server, committed_unix_seconds FROM servers ORDER BY committed_unix_seconds"
    ).fetchall()
    gone = [name for name, at in servers if at < oldest and name not in known_servers]
    gone = gone[:MAX_PRUNED_SERVERS]
    removed = set(gone)
    left = [name for name, _ in servers if name not in removed]
    surplus = left[: max(0, len(left) - MAX_SERVERS)]
    for statement in _REMOVE_SERVER:
        connection.executemany(statement, [(name,) for name in gone + surplus])
    return len(surplus)


def shrink(connection: sqlite3.Connection, dropped: Counter[str]) -> None:
    """Remove the oldest history of all servers until the file has room, and give pages back."""
    while _used_bytes(connection) > SHRINK_ABOVE_BYTES:
        with transaction(connection):
            removed = connection.execute(_OLDEST_TENTH_OF_TRANSITIONS).rowcount
            removed += connection.execute(_OLDEST_TENTH_OF_LAUNCHES).rowcount
        dropped["store_history"] += removed
        if not removed:
            break
    # As a script: a single `execute` gives back one page only.
    connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")


def _used_bytes(connection: sqlite3.Connection) -> int:
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    used_bytes: int = (pages - free_pages) * page_bytes
    return used_bytes
