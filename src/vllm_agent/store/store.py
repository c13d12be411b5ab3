"""The store as the agent sees it: awaited, bounded in time, never in the way.

Whatever is committed is first kept in memory, then written by the store's own thread, everything
that waits in one transaction. While the disk fails, memory is all there is; it is tried again at
intervals, and what was kept is written then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from vllm_agent.store.backlog import Backlog
from vllm_agent.store.bounds import (
    CALL_DEADLINE_SECONDS,
    MAX_HISTORY_ROWS,
    MAX_SERVERS,
    RETRY_SECONDS,
)
from vllm_agent.store.directory import StateDirectoryInUse
from vllm_agent.store.faults import explain
from vllm_agent.store.history_file import HistoryFile
from vllm_agent.store.reading import RowReader
from vllm_agent.store.records import History, LaunchRecord, StoreStatus
from vllm_agent.store.rows import (
    HistoryRows,
    ending_row,
    launch_row,
    memory_rows,
    storable,
    transition_row,
)
from vllm_agent.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from vllm_agent.lifecycle.server_life import Ending, Launch, Memory, Transition
    from vllm_agent.observations import Instant
    from vllm_agent.store.backlog import Batch
    from vllm_agent.store.rows import HistoryRow, MemoryRows

_log = logging.getLogger("vllm_agent.store")
_Result = TypeVar("_Result")

DROPPED_KINDS: Final = (
    "store_write",  # rows that were never written
    "store_ending",  # endings of launches that are not in the history
    "store_text",  # texts cut to their bound
    "store_value",  # distinct values on disk that this version does not know
    "store_history",  # rows that a bound removed before their age did
    "store_log",  # endings that lost their log lines to a bound, and are kept themselves
)


class Store:
    """History and counters of all servers. Made by `open`, used from one event loop.

    Nothing here raises for a fault of the disk: `status` tells. A call takes at most
    `CALL_DEADLINE_SECONDS`, a commit that waits for another one twice that; while the store is down
    nothing waits.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], Instant]) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._dropped: Counter[str] = Counter()
        self._memories: dict[str, Memory] = {}
        self._backlog = Backlog(self._dropped)
        self._reader = RowReader(self._dropped)
        # Of its own: the store's thread counts there.
        self._dropped_by_file: Counter[str] = Counter()
        self._file = HistoryFile(state_dir, clock, self._dropped_by_file)
        self._worker = Worker("vllm-agent-store")
        self._in_flight: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._outage: str | None = None
        self._is_opening = True
        self._is_closed = False
        self._duration_seconds: float | None = None
        self._last_success_unix_seconds: float | None = None

    @classmethod
    async def open(cls, state_dir: Path, *, clock: Callable[[], Instant]) -> Store:
        """Open the history in `state_dir`, or begin one; in memory only where that is impossible.

        Raises:
            StateDirectoryInUse: another agent has this directory.
        """
        store = cls(state_dir, clock)
        first = store._start_write()
        try:
            await store._worker.wait(first, CALL_DEADLINE_SECONDS)
        except TimeoutError as error:
            store._begin_outage(error)
            return store
        finally:
            store._is_opening = False
        if isinstance(in_use := first.exception(), StateDirectoryInUse):
            await store.close()
            raise in_use
        return store

    @property
    def status(self) -> StoreStatus:
        """Whether commits reach the disk."""
        return StoreStatus(
            is_up=self._outage is None,
            detail=self._outage or "",
            duration_seconds=self._duration_seconds,
            last_success_unix_seconds=self._last_success_unix_seconds,
        )

    @property
    def dropped(self) -> Mapping[str, int]:
        """How much was left out since the store was opened, by kind; every kind is there."""
        return MappingProxyType(
            {kind: self._dropped[kind] + self._dropped_by_file[kind] for kind in DROPPED_KINDS}
        )

    async def recall(self, server: str) -> Memory | None:
        """What was last committed of `server`; None if nothing was, or the disk does not answer.

        The last ending of a server that left is without log lines: the history has them.
        """
        key = storable(server)
        if key not in self._memories:
            rows = await self._read(partial(self._file.memory, key))
            self._keep_read(() if rows is None else (rows,))
        return self._memories.get(key)

    async def recall_discovered(self) -> Mapping[str, Memory]:
        """What was last committed of each server that discovery found and that is not forgotten.

        The one that was committed last comes first. Without the disk, those of this process.
        """
        self._keep_read(await self._read(self._file.discovered) or ())
        return MappingProxyType(
            {
                key: memory
                for key, memory in reversed(self._memories.items())
                if memory.is_discovered and not memory.is_forgotten
            }
        )

    async def commit(
        self,
        server: str,
        memory: Memory,
        transition: Transition | None = None,
        ending: Ending | None = None,
        launch: Launch | None = None,
    ) -> None:
        """Replace the memory of `server` and add to its history, all or nothing.

        Returns once it is on disk, or once the disk failed: then it is kept and written later.
        """
        key = storable(server)
        self._keep(key, memory)
        rows: list[HistoryRow] = []
        if launch is not None:
            rows.append(launch_row(key, launch))
        if ending is not None:
            rows.append(ending_row(key, ending, self._dropped))
        if transition is not None:
            rows.append(transition_row(key, transition, self._dropped))
        number = self._backlog.add(self._rows_of(key), rows)
        await self._until_written(number)

    async def history(self, server: str, limit: int = 100) -> History:
        """The newest `limit` transitions and launches of `server`."""
        key = storable(server)
        bounded = max(0, min(limit, MAX_HISTORY_ROWS))
        written = await self._read(partial(self._file.history, key, bounded))
        return self._reader.history(self._backlog.over(written or HistoryRows(), key, bounded))

    async def last_launch(self, server: str) -> LaunchRecord | None:
        """The newest launch of `server`: numbers continue from it."""
        launches = (await self.history(server, limit=1)).launches
        return launches[0] if launches else None

    async def close(self) -> None:
        """Write what is left, if the disk answers, and let go of the directory."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        try:
            await self._finish()
        except TimeoutError as error:
            self._begin_outage(error)
        if lost := self._backlog.abandon():
            _log.error("%d rows of history could not be written and are lost", lost)
        self._worker.stop()

    async def _finish(self) -> None:
        if self._in_flight is not None:
            await self._worker.wait(self._in_flight, CALL_DEADLINE_SECONDS)
        # Twice: a database that the first write had to begin anew is told the rest by the second.
        for _ in range(2):
            if self._backlog:
                await self._worker.wait(self._start_write(), CALL_DEADLINE_SECONDS)
        await self._worker.wait(self._worker.submit(self._file.close), CALL_DEADLINE_SECONDS)

    def _keep_read(self, read: Iterable[MemoryRows]) -> None:
        for rows in read:
            key = rows.memory.server
            # It may have been committed meanwhile: that is newer.
            if key not in self._memories and (memory := self._reader.memory(rows)) is not None:
                self._keep(key, memory)

    def _keep(self, key: str, memory: Memory) -> None:
        if memory.last_ending is not None and memory.is_forgotten:
            memory = replace(memory, last_ending=replace(memory.last_ending, log=()))
        self._memories.pop(key, None)
        self._memories[key] = memory
        if len(self._memories) > MAX_SERVERS:
            del self._memories[next(iter(self._memories))]

    def _rows_of(self, key: str) -> MemoryRows:
        return memory_rows(key, self._memories[key], self._clock().unix_seconds)

    async def _until_written(self, number: int) -> None:
        while not (self._backlog.is_confirmed(number) or self._outage or self._is_closed):
            try:
                write = self._in_flight or self._start_write()
                await self._worker.wait(write, CALL_DEADLINE_SECONDS)
            except TimeoutError as error:
                self._begin_outage(error)

    def _start_write(self) -> asyncio.Future[None]:
        batch = self._backlog.take()
        write = self._worker.submit(partial(self._file.write, batch))
        write.add_done_callback(partial(self._settle, batch, self._clock()))
        self._in_flight = write
        return write

    def _settle(self, batch: Batch, started: Instant, write: asyncio.Future[None]) -> None:
        """Runs when a write has ended, before those who wait for it, and even if nobody does."""
        now = self._clock()
        self._in_flight = None
        self._duration_seconds = now.since(started)
        error = write.exception()
        if error is not None:
            if not (self._is_opening and isinstance(error, StateDirectoryInUse)):
                self._begin_outage(error)
            return
        self._backlog.confirm(batch)
        self._last_success_unix_seconds = now.unix_seconds
        self._end_outage()
        self._restore_lost_memories()
        if self._is_closed:
            return
        if self._backlog:
            self._start_write()
        if self._file.is_prune_due:
            self._submit_prune()

    def _restore_lost_memories(self) -> None:
        """A database that was begun anew knows none of the servers of this process."""
        if self._file.is_begun_anew:
            self._file.is_begun_anew = False
            for key in self._memories:
                self._backlog.add(self._rows_of(key))

    def _submit_prune(self) -> None:
        known = frozenset(key for key, memory in self._memories.items() if not memory.is_forgotten)
        prune = self._worker.submit(partial(self._file.prune, known))
        prune.add_done_callback(_log_failed_prune)

    async def _read(self, read: Callable[[], _Result]) -> _Result | None:
        if self._is_closed or self._worker.is_hung:
            return None
        call = self._worker.submit(read)
        try:
            await self._worker.wait(call, CALL_DEADLINE_SECONDS)
            result = call.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent goes on without
            self._begin_outage(error)
            return None
        finally:
            call.cancel()
        if self._file.is_begun_anew and self._in_flight is None:
            self._start_write()
        return result

    def _begin_outage(self, error: BaseException) -> None:
        detail = explain(error, self._state_dir)
        if self._outage is None:
            _log.warning("history is kept in memory only: %s", detail)
        self._outage = detail
        if self._retry is None and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._worker.is_idle:
            self._start_write()
        else:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _end_outage(self) -> None:
        if self._outage is not None:
            self._outage = None
            _log.info("history is on disk again in %s", self._state_dir)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


def _log_failed_prune(prune: asyncio.Future[None]) -> None:
    if not prune.cancelled() and (error := prune.exception()) is not None:
        _log.warning("old history could not be removed: %s", error)
