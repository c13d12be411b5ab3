"""history.sqlite over its whole life: opened, replaced when damaged, reopened when deleted.

Only the store's thread comes here; any of this may block.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING, TypeVar

from vllm_agent.store import retention
from vllm_agent.store.bounds import PRUNE_AFTER_ROWS, PRUNE_INTERVAL_SECONDS
from vllm_agent.store.database import Database
from vllm_agent.store.directory import DirectoryLock, set_aside
from vllm_agent.store.faults import UnusableFileError, is_damaged, is_full

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from vllm_agent.observations import Instant
    from vllm_agent.store.backlog import Batch
    from vllm_agent.store.rows import HistoryRows, MemoryRows

_log = logging.getLogger("vllm_agent.store")
_Result = TypeVar("_Result")


class HistoryFile:
    """The database and the lock of its directory, once they can be had.

    `is_begun_anew` is true from the moment an empty database was begun until the caller, who may
    know what was in the old one, clears it.
    """

    def __init__(
        self, state_dir: Path, clock: Callable[[], Instant], dropped: Counter[str]
    ) -> None:
        self.is_begun_anew = False
        self._state_dir = state_dir
        self._path = state_dir / "history.sqlite"
        self._clock = clock
        self._dropped = dropped
        self._lock: DirectoryLock | None = None
        self._database: Database | None = None
        self._rows_since_prune = 0
        self._pruned_monotonic_seconds = clock().monotonic_seconds

    @property
    def is_prune_due(self) -> bool:
        """Whether enough was written, or enough time went by, for `prune`."""
        age_seconds = self._clock().monotonic_seconds - self._pruned_monotonic_seconds
        return self._rows_since_prune >= PRUNE_AFTER_ROWS or age_seconds >= PRUNE_INTERVAL_SECONDS

    def write(self, batch: Batch) -> None:
        """Write `batch`, into a new database if there is none or the old one is damaged.

        Raises:
            StateDirectoryInUse: another agent has the directory.
            NewerSchemaError: a newer agent's history is there.
            sqlite3.Error, OSError: it cannot be written now.
        """
        self._with_database(lambda database: self._write(database, batch))
        self._rows_since_prune += len(batch.rows)

    def _write(self, database: Database, batch: Batch) -> None:
        try:
            database.write(batch)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            # Full may be our own bound: make room and try once more.
            retention.shrink(database.connection, self._dropped)
            database.write(batch)

    def memory(self, server: str) -> MemoryRows | None:
        """The memory of `server`. Raises as `write` does."""
        return self._with_database(lambda database: database.memory(server))

    def discovered(self) -> list[MemoryRows]:
        """The memories of discovered servers, oldest first. Raises as `write` does."""
        return self._with_database(lambda database: database.discovered())

    def history(self, server: str, limit: int) -> HistoryRows:
        """The history of `server`. Raises as `write` does."""
        return self._with_database(lambda database: database.history(server, limit))

    def prune(self, known_servers: AbstractSet[str]) -> None:
        """Enforce the bounds of the file. Raises as `write` does."""
        now = self._clock()
        # First, so that a prune that fails is not tried again with every commit.
        self._rows_since_prune = 0
        self._pruned_monotonic_seconds = now.monotonic_seconds
        self._with_database(
            lambda database: retention.prune(
                database.connection, known_servers, now.unix_seconds, self._dropped
            )
        )

    def close(self) -> None:
        """Close the database and let another agent have the directory."""
        self._close_database()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_database(self) -> None:
        if self._database is not None:
            # What cannot be closed properly is recovered from its log when it is opened again.
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _with_database(self, use: Callable[[Database], _Result]) -> _Result:
        try:
            return use(self._open())
        except (sqlite3.DatabaseError, UnusableFileError) as error:
            if not is_damaged(error):
                if not is_full(error):
                    # The device may come back under the name only, as a network mount does.
                    self._close_database()
                raise
            self._set_aside(error)
            return use(self._open())

    def _open(self) -> Database:
        if self._database is not None and not self._database.is_in_place():
            # The lock may have been deleted with it.
            self.close()
        if self._lock is None:
            self._lock = DirectoryLock(self._state_dir)
        if self._database is None:
            self._database = Database(self._path, self._dropped)
            self.is_begun_anew = self.is_begun_anew or self._database.is_new
        return self._database

    def _set_aside(self, error: Exception) -> None:
        self._close_database()
        aside = set_aside(self._path, self._clock().unix_seconds)
        _log.error(
            "history.sqlite cannot be used (%s): kept as %s, a new history begins", error, aside
        )
