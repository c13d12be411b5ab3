"""Real second processes: one agent per directory, and nothing that was committed is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store import values
from vllm_agent.store import StateDirectoryInUse

COMMIT_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from tests.store import values
from vllm_agent.store import Store

async def main():
    store = await Store.open(Path(sys.argv[1]), clock=values.Clock())
    number = 0
    while True:
        number += 1
        await store.commit(
            "llama",
            values.memory(number),
            values.transition(number),
            launch=values.launch(number),
        )
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def other_agent(state_dir):
    """A process that commits launch after launch and says each that is committed."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMIT_UNTIL_KILLED, str(state_dir)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        yield process
        process.kill()


async def test_a_second_agent_is_refused_and_told_who_is_there(
    other_agent, open_store, state_dir, caplog
):
    other_agent.stdout.readline()
    with pytest.raises(StateDirectoryInUse) as refusal:
        await open_store()
    assert caplog.records == []
    assert refusal.value.pid == other_agent.pid
    assert str(refusal.value) == (
        f"the state directory {state_dir} is in use by another vllm-agent "
        f"(PID {other_agent.pid}): stop it, or give this one its own --state.dir"
    )


async def test_the_directory_is_free_again_after_close_and_after_death(
    other_agent, open_store, state_dir
):
    other_agent.stdout.readline()
    other_agent.kill()
    other_agent.wait()
    store = await open_store()
    assert (state_dir / "lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(StateDirectoryInUse):
        await open_store()
    await store.close()
    assert (await open_store()).status.is_up


async def test_a_lock_without_a_readable_pid(open_store, state_dir):
    await open_store()
    (state_dir / "lock").write_text("")
    with pytest.raises(StateDirectoryInUse, match="another vllm-agent: stop it") as refusal:
        await open_store()
    assert refusal.value.pid is None


@pytest.mark.parametrize("commits", [1, 50, 300])
async def test_nothing_committed_is_lost_by_a_kill(other_agent, open_store, commits):
    for _ in range(commits):
        other_agent.stdout.readline()
    other_agent.send_signal(signal.SIGKILL)
    last = max([commits, *(int(line) for line in other_agent.stdout if line.endswith("\n"))])
    other_agent.wait()
    store = await open_store()
    recalled = await store.recall("llama")
    history = await store.history("llama", limit=1000)
    # One more may have been committed than it came to say.
    assert recalled.tally.launches in {last, last + 1}
    assert recalled == values.memory(recalled.tally.launches)
    newest = recalled.tally.launches
    assert [t.launch_number for t in history.transitions] == [*range(newest, 0, -1)][:1000]
    assert [r.launch.number for r in history.launches] == [*range(newest, 0, -1)][:1000]
