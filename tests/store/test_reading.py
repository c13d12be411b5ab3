"""Files that a newer agent, or another program, wrote into: what is not known is left out."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from types import MappingProxyType

import pytest

from tests.store import values
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Stage
from vllm_agent.store import LaunchRecord


@pytest.fixture
async def change(open_store, state_dir):
    """Changes the file of an agent that ran before, then opens the store again."""
    store = await open_store()
    await store.commit(
        "llama",
        replace(values.memory(5), load_history=values.loads(9)),
        values.transition(),
        replace(values.ending(), holder="PID 7", log=("ERROR",)),
        values.launch(),
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
    assert (await store.recall("llama")).process is None
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


@pytest.mark.parametrize("garbage", ["'no json'", "x'ff'", "5", "'{}'", f"'{'[' * 5000}'"])
async def test_a_log_of_nonsense_costs_only_the_log(change, garbage):
    store = await change("UPDATE launches SET end_log = GARBAGE".replace("GARBAGE", garbage))
    (record,) = (await store.history("llama")).launches
    assert record.ending == replace(values.ending(), holder="PID 7")
    assert store.dropped["store_value"] == 1


@pytest.mark.parametrize("garbage", ["'many'", "-1", "9e999", "x'ff'"])
async def test_a_load_history_of_nonsense_costs_only_the_value(change, garbage):
    spoil = "UPDATE counters SET value = GARBAGE WHERE ".replace("GARBAGE", garbage)
    store = await change(
        f"{spoil} key IN ('init', '30.0', '300.0') OR counter = 'last_load_seconds'",
        "INSERT INTO counters VALUES ('llama', 'longest_load_stage_seconds', 'nap', 5)",
        "INSERT INTO counters VALUES ('llama', 'longest_load_stage_seconds', 'none', 5)",
        "INSERT INTO counters VALUES ('llama', 'loads_up_to_seconds', 'long', 5)",
    )
    assert (await store.recall("llama")).load_history == replace(
        values.loads(9),
        last_seconds=None,
        last_stage_seconds=MappingProxyType({Stage.LOAD_WEIGHTS: 5.0}),
        longest_stage_seconds=MappingProxyType({Stage.COMPILE: 7000.0}),
    )
    assert store.dropped["store_value"] in {4, 5}


async def test_counters_that_are_no_finite_number_leave_the_rest(change):
    store = await change("UPDATE counters SET value = 9e999 WHERE counter = 'crashes'")
    recalled = await store.recall("llama")
    assert recalled.tally == replace(values.tally(5), crashes=MappingProxyType({}))


@pytest.fixture
def other_bounds(monkeypatch):
    """An agent whose buckets of load durations are others, until it is undone."""
    with monkeypatch.context() as patch:
        for module in ("rows", "reading"):
            patch.setattr(f"vllm_agent.store.{module}.LOAD_BUCKETS_SECONDS", (10.0, 45.0, 300.0))
        yield patch


async def test_loads_counted_by_an_agent_with_other_buckets(other_bounds, open_store):
    """Each load stays counted, in the bucket of which it is known to be, however often it reads."""
    counts = (1, 2, 4, 8)
    store = await open_store()
    history = LoadHistory(counts=counts, sum_seconds=5000.0)
    await store.commit("llama", replace(values.memory(), load_history=history))
    other_bounds.undo()
    for _ in range(3):
        await store.close()
        store = await open_store()
        memory = await store.recall("llama")
        assert memory.load_history.counts == (1, 2, 4, 0, 0, 8)
        assert memory.load_history.sum_seconds == 5000.0
        # Bounds of 10 and of 45 s.
        assert store.dropped["store_value"] == 2
        await store.commit("llama", memory)


async def test_text_that_is_no_utf8_does_not_take_the_store_down(change):
    store = await change("UPDATE transitions SET detail = CAST(x'ff41' AS TEXT)")
    (transition,) = (await store.history("llama")).transitions
    assert transition.detail == "\ufffdA"
    assert store.status.is_up
