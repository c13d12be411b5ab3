"""Files that a newer agent, or another program, wrote into: what is not known is left out."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from types import MappingProxyType

import pytest

from tests.store import values
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.store import LaunchRecord


@pytest.fixture
async def change(open_store, state_dir):
    """Changes the file of an agent that ran before, then opens the store again."""
    store = await open_store()
    await store.commit(
        "llama", values.memory(5), values.transition(), values.ending(), values.launch()
    )
    await store.close()

    async def run(*statements):
        path = state_dir / "history.sqlite"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)
        return await open_store()

    return run


async def test_unknown_words_in_a_memory(change):
    store = await change("UPDATE servers SET phase = 'hibernating', reason = 'bored'")
    recalled = await store.recall("llama")
    assert recalled.phase is Phase.UNOBSERVED
    assert recalled.reason is Reason.UNKNOWN
    assert recalled.tally == values.tally(5)
    assert store.dropped["store_value"] == 2


async def test_unknown_counters_are_left_out_and_survive_on_disk(change, open_store):
    store = await change(
        "UPDATE counters SET key = 'bored' WHERE counter = 'crashes'",
        "INSERT INTO counters VALUES ('llama', 'transitions', 'running>bored', 2)",
        "INSERT INTO counters VALUES ('llama', 'transitions', 'nonsense', 2)",
        "INSERT INTO counters VALUES ('llama', 'naps', '', 2)",
    )
    recalled = await store.recall("llama")
    assert recalled.tally.crashes == MappingProxyType({})
    assert recalled.tally.transitions == values.tally(5).transitions
    assert store.dropped["store_value"] == 3
    await store.commit("llama", recalled)
    await store.close()
    store = await change("UPDATE counters SET key = 'nccl' WHERE key = 'bored'")
    assert (await store.recall("llama")).tally.crashes == MappingProxyType({Reason.NCCL: 5})


async def test_unknown_words_in_history_are_counted_once(change):
    store = await change(
        "UPDATE transitions SET to_phase = 'hibernating'",
        "UPDATE launches SET end_state = 'hibernating'",
    )
    for _ in range(3):
        history = await store.history("llama")
        assert history.transitions == ()
        assert history.launches == (LaunchRecord(values.launch(), None),)
    assert store.dropped["store_value"] == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE servers SET budget_limit = 'many'",
        "UPDATE servers SET entered_unix_seconds = 'long ago'",
        "UPDATE servers SET process_pid = 'many'",
        "UPDATE counters SET value = 'many' WHERE counter = 'launches'",
    ],
)
async def test_a_memory_of_nonsense_is_none(change, statement):
    store = await change(statement)
    assert await store.recall("llama") is None
    assert store.dropped["store_value"] == 1


async def test_a_process_of_which_not_all_is_known_is_none(change):
    store = await change(
        "UPDATE servers SET process_start_ticks = NULL",
        "UPDATE launches SET process_boot_id = NULL",
    )
    assert await store.recall("llama") == replace(values.memory(5), process=None, last_ending=None)
    (record,) = (await store.history("llama")).launches
    assert record.launch == replace(values.launch(), process=None)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE launches SET end_evidence = 'no json'",
        "UPDATE launches SET end_evidence = x'ff'",
        "UPDATE launches SET end_evidence = 5",
        "UPDATE launches SET end_rule = NULL",
    ],
)
async def test_an_ending_of_nonsense_is_none(change, statement):
    store = await change(statement)
    assert await store.last_launch("llama") == LaunchRecord(values.launch(), None)
    assert store.status.is_up


async def test_text_that_is_no_utf8_does_not_take_the_store_down(change):
    store = await change("UPDATE transitions SET detail = CAST(x'ff41' AS TEXT)")
    (transition,) = (await store.history("llama")).transitions
    assert transition.detail == "\ufffdA"
    assert store.status.is_up
