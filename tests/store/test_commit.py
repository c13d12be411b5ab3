"""What was committed comes back, in this process and in the next."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store import values
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Tally
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Instant, Stage
from vllm_agent.store import History, LaunchRecord, Store
from vllm_agent.store.bounds import MAX_HOLDER_BYTES, MAX_LOG_BYTES, MAX_TEXT_BYTES
from vllm_agent.store.database import Database


async def test_an_unknown_server_has_no_past(open_store):
    store = await open_store()
    assert await store.recall("llama") is None
    assert await store.history("llama") == History()
    assert await store.last_launch("llama") is None


async def test_memory_outlives_the_store(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(1))
    await store.commit("llama", values.memory(2, Phase.CRASHED))
    await store.close()
    assert await (await open_store()).recall("llama") == values.memory(2, Phase.CRASHED)


async def test_history_outlives_the_store_newest_first(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(1), values.transition(1), None, values.launch(1))
    await store.commit("llama", values.memory(2), None, values.ending(1), values.launch(2))
    await store.commit("llama", values.memory(2), values.transition(2, detail="second"))
    expected = History(
        transitions=(values.transition(2, detail="second"), values.transition(1)),
        launches=(
            LaunchRecord(values.launch(2), None),
            LaunchRecord(values.launch(1), values.ending(1)),
        ),
    )
    assert await store.history("llama") == expected
    await store.close()
    reopened = await open_store()
    assert await reopened.history("llama") == expected
    assert await reopened.last_launch("llama") == expected.launches[0]
    assert await reopened.history("qwen") == History()


async def test_an_ending_without_a_launch_is_not_remembered(open_store):
    store = await open_store()
    await store.commit("llama", replace(values.memory(), last_ending=values.ending(7)))
    await store.close()
    assert await (await open_store()).recall("llama") == values.memory()


async def test_a_name_of_any_length_and_with_any_characters_is_remembered(open_store):
    store = await open_store()
    hostile = replace(values.memory(), model_name="\udcff" + "\u20ac" * 100_000)
    await store.commit("llama", hostile)
    await store.close()
    name = (await (await open_store()).recall("llama")).model_name
    assert name.startswith("\\udcff\u20ac")
    assert MAX_TEXT_BYTES - 3 < len(name.encode()) <= MAX_TEXT_BYTES


async def test_a_url_of_any_length_is_cut(open_store):
    store = await open_store()
    await store.commit("llama", replace(values.discovered(), url="http://" + "h" * 10_000))
    await store.close()
    assert len((await (await open_store()).recall("llama")).url) == MAX_TEXT_BYTES


async def test_a_launch_whose_process_is_known_later(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(), launch=replace(values.launch(), process=None))
    await store.commit("llama", values.memory(), launch=values.launch())
    assert (await store.last_launch("llama")).launch.process == values.PROCESS


async def test_history_is_limited(open_store):
    store = await open_store()
    for number in range(1, 6):
        await store.commit(
            "llama",
            values.memory(number),
            values.transition(number),
            launch=values.launch(number),
        )
    history = await store.history("llama", limit=2)
    assert [t.launch_number for t in history.transitions] == [5, 4]
    assert [record.launch.number for record in history.launches] == [5, 4]
    assert await store.history("llama", limit=-1) == History()


async def test_a_launch_is_updated_and_keeps_its_ending(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(), ending=values.ending(), launch=values.launch())
    await store.commit("llama", values.memory(), launch=values.launch(has_served=True))
    record = await store.last_launch("llama")
    assert record == LaunchRecord(values.launch(has_served=True), values.ending())


async def test_an_ending_told_again_replaces_what_was_told_before(open_store):
    """Its evidence is kept in a file some time after it was judged."""
    store = await open_store()
    await store.commit("llama", values.memory(), ending=values.ending(), launch=values.launch())
    await store.commit("llama", values.memory(2), launch=values.launch(2))
    kept = replace(values.ending(), bundle="/var/lib/vllm-agent/evidence/llama-1.json")
    await store.commit("llama", replace(values.memory(2), last_ending=kept), ending=kept)
    expected = (LaunchRecord(values.launch(2), None), LaunchRecord(values.launch(), kept))
    assert (await store.history("llama")).launches == expected
    await store.close()
    store = await open_store()
    assert (await store.history("llama")).launches == expected
    assert (await store.recall("llama")).last_ending == kept
    assert set(store.dropped.values()) == {0}


async def test_what_an_operator_asked_of_a_server_outlives_the_agent(open_store):
    asked = replace(values.memory(), is_goal_up=False, chosen_model="org/other")
    store = await open_store()
    await store.commit("llama", asked)
    await store.close()
    assert await (await open_store()).recall("llama") == asked


async def test_another_launch_of_the_same_number_does_not_inherit_an_ending(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(), ending=values.ending(), launch=values.launch())
    other = values.launch(at=values.NOW + 60)
    await store.commit("llama", values.memory(), launch=other)
    assert await store.last_launch("llama") == LaunchRecord(other, None)


async def test_an_ending_without_its_launch_is_counted(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(), ending=values.ending(7))
    assert store.dropped["store_ending"] == 1
    assert (await store.history("llama")).launches == ()


async def test_instants_come_back_without_their_monotonic_part(open_store):
    store = await open_store()
    at = Instant(monotonic_seconds=5.0, unix_seconds=values.NOW)
    await store.commit("llama", values.memory(), replace(values.transition(), at=at))
    (transition,) = (await store.history("llama")).transitions
    assert transition.at == Instant(monotonic_seconds=0.0, unix_seconds=values.NOW)


async def test_a_commit_beats_a_recall_that_is_on_its_way(open_store):
    store = await open_store()
    await store.commit("llama", values.memory(1))
    await store.close()
    store = await open_store()
    recalled, _ = await asyncio.gather(
        store.recall("llama"), store.commit("llama", values.memory(2))
    )
    assert recalled == values.memory(2)
    assert await store.recall("llama") == values.memory(2)


async def test_no_counter_is_ever_lowered(open_store):
    """An agent that could not read its counters in time commits smaller ones."""
    store = await open_store()
    await store.commit("llama", values.memory(50))
    smaller = replace(
        values.memory(3),
        tally=Tally(launches=3, crashes=MappingProxyType({Reason.NCCL: 1})),
    )
    await store.commit("llama", smaller)
    await store.close()
    recalled = await (await open_store()).recall("llama")
    kept = values.tally(50)
    assert recalled.tally == replace(
        kept, crashes=MappingProxyType({**kept.crashes, Reason.NCCL: 1})
    )


async def test_no_load_is_ever_uncounted(open_store):
    """An agent that could not read its counters in time commits fewer, and newer, loads."""
    store = await open_store()
    await store.commit("llama", replace(values.memory(), load_history=values.loads(9)))
    first = LoadHistory(
        counts=(1, 0, 0, 0, 0, 0),
        sum_seconds=20.0,
        last_seconds=20.0,
        last_stage_seconds=MappingProxyType({Stage.INIT: 20.0}),
        longest_stage_seconds=MappingProxyType({Stage.INIT: 50.0}),
    )
    await store.commit("llama", replace(values.memory(), load_history=first))
    await store.close()
    recalled = (await (await open_store()).recall("llama")).load_history
    assert recalled.counts == (1, 7, 0, 0, 0, 1)
    assert recalled.sum_seconds == values.loads(9).sum_seconds
    assert recalled.last_seconds == 20.0
    assert recalled.last_stage_seconds == first.last_stage_seconds
    assert recalled.longest_stage_seconds == {Stage.INIT: 50.0, Stage.COMPILE: 7000.0}


async def test_an_agent_that_saw_no_load_keeps_what_the_last_one_took(open_store):
    store = await open_store()
    await store.commit("llama", replace(values.memory(), load_history=values.loads()))
    await store.commit("llama", values.memory())
    await store.close()
    assert (await (await open_store()).recall("llama")).load_history == values.loads()


async def test_texts_are_cut_and_counted(open_store):
    store = await open_store()
    await store.commit(
        "llama",
        values.memory(),
        values.transition(detail="ä" * 5000),
        values.ending(evidence=("a" * 4000, "b" * 4000, "c")),
        values.launch(),
    )
    history = await store.history("llama")
    assert history.transitions[0].detail == "ä" * 2048
    assert history.launches[0].ending.evidence == ("a" * 4000, "b" * 96)
    assert store.dropped["store_text"] == 3


async def test_of_a_log_the_last_lines_are_kept(open_store):
    store = await open_store()
    lines = tuple(f"{number} " + "x" * 998 for number in range(10, 20))
    ending = replace(values.ending(), holder="h" * 2000, log=lines)
    await store.commit("llama", values.memory(), ending=ending, launch=values.launch())
    (record,) = (await store.history("llama")).launches
    assert record.ending.log == (lines[1][: MAX_LOG_BYTES - 8 * 1001], *lines[2:])
    assert len(record.ending.holder) == MAX_HOLDER_BYTES
    assert store.dropped["store_text"] == 3


async def test_log_lines_of_a_server_that_left_are_only_in_the_history(open_store):
    """They are large, and a memory is kept of every server that ever was."""
    store = await open_store()
    ending = replace(values.ending(), log=("ERROR",))
    memory = replace(values.discovered(is_forgotten=True), last_ending=ending)
    await store.commit("llama", memory, ending=ending, launch=values.launch())
    assert await store.recall("llama") == replace(memory, last_ending=values.ending())
    assert (await store.last_launch("llama")).ending == ending


async def test_text_that_is_no_utf8_is_kept_readable(open_store):
    store = await open_store()
    await store.commit("m\udcff", values.memory(), values.transition(detail="x\udc80\0y"))
    await store.close()
    reopened = await open_store()
    assert await reopened.recall("m\udcff") == values.memory()
    (transition,) = (await reopened.history("m\udcff")).transitions
    assert transition.detail == "x\\udc80\0y"


async def test_a_value_that_sqlite_refuses_costs_only_its_row(open_store):
    store = await open_store()
    await asyncio.gather(
        store.commit("llama", values.memory(), values.transition(number=2**70)),
        store.commit("qwen", values.memory(), values.transition()),
    )
    assert store.status.is_up
    assert store.dropped["store_write"] == 1
    assert (await store.history("llama")).transitions == ()
    assert (await store.history("qwen")).transitions == (values.transition(),)


async def test_the_files_are_private(open_store, state_dir):
    await (await open_store()).commit("llama", values.memory())
    assert stat.S_IMODE(state_dir.stat().st_mode) & ~0o750 == 0
    names = {path.name for path in state_dir.iterdir()}
    assert names == {"history.sqlite", "history.sqlite-wal", "lock"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in state_dir.iterdir())


async def test_status_tells_the_last_success(open_store, clock):
    store = await open_store()
    clock.seconds = 12.5
    await store.commit("llama", values.memory())
    assert store.status.is_up
    assert store.status.detail == ""
    assert store.status.duration_seconds == 0.0
    assert store.status.last_success_unix_seconds == values.NOW + 12.5


async def test_a_commit_after_close_is_kept_in_memory_only(open_store):
    store = await open_store()
    await store.close()
    await store.close()
    await store.commit("llama", values.memory(), values.transition())
    assert await store.recall("llama") == values.memory()
    assert (await store.history("llama")).transitions == (values.transition(),)


async def test_close_writes_what_a_cancelled_commit_left(open_store):
    store = await open_store()
    commits = [asyncio.create_task(store.commit(f"s{n}", values.memory(n))) for n in range(20)]
    await asyncio.sleep(0)
    for commit in commits:
        commit.cancel()
    await asyncio.gather(*commits, return_exceptions=True)
    await store.close()
    reopened = await open_store()
    assert [await reopened.recall(f"s{n}") for n in range(20)] == [
        values.memory(n) for n in range(20)
    ]


@settings(max_examples=25, deadline=None)
@given(
    memory=values.memories,
    launch=values.launches,
    ending=values.endings,
    transition=values.transitions,
    is_ending_last=st.booleans(),
)
def test_any_value_comes_back_as_it_was(memory, launch, ending, transition, is_ending_last):
    ending = replace(ending, launch_number=launch.number)
    memory = replace(memory, last_ending=ending if is_ending_last else None)
    remembered = memory
    if is_ending_last and memory.is_forgotten:
        remembered = replace(memory, last_ending=replace(ending, log=()))

    async def round_trip(state_dir: Path) -> None:
        store = await Store.open(state_dir, clock=values.Clock())
        await store.commit("llama", memory, transition, ending, launch)
        await store.close()
        store = await Store.open(state_dir, clock=values.Clock())
        try:
            assert await store.recall("llama") == remembered
            assert await store.history("llama") == History(
                (transition,), (LaunchRecord(launch, ending),)
            )
            assert set(store.dropped.values()) == {0}
        finally:
            await store.close()

    with TemporaryDirectory() as directory:
        asyncio.run(round_trip(Path(directory)))


async def test_a_burst_of_commits_shares_transactions(open_store, monkeypatch):
    servers = 1000
    store = await open_store()
    batches = []
    write = Database.write

    def counting(database, batch):
        batches.append(batch)
        write(database, batch)

    monkeypatch.setattr(Database, "write", counting)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(
        *(
            store.commit(f"s{n}", values.memory(n), values.transition(), launch=values.launch())
            for n in range(servers)
        )
    )
    burst_seconds = loop.time() - started
    assert len(batches) <= 3
    durations = []
    for n in range(200):
        started = loop.time()
        await store.commit("s0", values.memory(n), values.transition())
        durations.append(loop.time() - started)
    print(f"\n{servers} servers at once: {burst_seconds * 1000:.0f} ms")
    print(f"one commit: median {sorted(durations)[100] * 1000:.2f} ms")
    print(f"one commit: p99 {sorted(durations)[197] * 1000:.2f} ms")
    assert store.status.is_up
    assert burst_seconds < 2.0
    assert sorted(durations)[100] < 0.02
