"""Servers that discovery found: the next agent knows them, whether they run or not."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace

from tests.store import values
from vllm_agent.store.bounds import PRUNE_AFTER_ROWS, RETENTION_SECONDS


async def test_there_are_none_at_first(open_store):
    assert await (await open_store()).recall_discovered() == {}


async def test_discovered_servers_outlive_the_store_newest_first(open_store, clock):
    store = await open_store()
    for name in ("c", "a", "b"):
        clock.seconds += 1
        await store.commit(name, values.discovered())
    await store.commit("configured", values.memory())
    await store.commit("left", values.discovered(is_forgotten=True))
    for _ in range(2):
        found = await store.recall_discovered()
        assert found == {name: values.discovered() for name in ("c", "a", "b")}
        assert list(found) == ["b", "a", "c"]
        await store.close()
        store = await open_store()


async def test_they_come_with_their_last_ending(open_store):
    ended = replace(values.discovered(), last_ending=values.ending())
    store = await open_store()
    await store.commit("llama", ended, ending=values.ending(), launch=values.launch())
    await store.close()
    assert await (await open_store()).recall_discovered() == {"llama": ended}


async def test_what_this_process_committed_counts(open_store):
    store = await open_store()
    await store.commit("llama", values.discovered(1))
    await store.commit("qwen", values.discovered(1))
    await store.close()
    store = await open_store()
    await store.commit("llama", values.discovered(2))
    await store.commit("qwen", values.discovered(is_forgotten=True))
    assert await store.recall_discovered() == {"llama": values.discovered(2)}


async def test_a_commit_beats_a_recall_that_is_on_its_way(open_store):
    store = await open_store()
    await store.commit("llama", values.discovered(1))
    await store.close()
    store = await open_store()
    found, _ = await asyncio.gather(
        store.recall_discovered(), store.commit("llama", values.discovered(is_forgotten=True))
    )
    assert found == {}


async def test_one_that_came_back_is_known_again(open_store):
    store = await open_store()
    await store.commit("llama", values.discovered(1, is_forgotten=True))
    await store.close()
    store = await open_store()
    assert await store.recall("llama") == values.discovered(1, is_forgotten=True)
    await store.commit("llama", values.discovered(2))
    assert await store.recall_discovered() == {"llama": values.discovered(2)}


async def test_a_memory_of_nonsense_is_left_out_and_those_of_others_are_not_read(
    open_store, state_dir
):
    store = await open_store()
    await store.commit("llama", values.discovered())
    await store.commit("qwen", values.discovered())
    await store.commit("left", values.discovered(is_forgotten=True))
    await store.commit("configured", values.memory())
    await store.close()
    with sqlite3.connect(state_dir / "history.sqlite") as connection:
        connection.execute("UPDATE servers SET budget_limit = 'no ' || server")
        connection.execute("UPDATE servers SET budget_limit = 3 WHERE server = 'llama'")
    connection.close()
    store = await open_store()
    assert await store.recall_discovered() == {"llama": values.discovered()}
    assert store.dropped["store_value"] == 1


async def test_without_the_disk_this_process_still_knows_its_own(open_store, state_dir):
    state_dir.touch()  # a file where the directory should be
    store = await open_store()
    await store.commit("llama", values.discovered())
    assert await store.recall_discovered() == {"llama": values.discovered()}
    assert not store.status.is_up


async def test_one_that_was_forgotten_ages_out_while_the_agent_runs(open_store, clock):
    """Any user can invent names: a year of them must not stay because the agent never ended."""
    store = await open_store()
    await store.commit("left", values.discovered(is_forgotten=True))
    await store.commit("stopped", values.discovered())
    clock.seconds += RETENTION_SECONDS + 1
    for _ in range(PRUNE_AFTER_ROWS):
        store._backlog.add(store._rows_of("stopped"), [])
    await store.commit("llama", values.memory(), values.transition())
    await store.close()
    store = await open_store()
    assert await store.recall("left") is None
    assert await store.recall("stopped") == values.discovered()
