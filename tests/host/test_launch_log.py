"""What the log of one launch says of its end, and what a log that hangs costs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.tree_scene import sighting
from vllm_agent.demo.launch import StandIn
from vllm_agent.host import launch_log
from vllm_agent.host.launch_log import DEATH_STANDS_SECONDS, LaunchLog
from vllm_agent.host.proc import Proc
from vllm_agent.host.vllm_markers import Marked, MarkKind
from vllm_agent.observations import SightKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import Sighting

RECORDED = Path(__file__).parents[1] / "testdata" / "logs"
STOP, DEATH = MarkKind.STOP, MarkKind.DEATH


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start("--load-seconds", "60", log=tmp_path / "vllm.log") as started:
        yield started


def seen(server: StandIn) -> Sighting:
    return sighting(Proc(), server.pid)


async def opened(server: StandIn, dropped: list[str], *, is_new: bool = True) -> LaunchLog:
    log = LaunchLog(seen(server), Proc(), dropped.append, is_new=is_new)
    log.open()
    assert log._reading is not None
    await log._reading
    return log


async def test_the_output_of_a_server_is_its_log(server: StandIn):
    dropped: list[str] = []
    log = await opened(server, dropped)
    assert log.sight is not None
    assert (log.sight.kind, log.sight.is_visible) == (SightKind.LOG, True)
    assert log.deciding() is None
    log.close()
    assert dropped == []


@pytest.mark.parametrize(
    ("recorded", "is_stop"),
    [
        ("vllm-0.32-stop.log", True),
        ("vllm-0.32-engine-killed.log", False),
        ("vllm-0.32-worker-killed.log", False),
        # The survivors are told to stop by the process that saw one of them die.
        ("vllm-0.32-several-api-server-killed.log", False),
        ("vllm-0.32-several-stop.log", True),
    ],
)
async def test_a_recorded_end_is_told_in_time_of_what_made_us_read(
    server: StandIn, tmp_path: Path, recorded: str, *, is_stop: bool
):
    log = await opened(server, [])
    with (tmp_path / "vllm.log").open("ab") as file:
        file.write((RECORDED / recorded).read_bytes())
    log.read_soon(100.0, ())
    await log.finish(200.0, ())
    told = log.deciding()
    assert told is not None
    at_seconds, mark = told
    assert 99.9 < at_seconds < 100.0
    assert mark.kind is (STOP if is_stop else DEATH)
    log.close()


async def test_marks_keep_the_order_of_the_log_whatever_made_us_read(server: StandIn):
    """What is told of later may have happened earlier; a log is written in one order."""
    log = await opened(server, [])
    log._note(Marked(DEATH, "API server process died", is_last_word=True), 101.0)
    log._note(Marked(STOP, "API server told to stop"), 100.0)
    told = log.deciding()
    assert told is not None
    assert told[1].kind is DEATH
    log.close()


async def test_a_death_that_the_server_outlived_is_none(server: StandIn):
    log = await opened(server, [])
    log._note(Marked(DEATH, "engine vanished"), 100.0)
    log.forget_deaths(100.0 + DEATH_STANDS_SECONDS - 1.0)
    assert log.deciding() is not None
    log.forget_deaths(100.0 + DEATH_STANDS_SECONDS)
    assert log.deciding() is None
    log._note(Marked(STOP, "API server told to stop"), 100.0)
    log.forget_deaths(1000.0)
    assert log.deciding() == (100.0, Marked(STOP, "API server told to stop"))
    log.close()


async def test_a_log_that_hangs_is_given_up_and_counted_once(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    is_over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        is_over.wait(20.0)

    monkeypatch.setattr(launch_log, "find_logs", hang)
    monkeypatch.setattr(launch_log, "HUNG_SECONDS", 0.05)
    dropped: list[str] = []
    try:
        log = await opened(server, dropped)
        log.read_soon(1.0, ())
        async with asyncio.timeout(5.0):
            await log.finish(2.0, ())
        assert log.deciding() is None
        assert dropped == ["log_hung"]
        assert len([r for r in caplog.records if "hangs" in r.message]) == 1
        log.close()
    finally:
        is_over.set()


async def test_a_file_is_not_closed_under_the_thread_that_reads_it(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
):
    """Its number would be somebody else's file by the time the thread comes to it."""
    log = await opened(server, [])
    assert log._logs is not None
    [tail] = log._logs.tails
    began, is_over = threading.Event(), threading.Event()

    def read(*_: object) -> tuple[()]:
        began.set()
        is_over.wait(20.0)
        return ()

    monkeypatch.setattr(type(tail), "read", read)
    log.read_soon(1.0, ())
    assert await asyncio.to_thread(began.wait, 10.0)
    reading = log._reading
    assert reading is not None
    reading.cancel()
    await asyncio.wait({reading})
    log.close()
    try:
        assert tail._file >= 0
    finally:
        is_over.set()
        tail.close()
