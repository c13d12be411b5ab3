"""Each recorded way to end, done to the stand-in, followed live, and judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.host.blind_proc import BlindProc
from tests.host.tree_scene import PATIENCE_SECONDS, Watched
from tests.lifecycle.recorded_endings import RECORDING, RecordedEnding
from tests.standin.measure import (
    _ACTION_AFTER_SECONDS,
    _streams,
    connection_of_first_api_server,
)
from tests.vllm.ways import EXPECTED, act_on
from vllm_agent.demo.launch import StandIn
from vllm_agent.host.pidfd import has_exit_info
from vllm_agent.host.process_tree import TreeEvidence
from vllm_agent.lifecycle.ending import EndingEvidence, Verdict, judge

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.states import ServerState

ROWS = [
    RecordedEnding(row["name"], row) for row in map(json.loads, RECORDING.read_text().splitlines())
]
SPEED = 4.0
# The servers sleep nearly all of the time.
AT_ONCE = 6


class Close(asyncio.Protocol):
    """An idle connection; what is noted is noted the moment its peer closes it."""

    def __init__(self, watches: list[Watched]) -> None:
        self._watches = watches
        self.is_noted = asyncio.Event()

    def connection_lost(self, _error: Exception | None) -> None:
        for one in self._watches:
            one.tree.note_close()
        self.is_noted.set()


def ending_evidence(seen: TreeEvidence) -> EndingEvidence:
    assert seen.is_complete
    values = {one.name: getattr(seen, one.name) for one in fields(TreeEvidence)}
    del values["is_complete"]
    return EndingEvidence(**values)


async def follow(row: RecordedEnding) -> list[EndingEvidence]:
    """What a watch with access, and one without, have seen of this way to end."""
    arguments = list(row.raw["args"])
    if "--shutdown-timeout" in arguments:
        arguments[1] = str(float(arguments[1]) / SPEED)
    with (
        StandIn.start("--speed", str(SPEED), *arguments) as server,
        contextlib.ExitStack() as clients,
    ):
        await server.serving()
        watches = [Watched(server.pid).start(), Watched(server.pid, proc=BlindProc()).start()]
        idle = await asyncio.to_thread(connection_of_first_api_server, server)
        if row.raw["streams"]:
            await asyncio.to_thread(_streams, server, clients)
        # vLLM looks for a dead engine every 5 s; recorded actions fell between two looks.
        await asyncio.sleep(_ACTION_AFTER_SECONDS / SPEED)
        close = Close(watches)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: close, sock=idle)
        act_on(server, row.name.rpartition("-")[0])
        async with asyncio.timeout(PATIENCE_SECONDS):
            await close.is_noted.wait()
        # Clients that hold on keep a server that stops from ending.
        if row.was_asked_for:
            clients.close()
        await server.exited()
        for one in watches:
            assert await one.tree.settled(PATIENCE_SECONDS)
        seen = [ending_evidence(one.tree.evidence()) for one in watches]
        for one in watches:
            one.tree.close()
        transport.close()
        return seen


def run(row: RecordedEnding) -> list[EndingEvidence]:
    # Each on a loop of its own: starting one server would hold up the noting at another.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(follow(row))


@pytest.fixture(scope="module")
def followed() -> dict[str, list[EndingEvidence]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip((row.name for row in ROWS), pool.map(run, ROWS), strict=True))


def expected(row: RecordedEnding) -> tuple[ServerState, Reason | None]:
    verdict = EXPECTED[row.name.rpartition("-")[0]]
    return verdict.state, verdict.reason


def shortly(verdict: Verdict) -> tuple[ServerState, Reason | None]:
    return verdict.state, verdict.reason


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_end_is_judged_as_the_recorded_one(row, followed):
    with_access, without = followed[row.name]
    assert shortly(judge(with_access)) == expected(row), with_access
    if has_exit_info():
        assert shortly(judge(without)) == expected(row), without


def test_without_any_exit_status_at_most_an_idle_worker_segfault_is_misjudged(followed):
    wrong = []
    for row in ROWS:
        seen = followed[row.name][0]
        blank = replace(
            seen,
            main_wait_status=None,
            exits=tuple(replace(one, wait_status=None) for one in seen.exits),
        )
        if judge(blank).state is not expected(row)[0]:
            wrong.append(row.name)
    assert set(wrong) <= {"segv_worker-idle"}
