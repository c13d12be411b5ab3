"""Reading and writing rows through one connection. Only the store's thread comes here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.store import schema
from vllm_agent.store.faults import UNSTORABLE_ERRORS
from vllm_agent.store.rows import (
    LAST_LOAD,
    CounterRow,
    EndingRow,
    HistoryRows,
    LaunchRow,
    MemoryRow,
    MemoryRows,
    TransitionRow,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_agent.store.backlog import Batch
    from vllm_agent.store.rows import HistoryRow

_REPLACE_MEMORY: Final = """
    INSERT OR REPLACE INTO servers (
        server, phase, reason, has_served, newest_start_seconds, is_load_balanced, budget_limit,
        budget_remaining, is_limit_reached, maintenance_until_unix_seconds, entered_unix_seconds,
        last_ending_launch, model_name, version, process_boot_id, process_pid, process_start_ticks,
        launch_has_served, url, is_discovered, is_wanted, is_forgotten, is_goal_up, chosen_model,
        committed_unix_seconds
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# An agent that could not read its counters, because the disk came too late, must not lower them.
_RAISE_COUNTER: Final = """
    INSERT INTO counters (server, counter, key, value) VALUES (?, ?, ?, ?)
    ON CONFLICT (server, counter, key) DO UPDATE SET value = excluded.value
    WHERE excluded.value > value"""
_REMOVE_LAST_LOAD: Final = "DELETE FROM counters WHERE server = ? AND counter IN (?, ?)"
_ADD_LAST_LOAD: Final = "INSERT INTO counters (server, counter, key, value) VALUES (?, ?, ?, ?)"
_REMOVE_OTHER_LAUNCH: Final = """
    DELETE FROM launches
    WHERE server = :server AND number = :number
    AND first_seen_unix_seconds IS NOT :first_seen_unix_seconds"""
_UPSERT_LAUNCH: Final = """
    INSERT INTO launches (
        server, number, start_seconds, first_seen_unix_seconds, has_served, process_boot_id,
        process_pid, process_start_ticks
    ) VALUES (
        :server, :number, :start_seconds, :first_seen_unix_seconds, :has_served, :process_boot_id,
        :process_pid, :process_start_ticks
    )
    ON CONFLICT (server, number) DO UPDATE
    SET start_seconds = excluded.start_seconds, has_served = excluded.has_served,
        process_boot_id = excluded.process_boot_id, process_pid = excluded.process_pid,
        process_start_ticks = excluded.process_start_ticks"""
_ATTACH_ENDING: Final = """
    UPDATE launches
    SET ended_unix_seconds = :ended_unix_seconds, end_state = :end_state,
        end_reason = :end_reason, end_rule = :end_rule, end_evidence = :end_evidence,
        end_exit_code = :end_exit_code, end_signal = :end_signal,
        end_holder = :end_holder, end_log = :end_log, end_bundle = :end_bundle
    WHERE server = :server AND number = :number"""
_APPEND_TRANSITION: Final = """
    INSERT INTO transitions (
        server, at_unix_seconds, from_phase, to_phase, reason, detail, launch_number
    ) VALUES (
        :server, :at_unix_seconds, :from_phase, :to_phase, :reason, :detail, :launch_number
    )"""
_READ_MEMORY: Final = """
    SELECT server, phase, reason, has_served, newest_start_seconds, is_load_balanced, budget_limit,
        budget_remaining, is_limit_reached, maintenance_until_unix_seconds, entered_unix_seconds,
        last_ending_launch, model_name, version, process_boot_id, process_pid, process_start_ticks,
        launch_has_served, url, is_discovered, is_wanted, is_forgotten, is_goal_up, chosen_model,
        committed_unix_seconds
    FROM servers WHERE server = ?"""
_READ_DISCOVERED: Final = """
    SELECT server FROM servers WHERE is_discovered AND NOT is_forgotten
    ORDER BY committed_unix_seconds"""
_READ_COUNTERS: Final = "SELECT server, counter, key, value FROM counters WHERE server = ?"
_READ_TRANSITIONS: Final = """
    SELECT server, at_unix_seconds, from_phase, to_phase, reason, detail, launch_number
    FROM transitions WHERE server = ? ORDER BY id DESC LIMIT ?"""
_READ_ENDING: Final = """
    SELECT server, number, ended_unix_seconds, end_state, end_reason, end_rule, end_evidence,
        end_exit_code, end_signal, end_holder, end_log, end_bundle
    FROM launches WHERE server = ? AND number = ? AND end_state IS NOT NULL"""
_READ_LAUNCHES: Final = """
    SELECT server, number, start_seconds, first_seen_unix_seconds, has_served, process_boot_id,
        process_pid, process_start_ticks,
        server, number, ended_unix_seconds, end_state, end_reason, end_rule, end_evidence,
        end_exit_code, end_signal, end_holder, end_log, end_bundle
    FROM launches WHERE server = ? ORDER BY number DESC LIMIT ?"""


class Database:
    """history.sqlite, open; `is_new` tells whether it was created just now.

    Every method raises sqlite3.Error; `schema.connect` says what opening raises.
    """

    def __init__(self, path: Path, dropped: Counter[str]) -> None:
        self.connection, self.is_new = schema.connect(path)
        self._path = path
        self._dropped = dropped
        self._inode = path.stat().st_ino

    def is_in_place(self) -> bool:
        """Whether the file is still the one under its name: somebody may have deleted it."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Write the log into the file and let go of it."""
        self.connection.close()

    def write(self, batch: Batch) -> None:
        """Write all of `batch` in one transaction; a value that SQLite refuses is left out."""
        try:
            self._write(batch.memories.values(), batch.rows)
        except UNSTORABLE_ERRORS:
            self._write_singly(batch)

    def _write_singly(self, batch: Batch) -> None:
        for row in batch.rows:
            self._write_or_drop((), (row,))
        for memory in batch.memories.values():
            self._write_or_drop((memory,), ())

    def _write_or_drop(self, memories: Iterable[MemoryRows], rows: Iterable[HistoryRow]) -> None:
        try:
            self._write(memories, rows)
        except UNSTORABLE_ERRORS:
            self._dropped["store_write"] += 1

    def _write(self, memories: Iterable[MemoryRows], rows: Iterable[HistoryRow]) -> None:
        with schema.transaction(self.connection):
            homeless = sum(not self._write_row(row) for row in rows)
            for memory in memories:
                self.connection.execute(_REPLACE_MEMORY, memory.memory)
                self.connection.executemany(_RAISE_COUNTER, memory.counters)
                if memory.last_load:
                    self.connection.execute(_REMOVE_LAST_LOAD, (memory.memory.server, *LAST_LOAD))
                    self.connection.executemany(_ADD_LAST_LOAD, memory.last_load)
        self._dropped["store_ending"] += homeless

    def _write_row(self, row: HistoryRow) -> bool:
        """Whether there was a place for it: an ending needs its launch."""
        values = row._asdict()
        if isinstance(row, LaunchRow):
            self.connection.execute(_REMOVE_OTHER_LAUNCH, values)
            self.connection.execute(_UPSERT_LAUNCH, values)
        elif isinstance(row, EndingRow):
            return self.connection.execute(_ATTACH_ENDING, values).rowcount > 0
        else:
            self.connection.execute(_APPEND_TRANSITION, values)
        return True

    def memory(self, server: str) -> MemoryRows | None:
        """The memory of `server`, None if it has none."""
        row = self.connection.execute(_READ_MEMORY, (server,)).fetchone()
        if row is None:
            return None
        memory = MemoryRow(*row)
        counters = self.connection.execute(_READ_COUNTERS, (server,))
        key = (server, memory.last_ending_launch)
        ending = self.connection.execute(_READ_ENDING, key).fetchone()
        return MemoryRows(
            memory=memory,
            counters=tuple(CounterRow(*counter) for counter in counters),
            last_ending=None if ending is None else EndingRow(*ending),
        )

    def discovered(self) -> list[MemoryRows]:
        """The memory of every server that discovery found and that is not forgotten, oldest first.

        Oldest is what was committed longest ago.
        """
        names = self.connection.execute(_READ_DISCOVERED).fetchall()
        memories = (self.memory(name) for (name,) in names)
        return [memory for memory in memories if memory is not None]

    def history(self, server: str, limit: int) -> HistoryRows:
        """The newest `limit` transitions and launches of `server`."""
        transitions = self.connection.execute(_READ_TRANSITIONS, (server, limit))
        launches = self.connection.execute(_READ_LAUNCHES, (server, limit))
        return HistoryRows(
            transitions=[TransitionRow(*row) for row in transitions],
            launches=[_launch_and_ending(row) for row in launches],
        )


def _launch_and_ending(row: tuple[object, ...]) -> tuple[LaunchRow, EndingRow | None]:
    width = len(LaunchRow._fields)
    launch = LaunchRow._make(row[:width])
    ending = EndingRow._make(row[width:])
    has_ended = ending.end_state is not None
    return launch, ending if has_ended else None
