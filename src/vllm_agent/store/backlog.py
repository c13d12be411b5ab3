"""What was committed and is not on disk yet: the newest memories, and a bounded queue of rows."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from vllm_agent.store.bounds import MAX_SERVERS, MAX_UNWRITTEN_LOGS, MAX_UNWRITTEN_ROWS
from vllm_agent.store.rows import EndingRow, HistoryRows, LaunchRow, TransitionRow

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from vllm_agent.store.rows import HistoryRow, MemoryRows


class Batch(NamedTuple):
    """Everything unwritten at one moment; one transaction.

    `through` is the number of the last addition it holds.
    """

    through: int
    memories: Mapping[str, MemoryRows]
    rows: tuple[HistoryRow, ...]


class Backlog:
    """Keeps additions until a batch that holds them is confirmed; rows beyond the bound are lost.

    Lost rows and lost log lines are counted in `dropped`. A memory is only ever replaced by a newer
    one.
    """

    def __init__(self, dropped: Counter[str]) -> None:
        self._dropped = dropped
        self._memories: dict[str, MemoryRows] = {}
        self._rows: deque[HistoryRow] = deque()
        self._added = 0
        self._confirmed = 0
        self._rows_taken = 0

    def __bool__(self) -> bool:
        return bool(self._memories or self._rows)

    def add(self, memory: MemoryRows, rows: Sequence[HistoryRow] = ()) -> int:
        """Keep one commit; its number is for `is_confirmed`."""
        self._added += 1
        self._memories[memory.memory.server] = memory
        self._rows.extend(rows)
        while len(self._rows) > MAX_UNWRITTEN_ROWS:
            self._rows.popleft()
            self._rows_taken = max(0, self._rows_taken - 1)
            self._dropped["store_write"] += 1
        if any(_has_log(row) for row in rows):
            self._bound_logs()
        if len(self._memories) > MAX_SERVERS:
            del self._memories[next(iter(self._memories))]
            self._dropped["store_write"] += 1
        return self._added

    def _bound_logs(self) -> None:
        logs = [
            (place, row)
            for place, row in enumerate(self._rows)
            if isinstance(row, EndingRow) and row.end_log is not None
        ]
        for place, row in logs[:-MAX_UNWRITTEN_LOGS]:
            self._rows[place] = row._replace(end_log=None)
            self._dropped["store_log"] += 1

    def is_confirmed(self, number: int) -> bool:
        """Whether that addition is on disk."""
        return number <= self._confirmed

    def take(self) -> Batch:
        """Everything unwritten; it stays here until it is confirmed."""
        self._rows_taken = len(self._rows)
        return Batch(self._added, dict(self._memories), tuple(self._rows))

    def confirm(self, batch: Batch) -> None:
        """Forget what is on disk now: the batch that was taken last."""
        self._confirmed = batch.through
        for _ in range(self._rows_taken):
            self._rows.popleft()
        self._rows_taken = 0
        for server, memory in batch.memories.items():
            if self._memories.get(server) is memory:
                del self._memories[server]

    def abandon(self) -> int:
        """Give up everything that is left; return and count how many rows are lost."""
        lost = len(self._memories) + len(self._rows)
        self._dropped["store_write"] += lost
        self._memories.clear()
        self._rows.clear()
        self._rows_taken = 0
        return lost

    def over(self, written: HistoryRows, server: str, limit: int) -> HistoryRows:
        """The history of `server`: what is `written` on disk, and what is still here."""
        rows = [row for row in self._rows if row.server == server]
        transitions = [row for row in reversed(rows) if isinstance(row, TransitionRow)]
        launches = {launch.number: (launch, ending) for launch, ending in written.launches}
        for row in rows:
            _apply(row, launches)
        newest_first = sorted(launches, reverse=True)
        return HistoryRows(
            transitions=[*transitions, *written.transitions][:limit],
            launches=[launches[number] for number in newest_first[:limit]],
        )


def _has_log(row: HistoryRow) -> bool:
    return isinstance(row, EndingRow) and row.end_log is not None


def _apply(row: HistoryRow, launches: dict[int, tuple[LaunchRow, EndingRow | None]]) -> None:
    """Do to `launches` what writing `row` will do to the table."""
    if isinstance(row, TransitionRow):
        return
    launch, ending = launches.get(row.number, (None, None))
    if isinstance(row, LaunchRow):
        is_same = launch and launch.first_seen_unix_seconds == row.first_seen_unix_seconds
        launches[row.number] = (row, ending if is_same else None)
    elif launch is not None:
        launches[row.number] = (launch, row)
