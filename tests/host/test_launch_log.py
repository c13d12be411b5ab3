"""What the log of one launch says of its end, and what a log that hangs costs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.log_scene import FATAL, LOST, NO_MEMORY, NO_PORT, STOPPED, append, line
from tests.host.tree_scene import sighting
from vllm_agent.demo.launch import StandIn
from vllm_agent.host import launch_log
from vllm_agent.host.clock import now
from vllm_agent.host.followed_files import FollowedFiles
from vllm_agent.host.launch_log import (
    JOURNAL_SECONDS,
    LOOK_BYTES,
    SERVING_READ_SECONDS,
    LaunchLog,
)
from vllm_agent.host.log_evidence import DEATH_STANDS_SECONDS
from vllm_agent.host.log_line import read_line
from vllm_agent.host.proc import Proc
from vllm_agent.host.secrets import Secrets
from vllm_agent.host.vllm_log import Logs
from vllm_agent.host.vllm_markers import Marked, MarkKind
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import LogProgress, Sight, SightKind, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from vllm_agent.host.log_findings import LogFindings
    from vllm_agent.observations import Sighting

RECORDED = Path(__file__).parents[1] / "testdata" / "logs"
STOP, DEATH = MarkKind.STOP, MarkKind.DEATH


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn.start("--load-seconds", "60", log=tmp_path / "vllm.log") as started:
        yield started


def seen(server: StandIn) -> Sighting:
    return sighting(Proc(), server.pid)


CANARY = "canary-0123456789"


async def opened(
    server: StandIn,
    dropped: list[str],
    *,
    is_new: bool = True,
    log_file: str | None = None,
    unit: str | None = None,
) -> LaunchLog:
    log = LaunchLog(
        dataclasses.replace(seen(server), unit=unit),
        Proc(),
        dropped.append,
        is_new=is_new,
        read_secrets=lambda: Secrets.of(["--api-key", CANARY]),
        log_file=log_file,
    )
    log.open()
    assert log._reading is not None
    await log._reading
    return log


@pytest.mark.parametrize("is_new", [True, False])
async def test_the_log_that_the_agent_made_for_a_launch_is_read_from_its_start(
    server: StandIn, tmp_path: Path, *, is_new: bool
):
    """In any other, lines without a process and a time may be of the launch before."""
    path = tmp_path / "own.log"
    append(path, BARE)
    causes = []
    for one in (dataclasses.replace(seen(server), log_file=str(path)), seen(server)):
        log = LaunchLog(
            one,
            Proc(),
            lambda _: None,
            is_new=is_new,
            read_secrets=lambda: Secrets.of(()),
            log_file=None if one.log_file else str(path),
        )
        log.open()
        await log.finish(now().monotonic_seconds, ())
        causes.append(log.cause())
        log.close()
    own, configured = causes
    assert own is not None
    assert own.reason is Reason.PORT_IN_USE
    assert configured is None


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

    def read(*_: object, **__: object) -> tuple[()]:
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
        assert tail.is_open
    finally:
        is_over.set()
        tail.close()


# Watched while it loads.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vllm.log"


@pytest.fixture
async def watched(server: StandIn, path: Path) -> AsyncIterator[LaunchLog]:
    """A log that is configured, so that the stand-in writes elsewhere."""
    path = path.with_suffix(".configured")
    path.write_bytes(b"")
    dropped: list[str] = []
    log = await opened(server, dropped, log_file=str(path))
    yield log
    log.close()
    assert dropped == []


@pytest.fixture
def written(path: Path) -> Callable[[bytes], None]:
    return lambda content: append(path.with_suffix(".configured"), content)


BAR = b"Loading safetensors checkpoint shards:  50% Completed | 3/6 [00:01<00:01,  2it/s]\n"


async def test_the_output_of_a_loading_server_tells_its_load(server: StandIn, path: Path):
    log = await opened(server, [])
    append(path, line("Starting to load model x...") + BAR)
    told = await log.progress()
    assert told is not None
    assert (told.shards_done, told.shard_count) == (3, 6)
    log.close()


async def test_each_look_reads_on(watched: LaunchLog, written):
    assert await watched.progress() == LogProgress()
    written(line("Starting to load model x...", level="INFO"))
    assert await watched.progress() == LogProgress(Stage.LOAD_WEIGHTS, 1)
    written(BAR + f"{NO_PORT} {CANARY}\n".encode())
    assert await watched.progress() == LogProgress(Stage.LOAD_WEIGHTS, 3, 3, 6)
    cause = watched.cause()
    assert cause is not None
    assert cause.reason is Reason.PORT_IN_USE
    assert abs(cause.at_seconds - now().monotonic_seconds) < 5.0
    [text] = watched.excerpt()
    assert text.startswith(NO_PORT)
    assert CANARY not in text


async def test_without_secrets_no_text_leaves(server: StandIn, path: Path):
    log = LaunchLog(seen(server), Proc(), lambda _: None, is_new=True)
    log.open()
    await settled(log)
    append(path, f"{NO_PORT}\n".encode())
    await log.progress()
    assert log.cause() is not None
    assert log.excerpt() == ()
    log.close()


async def test_before_it_is_looked_for_and_after_it_is_closed_there_is_none(server: StandIn):
    log = LaunchLog(seen(server), Proc(), lambda _: None, is_new=True)
    assert await log.progress() is None
    assert log.cause() is None
    assert log.excerpt() == ()
    log.open()
    log.close()
    assert await log.progress() is None


async def test_a_log_that_cannot_be_read_tells_no_progress(server: StandIn, monkeypatch):
    sight = Sight(SightKind.LOG, is_visible=False)
    monkeypatch.setattr(launch_log, "find_logs", lambda *_, **__: Logs((), sight))
    log = await opened(server, [])
    assert await log.progress() is None
    log.close()


async def test_a_look_reads_no_more_than_its_share(watched: LaunchLog, written):
    filler = b"INFO:     " + b"x" * 989 + b"\n"
    written(filler * (5 * LOOK_BYTES // 2000) + line("Starting to load model x..."))
    looks = [await watched.progress() for _ in range(3)]
    assert [look and look.stage for look in looks] == [None, None, Stage.LOAD_WEIGHTS]


async def test_an_end_reads_on_where_the_last_look_ended(watched: LaunchLog, written):
    filler = b"INFO:     " + b"x" * 989 + b"\n"
    written(line(FATAL, pid=5) + filler * (3 * LOOK_BYTES // 1000) + line(STOPPED, pid=5))
    await watched.progress()
    await watched.finish(now().monotonic_seconds, [5])
    found = [entry.finding for entry in watched._evidence._ours()]
    names = [one.name for one in found if isinstance(one, Marked)]
    assert names == ["engine failed", "API server told to stop"]


async def test_looks_and_ends_are_read_one_after_the_other(watched: LaunchLog, written):
    written(line(LOST))
    looks = asyncio.gather(watched.progress(), watched.progress())
    watched.read_soon(100.0, ())
    await asyncio.gather(looks, watched.finish(200.0, ()))
    told = watched.deciding()
    assert told is not None
    assert len(watched._evidence._entries) == 1


async def test_a_look_that_is_cancelled_leaves_the_log_readable(
    watched: LaunchLog, written, monkeypatch
):
    began, is_over = threading.Event(), threading.Event()
    read = Logs.read

    def slow(logs: Logs, findings: LogFindings, **facts) -> Iterator[None]:
        began.set()
        is_over.wait(20.0)
        yield from read(logs, findings, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "read", slow)
        patch.setattr(launch_log, "HUNG_SECONDS", 60.0)
        look = asyncio.create_task(watched.progress())
        assert await asyncio.to_thread(began.wait, 20.0)
        look.cancel()
        is_over.set()
        await asyncio.wait({look})
    written(line("Starting to load model x..."))
    assert await watched.progress() == LogProgress(Stage.LOAD_WEIGHTS, 1)


async def test_a_disk_that_hangs_gives_no_progress_and_is_counted_once(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
):
    is_over = threading.Event()

    def hang(*_: object, **__: object) -> Iterator[None]:
        is_over.wait(20.0)
        yield

    dropped: list[str] = []
    monkeypatch.setattr(launch_log, "HUNG_SECONDS", 0.05)
    log = await opened(server, dropped)
    monkeypatch.setattr(Logs, "read", hang)
    try:
        async with asyncio.timeout(5.0):
            assert [await log.progress() for _ in range(3)] == [None, None, None]
        assert dropped == ["log_hung"]
    finally:
        is_over.set()
        log.close()


async def test_a_configured_log_that_comes_later_is_read_from_its_beginning(
    server: StandIn, tmp_path: Path
):
    later = tmp_path / "later.log"
    log = await opened(server, [], log_file=str(later))
    assert log.sight is not None
    assert not log.sight.is_visible
    assert await log.progress() is None
    append(later, line("Starting to load model x...", level="INFO"))
    assert await log.progress() == LogProgress(Stage.LOAD_WEIGHTS, 1)
    assert log.sight.is_visible
    log.close()


# Once it serves.


async def settled(log: LaunchLog) -> None:
    assert log._reading is not None
    await log._reading


async def test_what_was_logged_before_it_served_is_no_cause_though_it_is_read_later(
    watched: LaunchLog, written
):
    written(f"{NO_MEMORY}\n".encode() + line(LOST))
    watched.note_serving(100.0)
    await settled(watched)
    assert watched.cause() is None
    assert watched.deciding() is not None
    written(f"{NO_MEMORY}\n".encode())
    await watched.finish(110.0, ())
    assert watched.cause() is not None


async def test_the_log_of_a_server_that_serves_is_read_now_and_then(watched: LaunchLog, written):
    watched.note_serving(100.0)
    await settled(watched)
    written(f"{NO_MEMORY}\n".encode())
    watched.note_serving(100.0 + SERVING_READ_SECONDS - 1.0)
    await settled(watched)
    assert watched.cause() is None
    watched.note_serving(100.0 + SERVING_READ_SECONDS)
    await settled(watched)
    assert watched.cause() is not None
    watched.note_serving(100.0 + SERVING_READ_SECONDS + DEATH_STANDS_SECONDS)
    assert watched.cause() is None


# The journal.


class Journal:
    """One that is asked instead of the real one."""

    def __init__(self, log: LaunchLog, *lines: bytes) -> None:
        self.lines = list(lines)
        self.asked = 0
        self.is_answered = asyncio.Event()
        self.is_answered.set()
        self.why_not = ""
        log._journal = self  # type: ignore[assignment]
        assert log._logs is not None
        log._logs = dataclasses.replace(log._logs, tails=(), is_in_journal=True)

    async def read(self, findings: LogFindings) -> str:
        self.asked += 1
        await self.is_answered.wait()
        for raw in self.lines:
            findings.take(read_line(raw), at_seconds=50.0)
        self.lines.clear()
        return self.why_not


async def test_the_journal_is_asked_beside_the_looks(server: StandIn):
    log = await opened(server, [], unit="vllm.service")
    journal = Journal(log, line("Starting to load model x...", level="INFO"), line(LOST, pid=99))
    journal.is_answered.clear()
    assert [await log.progress(), await log.progress()] == [None, None]
    journal.is_answered.set()
    assert log._asking_journal is not None
    await log._asking_journal
    assert await log.progress() == LogProgress(Stage.LOAD_WEIGHTS, 2)
    assert journal.asked == 1
    log._asked_journal_seconds -= JOURNAL_SECONDS
    await log.progress()
    await log._asking_journal
    assert journal.asked == 2
    journal.lines = [line(FATAL)]
    await log.finish(100.0, [5])
    assert journal.asked == 3
    told = log.deciding()
    assert told is not None
    assert (told[0], told[1].name) == (50.0, "API server lost its engine")
    assert len(log.excerpt()) == 2
    log.close()


async def test_a_journal_that_cannot_be_read_tells_no_progress(server: StandIn):
    log = await opened(server, [], unit="vllm.service")
    journal = Journal(log)
    journal.why_not = "not allowed"
    await log.progress()
    assert log._asking_journal is not None
    await log._asking_journal
    assert await log.progress() is None
    log.close()


async def test_files_and_journal_are_told_together(server: StandIn, path: Path):
    log = await opened(server, [], unit="vllm.service")
    assert log._logs is not None
    tails = log._logs.tails
    Journal(log, BAR, line("Available KV cache memory: 3 GiB"))
    log._logs = dataclasses.replace(log._logs, tails=tails)
    append(path, line("Filesystem type for checkpoints: x. Checkpoint size: 2.00 GiB."))
    first = await log.progress()
    assert log._asking_journal is not None
    await log._asking_journal
    told = await log.progress()
    assert first is not None
    assert told is not None
    assert told == LogProgress(Stage.WARMUP, told.new_lines, 3, 6, 2 * 2**30)
    assert told.new_lines >= first.new_lines + 2
    log.close()


# Bad logs.

NOISE = bytes(range(256)) * 4000
BAD = {
    "a line of 10 MB": b"x" * 10_000_000,
    "garbage": NOISE,
    "errors": line("Exception " + "y" * 300) * 2_500,
    "different errors": b"".join(line(f"Exception {n} " + "y" * 300) for n in range(2_500)),
    "tracebacks": b"".join(
        line(text + str(n), pid=n)
        for n in range(1_000)
        for text in ("Traceback (most recent call last):", "  File " + "z" * 400)
    ),
    "causes": b"".join(line(f"{NO_MEMORY} {n}", pid=n) for n in range(2_500)),
    "emoji": "\U0001f680".encode() * 500_000,
    "lines of nothing": b"\n" * 4_000_000,
    "short lines": b"a\n" * 200_000,
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("is_loading", [True, False])
async def test_whatever_a_log_does_it_costs_little_memory(server, path, bad, is_loading):
    """Twice, for what is kept of the first must not add up."""
    content = BAD[bad]
    log = await opened(server, [])
    await log.progress()
    tracemalloc.start()
    try:
        for _ in range(2):
            append(path, content)
            if is_loading:
                for _ in range(3):
                    await log.progress()
            else:
                log.read_soon(100.0, ())
                await settled(log)
            log.excerpt()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    log.close()
    assert peak < 2 * 1024 * 1024


# What it survived, and what others wrote.

FULL = "OSError: [Errno 28] No space left on device"
TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n'


def step(number: int) -> bytes:
    return (
        f"Loading safetensors checkpoint shards:   1% Completed | {number}/4 [00:01<?]\n".encode()
    )


SURVIVED = (
    line("Starting to load model x...", level="INFO")
    + line(f"{TRACE}{FULL}".replace("\n", " ; "))
    + line(FULL)
    + f"{TRACE}{FULL}\n".encode()
    + b"".join(map(step, range(5)))
    + line("Model loading took 1.0 GiB memory and 2.0 seconds", level="INFO")
    + line("Dynamo bytecode transform time: 9.12 s", level="INFO")
)
FAILED = line("EngineCore failed to start.") + line("AssertionError: head size 80")
WRAPPED = (
    b"RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': 1}\n"
)


@pytest.mark.parametrize("is_watched", [True, False])
@pytest.mark.parametrize("end", [FAILED + WRAPPED, line(STOPPED)], ids=["failed", "stopped"])
async def test_an_error_after_which_the_load_went_on_is_no_cause(
    watched: LaunchLog, written, end, *, is_watched: bool
):
    written(SURVIVED)
    if is_watched:
        await watched.progress()
    written(end)
    await watched.finish(now().monotonic_seconds, ())
    assert watched.cause() is None
    assert any(FULL in text for text in watched.excerpt())


async def test_an_error_in_the_journal_after_which_the_load_went_on_is_no_cause(server: StandIn):
    log = await opened(server, [], unit="vllm.service")
    journal = Journal(log, *SURVIVED.splitlines())
    await log.finish(100.0, ())
    assert journal.asked == 1
    assert log.cause() is None
    log.close()


async def test_an_error_that_ends_the_load_is_the_cause(watched: LaunchLog, written):
    written(SURVIVED + line(FULL) + FAILED + WRAPPED)
    await watched.finish(now().monotonic_seconds, ())
    cause = watched.cause()
    assert cause is not None
    assert cause.reason is Reason.DISK_FULL


async def sharing(server: StandIn, path: Path, followed: FollowedFiles) -> LaunchLog:
    log = LaunchLog(
        seen(server),
        Proc(),
        lambda _: None,
        is_new=True,
        read_secrets=lambda: Secrets.of(()),
        log_file=str(path),
        followed=followed,
    )
    log.open()
    await settled(log)
    return log


BARE = f"{NO_PORT}\n{LOST}\n".encode()


async def test_bare_lines_of_a_file_that_two_write_to_are_of_neither(
    server: StandIn, tmp_path: Path
):
    path, followed = tmp_path / "both.log", FollowedFiles()
    path.touch()
    logs = [await sharing(server, path, followed) for _ in range(2)]
    append(path, BARE + line(NO_MEMORY, pid=5) + line(FATAL, pid=6))
    for log, pid in zip(logs, (5, 6), strict=True):
        await log.finish(1.0, [pid])
    causes = [log.cause() for log in logs]
    assert [cause and cause.reason for cause in causes] == [Reason.GPU_OOM, None]
    assert [log.deciding() is not None for log in logs] == [False, True]
    assert [log.excerpt() for log in logs] == [(f"ERROR {NO_MEMORY}",), (f"ERROR {FATAL}",)]
    for log in logs:
        log.close()


async def test_what_the_other_wrote_before_it_was_left_is_not_taken(
    server: StandIn, tmp_path: Path
):
    path, followed = tmp_path / "both.log", FollowedFiles()
    path.touch()
    log, other = [await sharing(server, path, followed) for _ in range(2)]
    append(path, BARE)
    other.close()
    await log.progress()
    assert log.cause() is None
    append(path, BARE)
    await log.progress()
    assert log.cause() is not None
    log.close()


async def test_what_is_started_in_its_place_does_not_take_its_last_words(
    server: StandIn, tmp_path: Path
):
    path, followed = tmp_path / "both.log", FollowedFiles()
    path.touch()
    log = await sharing(server, path, followed)
    append(path, BARE)
    log.note_gone()
    successor = await sharing(server, path, followed)
    await log.finish(1.0, ())
    assert log.cause() is not None
    append(path, BARE)
    await successor.progress()
    assert successor.cause() is not None
    for one in (log, successor):
        one.close()


async def test_two_that_share_a_file_share_it_to_their_ends(server: StandIn, tmp_path: Path):
    path, followed = tmp_path / "both.log", FollowedFiles()
    path.touch()
    log, other = [await sharing(server, path, followed) for _ in range(2)]
    log.note_gone()
    other.close()
    append(path, BARE)
    log.note_gone()
    await log.finish(1.0, ())
    assert log.cause() is None
    log.close()


async def test_a_file_that_was_rotated_is_shared_by_those_who_follow_the_new_one(
    server: StandIn, tmp_path: Path
):
    path, followed = tmp_path / "both.log", FollowedFiles()
    path.touch()
    log = await sharing(server, path, followed)
    path.rename(tmp_path / "both.log.1")
    path.touch()
    await log.progress()
    other = await sharing(server, path, followed)
    append(path, BARE)
    await log.progress()
    assert log.cause() is None
    for one in (log, other):
        one.close()
