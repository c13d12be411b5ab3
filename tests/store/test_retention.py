"""History is bounded in age, in number and in size, and a server keeps its newest launches."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.store import values
from vllm_agent.store import retention, schema
from vllm_agent.store.bounds import (
    KEPT_LAUNCHES,
    KEPT_LOGS,
    MAX_LAUNCHES,
    MAX_TRANSITIONS,
    PRUNE_AFTER_ROWS,
    PRUNE_INTERVAL_SECONDS,
    RETENTION_SECONDS,
    SHRINK_ABOVE_BYTES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_agent.store import Store

DAY_SECONDS = 86400.0


async def commit_launches(store: Store, server: str, count: int, *, at: float = values.NOW) -> None:
    for number in range(1, count + 1):
        await store.commit(
            server,
            values.memory(number),
            values.transition(number, at=at),
            values.ending(number, at=at),
            values.launch(number, at=at),
        )


def prune(state_dir: Path, *, known: Iterable[str] = (), at: float = values.NOW) -> int:
    """What the store's thread does, on a closed store; returns what bounds removed."""
    dropped: Counter[str] = Counter()
    connection, _ = schema.connect(state_dir / "history.sqlite")
    with contextlib.closing(connection):
        retention.prune(connection, frozenset(known), at, dropped)
    return dropped["store_history"]


@pytest.fixture
def reopen_pruned(open_store, state_dir):
    """Closes a store, prunes its file and opens it again."""

    async def reopen(store, **arguments):
        await store.close()
        prune(state_dir, **arguments)
        return await open_store()

    return reopen


def test_a_day_is_always_kept():
    assert RETENTION_SECONDS >= DAY_SECONDS


async def test_young_history_stays(open_store, reopen_pruned):
    store = await open_store()
    await commit_launches(store, "llama", 30)
    store = await reopen_pruned(store, at=values.NOW + RETENTION_SECONDS)
    history = await store.history("llama")
    assert len(history.launches) == len(history.transitions) == 30


async def test_old_history_goes_but_for_the_newest_launches(open_store, reopen_pruned):
    store = await open_store()
    await store.commit("llama", values.memory(), values.transition(None))
    await commit_launches(store, "llama", 30)
    store = await reopen_pruned(store, at=values.NOW + RETENTION_SECONDS + 1, known={"llama"})
    history = await store.history("llama")
    newest = [*range(30, 30 - KEPT_LAUNCHES, -1)]
    assert [record.launch.number for record in history.launches] == newest
    assert [t.launch_number for t in history.transitions] == newest
    assert await store.recall("llama") == values.memory(30)


async def test_a_quiet_server_with_few_launches_keeps_all(open_store, reopen_pruned):
    store = await open_store()
    await commit_launches(store, "llama", 3)
    store = await reopen_pruned(store, at=values.NOW + 365 * DAY_SECONDS, known={"llama"})
    history = await store.history("llama")
    assert len(history.launches) == len(history.transitions) == 3


async def test_each_server_has_its_own_limits(open_store, state_dir):
    store = await open_store()
    await commit_launches(store, "llama", MAX_LAUNCHES + 5)
    await commit_launches(store, "qwen", 2)
    for _ in range(MAX_TRANSITIONS):
        await store.commit("llama", values.memory(), values.transition(7))
    await store.close()
    prune(state_dir)
    store = await open_store()
    llama = await store.history("llama", limit=2000)
    assert len(llama.launches) == MAX_LAUNCHES
    assert len(llama.transitions) == MAX_TRANSITIONS
    assert {t.launch_number for t in llama.transitions} == {7}
    qwen = await store.history("qwen")
    assert len(qwen.launches) == len(qwen.transitions) == 2


async def commit_logs(store: Store, server: str, count: int, *, at: float = values.NOW) -> None:
    for number in range(1, count + 1):
        ending = replace(values.ending(number, at=at + number), log=(f"ERROR {number}",))
        await store.commit(server, values.memory(), None, ending, values.launch(number))


async def numbers_with_log(store: Store, server: str) -> list[int]:
    launches = (await store.history(server)).launches
    return [r.launch.number for r in launches if r.ending and r.ending.log]


async def test_log_lines_stay_with_the_newest_endings_of_a_server(open_store, reopen_pruned):
    store = await open_store()
    await commit_logs(store, "llama", KEPT_LOGS + 5)
    await commit_logs(store, "qwen", 2)
    store = await reopen_pruned(store)
    assert await numbers_with_log(store, "llama") == [*range(KEPT_LOGS + 5, 5, -1)]
    assert await numbers_with_log(store, "qwen") == [2, 1]
    llama = await store.history("llama")
    assert all(record.ending for record in llama.launches)
    assert len(llama.launches) == KEPT_LOGS + 5


