"""The watch over one load: what it asks, how often, and what a witness that hangs does to it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.lifecycle.sightings import sighting
from vllm_agent.host.load import watch as module
from vllm_agent.host.load.mapped_shards import MappedShards
from vllm_agent.host.load.tree_io import TreeIo
from vllm_agent.host.load.watch import (
    COST_SHARE,
    INTERVAL_SECONDS,
    MAX_INTERVAL_SECONDS,
    LoadWatch,
)
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.host.proc import Proc
from vllm_agent.lifecycle.events import LoadLooked
from vllm_agent.observations import ComponentRole, Download, Instant, LogProgress, Shard, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

DEADLINE_SECONDS = 10.0
SHARDS = (Shard(7, 2, 5),)


class FakeTree:
    pids = (7, 8)
    all_pids = (7, 8, 9)
    cpu_seconds = 4.5

    def has_had(self, role: ComponentRole) -> bool:
        return role is ComponentRole.ENGINE_CORE


@dataclass
class FakeLog:
    told: LogProgress | None = None

    async def progress(self, pids: Collection[int]) -> LogProgress | None:
        assert pids == FakeTree.all_pids
        return self.told

    def cause(self) -> None:
        return None


class FakeGpus:
    def used_bytes(self, pids: Iterable[int]) -> int | None:
        return 1000 * len([*pids])


class FakeHub:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def ask(self, repo: str, revision: str) -> None:
        self.asked.append((repo, revision))


@dataclass
class FakeDownload:
    """Hangs while `may_answer` is not set."""

    may_answer: threading.Event = field(default_factory=threading.Event)
    question: tuple[str, str] | None = None
    has_left_out: bool = False

    def look(self) -> Download | None:
        assert self.may_answer.wait(DEADLINE_SECONDS)
        return Download(5, None, None, is_under_way=True)


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1_000.0
        self.dropped: Counter[str] = Counter()
        self.looks: asyncio.Queue[Any] = asyncio.Queue()
        self.log = FakeLog(LogProgress(Stage.LOAD_WEIGHTS, 3))
        self.hub = FakeHub()
        self.download = FakeDownload()
        self.download.may_answer.set()
        monkeypatch.setattr(module, "DownloadWitness", lambda *_: self.download)
        monkeypatch.setattr(MappedShards, "look", lambda *_: SHARDS)
        monkeypatch.setattr(TreeIo, "total", lambda *_: 77)
        monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
        self.host = LocalHost(
            Proc(),
            tuple,
            lambda: Instant(self.seconds, self.seconds),
            lambda kind: self.dropped.update([kind]),
            gpus=FakeGpus(),  # type: ignore[arg-type]
            hub=self.hub,  # type: ignore[arg-type]
            may_read_environ=False,
        )
        self.watch = LoadWatch(
            sighting(),
            self.host,
            FakeTree(),  # type: ignore[arg-type]
            self.log,  # type: ignore[arg-type]
            self.looks.put_nowait,
        )

    async def look(self) -> Any:
        async with asyncio.timeout(DEADLINE_SECONDS):
            told = await self.looks.get()
        assert isinstance(told, LoadLooked)
        return told.look


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch):
    played = Scene(monkeypatch)
    yield played
    played.download.may_answer.set()
    played.watch.stop()


async def test_a_look_is_what_every_witness_saw(scene: Scene) -> None:
    scene.watch.start()
    look = await scene.look()
    assert look.process == sighting().process
    assert look.at == Instant(1_000.0, 1_000.0)
    assert (look.has_engine, look.has_worker) == (True, False)
    assert look.shards == SHARDS
    assert (look.io_bytes, look.gpu_bytes, look.cpu_seconds) == (77, 2000, 4.5)
    assert look.download == Download(5, None, None, is_under_way=True)
    assert look.log == LogProgress(Stage.LOAD_WEIGHTS, 3)
    assert look.compile_changes is None


async def test_looks_go_on_until_it_is_stopped_and_can_begin_again(scene: Scene) -> None:
    scene.watch.start()
    scene.watch.start()
    for _ in range(3):
        await scene.look()
    scene.watch.stop()
    await asyncio.sleep(0)
    while not scene.looks.empty():
        scene.looks.get_nowait()
    await asyncio.sleep(0.05)
    assert scene.looks.empty()
    scene.watch.start()
    await scene.look()


async def test_a_disk_that_hangs_hides_neither_processes_nor_the_passing_of_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HUNG_SECONDS", 0.05)
    slow = Scene(monkeypatch)
    slow.download.may_answer.clear()
    slow.watch.start()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            look = await slow.look()
            assert look.download is None
            assert look.shards == SHARDS
    # It is asked again only after a while, for each time may cost a thread.
    assert slow.dropped == {"load_witness": 1}
    assert len([r for r in caplog.records if r.message == "a witness of a load hangs"]) == 1
    slow.download.may_answer.set()
    slow.seconds += module.HUNG_PAUSE_SECONDS
    while (look := await slow.look()).download is None:
        pass
    slow.watch.stop()


async def test_a_fault_of_a_witness_is_logged_and_looks_go_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ValueError("ours")]

    def mapped(*_: object) -> tuple[Shard, ...]:
        if failures:
            raise failures.pop()
        return SHARDS

    monkeypatch.setattr(MappedShards, "look", mapped)
    scene.watch.start()
    assert (await scene.look()).shards == SHARDS
    assert [r.message for r in caplog.records if r.exc_info] == ["could not look at a load"]


async def test_an_environment_that_is_not_there_yet_is_read_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was just started has none for a moment."""
    found = [None, None, ModelEnvironment(vllm_cache_root="/nowhere")]
    made: list[object] = []

    def make(*arguments: object) -> FakeDownload:
        made.append(arguments[3])
        return scene.download

    monkeypatch.setattr(ModelEnvironment, "read", lambda *_: found.pop(0))
    monkeypatch.setattr(module, "DownloadWitness", make)
    scene.host = replace(scene.host, may_read_environ=True)
    watch = LoadWatch(
        sighting(),
        scene.host,
        FakeTree(),  # type: ignore[arg-type]
        scene.log,  # type: ignore[arg-type]
        scene.looks.put_nowait,
    )
    watch.start()
    for _ in range(5):
        await scene.look()
    watch.stop()
    assert found == []
    assert made == [None, ModelEnvironment(vllm_cache_root="/nowhere")]


async def test_a_cache_that_is_too_large_is_counted_once(scene: Scene) -> None:
    scene.download.has_left_out = True
    scene.watch.start()
    for _ in range(3):
        await scene.look()
    assert scene.dropped == {"hub_cache": 1}


async def test_what_only_the_hub_can_tell_is_asked_for(scene: Scene) -> None:
    scene.download.question = ("org/model", "main")
    scene.watch.start()
    for _ in range(3):
        await scene.look()
    assert set(scene.hub.asked) == {("org/model", "main")}


def test_looks_that_cost_more_come_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    monkeypatch.setattr(module, "INTERVAL_SECONDS", INTERVAL_SECONDS)
    watch: Any = scene.watch
    assert watch._pause_seconds() == INTERVAL_SECONDS
    watch._processes.cost_seconds = COST_SHARE
    assert watch._pause_seconds() == INTERVAL_SECONDS
    watch._processes.cost_seconds = watch._files.cost_seconds = COST_SHARE
    assert watch._pause_seconds() == 2 * INTERVAL_SECONDS
    watch._files.cost_seconds = 1e9
    assert watch._pause_seconds() == MAX_INTERVAL_SECONDS