async def test_log_lines_of_all_servers_are_bounded(open_store, state_dir, monkeypatch):
    monkeypatch.setattr("vllm_agent.store.retention.MAX_LOGS", 3)
    store = await open_store()
    await commit_logs(store, "old", 5, at=values.NOW - 100)
    await commit_logs(store, "new", 2)
    await store.close()
    dropped: Counter[str] = Counter()
    connection, _ = schema.connect(state_dir / "history.sqlite")
    with contextlib.closing(connection):
        retention.prune(connection, frozenset(), values.NOW, dropped)
    assert dropped == {"store_history": 0, "store_log": 4}
    store = await open_store()
    assert await numbers_with_log(store, "new") == [2, 1]
    assert await numbers_with_log(store, "old") == [5]


async def test_a_server_that_is_gone_ages_out(open_store, reopen_pruned):
    store = await open_store()
    await commit_launches(store, "gone", 2)
    await commit_launches(store, "llama", 2)
    store = await reopen_pruned(store, at=values.NOW + RETENTION_SECONDS, known={"llama"})
    assert await store.recall("gone") == values.memory(2)
    store = await reopen_pruned(store, at=values.NOW + RETENTION_SECONDS + 1, known={"llama"})
    assert await store.recall("gone") is None
    assert (await store.history("gone")).launches == ()
    assert await store.recall("llama") == values.memory(2)


async def test_what_is_removed_at_a_time_is_bounded(open_store, state_dir, monkeypatch):
    monkeypatch.setattr("vllm_agent.store.retention.MAX_PRUNED_SERVERS", 1)
    monkeypatch.setattr("vllm_agent.store.retention.MAX_PRUNED_TRANSITIONS", 1)
    store = await open_store()
    for name in ("gone", "lost"):
        await store.commit(name, values.memory())
    for _ in range(3):
        await store.commit("llama", values.memory(), values.transition(None))
    left = []
    for _ in range(3):
        await store.close()
        prune(state_dir, at=values.NOW + RETENTION_SECONDS + 1, known={"llama"})
        store = await open_store()
        names = [n for n in ("gone", "lost") if await store.recall(n) is not None]
        left.append((len(names), len((await store.history("llama")).transitions)))
    assert left == [(1, 2), (0, 1), (0, 0)]


async def test_names_are_bounded_and_the_oldest_go(open_store, clock, reopen_pruned, monkeypatch):
    monkeypatch.setattr("vllm_agent.store.retention.MAX_SERVERS", 3)
    store = await open_store()
    for name in "abcde":
        clock.seconds += 1
        await store.commit(name, values.memory())
    store = await reopen_pruned(store)
    kept = [name for name in "abcde" if await store.recall(name) is not None]
    assert kept == ["c", "d", "e"]


async def test_memory_of_names_is_bounded(open_store, monkeypatch):
    monkeypatch.setattr("vllm_agent.store.store.MAX_SERVERS", 3)
    store = await open_store()
    for number in range(5):
        await store.commit(f"s{number}", values.memory(number))
    assert len(store._memories) == 3
    assert await store.recall("s0") == values.memory(0)


async def test_the_file_has_a_size(open_store, state_dir, monkeypatch):
    monkeypatch.setattr("vllm_agent.store.retention.SHRINK_ABOVE_BYTES", 300_000)
    store = await open_store()
    await store.commit("old", values.memory(), launch=values.launch(at=1.0))
    for number in range(200):
        await store.commit(
            "llama",
            values.memory(),
            values.transition(number, detail="x" * 4000),
            launch=values.launch(number),
        )
    await store.close()
    path = state_dir / "history.sqlite"
    assert path.stat().st_size > 800_000
    assert prune(state_dir) > 100
    assert path.stat().st_size < 320_000 < SHRINK_ABOVE_BYTES
    store = await open_store()
    newest = [t.launch_number for t in (await store.history("llama")).transitions]
    assert newest[:50] == [*range(199, 149, -1)]
    assert await store.recall("old") is not None


@pytest.mark.parametrize("is_by_rows", [True, False])
async def test_pruning_comes_by_itself(open_store, clock, monkeypatch, is_by_rows):
    monkeypatch.setattr("vllm_agent.store.retention.MAX_TRANSITIONS", 5)
    store = await open_store()
    for _ in range(PRUNE_AFTER_ROWS - 1):
        await store.commit("llama", values.memory(), values.transition())
    assert store.dropped["store_history"] == 0
    if is_by_rows:
        await store.commit("llama", values.memory(), values.transition())
    else:
        clock.seconds += PRUNE_INTERVAL_SECONDS
        await store.commit("llama", values.memory())
    # Reads queue behind it in the same thread.
    history = await store.history("llama", limit=1000)
    assert len(history.transitions) == 5
    assert store.dropped["store_history"] == PRUNE_AFTER_ROWS - 5 - (not is_by_rows)


async def test_a_prune_that_fails_is_no_outage(open_store, clock, monkeypatch, caplog):
    def failing(*_):
        raise OSError("no")

    monkeypatch.setattr(retention, "prune", failing)
    store = await open_store()
    clock.seconds += PRUNE_INTERVAL_SECONDS
    await store.commit("llama", values.memory())
    await store.history("llama")
    assert store.status.is_up
    assert [r.getMessage() for r in caplog.records] == ["old history could not be removed: no"]
