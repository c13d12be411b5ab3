"""A local server as its runner has it: followed, knocked at, looked at, and judged in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.tree_scene import sighting
from vllm_agent.demo.launch import StandIn, free_port
from vllm_agent.host import local_launch, local_server
from vllm_agent.host.clock import now
from vllm_agent.host.idle_connection import IdleConnection
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.local_server import LocalServer
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_table import ProcessTable
from vllm_agent.host.vllm_http import Target
from vllm_agent.lifecycle.ending import judge
from vllm_agent.lifecycle.events import (
    ComponentEnded,
    EndBegan,
    EndSettled,
    LoadLooked,
    TreeSeen,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import (
    Listener,
    ProbeCause,
    SightKind,
    VllmCommand,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from vllm_agent.host.gpu.seen import GpusSeen
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.observations import ProcessTree

DEADLINE_SECONDS = 20.0
TARGET = partial(Target, timeout_seconds=5.0)


async def until(is_so: Callable[[], bool]) -> None:
    """Looks until `is_so`, for what tells of itself in no event."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_so():  # noqa: ASYNC110 - there is none
            await asyncio.sleep(0.005)


@dataclass
class Scene:
    """A server that is followed, and what was told of it."""

    server: StandIn
    local: LocalServer
    events: list[Event] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    async def told(self, kind: type) -> Event:
        """The first event of that kind, once it was told."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        return event
                self.news.clear()
                await self.news.wait()

    async def evidence(self) -> EndingEvidence:
        settled = await self.told(EndSettled)
        assert isinstance(settled, EndSettled)
        return settled.evidence

    @property
    def tree(self) -> ProcessTree:
        seen = [event.tree for event in self.events if isinstance(event, TreeSeen)]
        return seen[-1]

    async def hold(self) -> asyncio.Event:
        """Opens the idle connection; the event is set when its peer closes it."""
        closed = asyncio.Event()
        await self.local.hold(lambda _: closed.set())
        assert self.local.is_holding
        return closed


class ToyGpus:
    """GPUs that had a fault; the newest look shows it, and may take long."""

    def __init__(self, *, is_hung: bool = False, fault: str | None = "XID 79 on GPU 0") -> None:
        self.fault = fault
        self.may_look = asyncio.Event()
        if not is_hung:
            self.may_look.set()
        self.is_looked_at = False
        self.looks_wanted = 0
        self.asked: list[set[int]] = []

    def look_soon(self) -> None:
        self.looks_wanted += 1

    async def look_now(self) -> None:
        await self.may_look.wait()
        self.is_looked_at = True

    def fault_of(self, pids: Iterable[int], ended_seconds: float) -> str | None:
        assert ended_seconds <= now().monotonic_seconds
        self.asked.append(set(pids))
        return self.fault if self.is_looked_at else None

    def used_bytes(self, pids: Iterable[int]) -> int | None:
        return len([*pids])

    def holders(self, other_than: Iterable[int]) -> str:
        assert set(other_than)
        return "python3 (PID 7)"

    def holders_of(self, uuids: Collection[str]) -> str:
        raise NotImplementedError

    def seen(self) -> GpusSeen:
        raise NotImplementedError


@contextlib.asynccontextmanager
async def following(
    *arguments: str,
    log: Path | None = None,
    is_serving: bool = True,
    gpus: ToyGpus | None = None,
    port: int | None = None,
) -> AsyncIterator[Scene]:
    proc = Proc()
    with StandIn.start("--speed", "10", *arguments, log=log, port=port) as server:
        if is_serving:
            await server.serving()
        dropped: Counter[str] = Counter()
        table = ProcessTable(proc, now)
        host = LocalHost(proc, table.now, now, lambda k: dropped.update([k]), gpus)
        local = LocalServer(host, TARGET)
        scene = Scene(server, local, dropped=dropped)
        found = sighting(proc, server.pid, VllmCommand(port=server.port, host="127.0.0.1"))
        local.follow(found, scene.tell)
        try:
            yield scene
        finally:
            local.close()


async def test_what_runs_is_told_at_once_and_can_be_seen():
    async with following() as scene:
        assert scene.tree.is_main_alive
        assert scene.tree.processes >= 3
        assert scene.tree.orphans == ()
        assert scene.tree.cpu_seconds is not None
        kinds = {sight.kind for sight in scene.local.sights()}
        assert kinds >= {SightKind.FDS, SightKind.EXIT_STATUS, SightKind.NETWORK}


async def test_a_server_that_serves_is_reached_and_its_socket_is_its_own():
    async with following() as scene:
        knock = await scene.local.knock()
        assert knock.is_accepted
        look = await scene.local.look(ask_models=True)
        assert all(result.is_success for result in look.results)
        assert look.listener is Listener.OWN


async def test_a_server_that_loads_is_not_reached_and_that_is_all():
    async with following("--load-seconds", "60", is_serving=False) as scene:
        knock = await scene.local.knock()
        assert not knock.is_accepted
        assert knock.out_of_reach is None


async def test_a_stranger_on_its_port_does_not_answer_for_it():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        async with following("--load-seconds", "60", is_serving=False, port=port) as scene:
            knock = await scene.local.knock()
            assert not knock.is_accepted
            assert knock.out_of_reach is None


async def test_what_answers_where_nothing_of_its_network_listens_is_a_stranger(monkeypatch):
    """A command line may name any port, and a proxy or another host may answer there."""
    async with following() as scene:
        monkeypatch.setattr(local_server, "listening", lambda *_: frozenset())
        knock = await scene.local.knock()
        assert not knock.is_accepted
        look = await scene.local.look(ask_models=True)
        assert look.listener is Listener.STRANGER


async def test_a_socket_that_may_not_be_opened_is_out_of_reach(tmp_path: Path, monkeypatch):
    path = str(tmp_path / "vllm.sock")
    with StandIn.start("--speed", "10", uds=tmp_path / "vllm.sock") as server:
        await server.serving()
        host = LocalHost(Proc(), ProcessTable(Proc(), now).now, now, lambda _: None)
        local = LocalServer(host, TARGET)
        local.follow(sighting(Proc(), server.pid, VllmCommand(uds=path)), lambda _: None)
        assert (await local.knock()).is_accepted

        async def refuse(self: IdleConnection) -> ProbeCause:  # root is refused nothing
            return ProbeCause.RESET

        monkeypatch.setattr(IdleConnection, "connect", refuse)
        knock = await local.knock()
        assert not knock.is_accepted
        assert knock.out_of_reach == "it listens on a socket that the agent may not open"
        local.close()


async def test_a_server_that_begins_to_listen_just_after_it_refused_is_reached(monkeypatch):
    async with following() as scene:
        connect, refusals = IdleConnection.connect, [ProbeCause.REFUSED]

        async def refuse_once(self: IdleConnection) -> ProbeCause | None:
            return refusals.pop() if refusals else await connect(self)

        monkeypatch.setattr(IdleConnection, "connect", refuse_once)
        assert (await scene.local.knock()).is_accepted


@pytest.mark.parametrize(
    ("how", "state", "reason"),
    [
        ("kill main", ServerState.CRASHED, Reason.SIGNAL),
        ("kill engine", ServerState.CRASHED, Reason.ENGINE_DIED),
        ("terminate", ServerState.STOPPED, None),
    ],
)
async def test_each_end_is_told_and_judged(how: str, state: ServerState, reason: Reason | None):
    async with following() as scene:
        await scene.hold()
        match how:
            case "kill main":
                scene.server.kill()
            case "kill engine":
                os.kill(scene.server.engine_pids[0], signal.SIGKILL)
            case "terminate":
                scene.server.terminate()
        began = await scene.told(EndBegan)
        evidence = await scene.evidence()
        verdict = judge(evidence)
        assert (verdict.state, verdict.reason) == (state, reason), verdict
        assert began in scene.events
        if how == "kill engine":
            assert any(isinstance(event, ComponentEnded) for event in scene.events)


async def test_a_fault_of_a_gpu_that_it_held_is_the_reason_of_a_crash():
    gpus = ToyGpus()
    async with following(gpus=gpus) as scene:
        worker = scene.server.worker_pids[0]
        scene.server.kill()
        evidence = await scene.evidence()
        assert evidence.gpu_fault == "XID 79 on GPU 0"
        assert judge(evidence).reason is Reason.GPU_FAULT
        # Whatever it ran counts, what ended before it did too.
        assert {scene.server.pid, worker} <= gpus.asked[0]


async def test_the_end_of_a_part_makes_a_look_at_the_gpus():
    gpus = ToyGpus()
    async with following(gpus=gpus) as scene:
        os.kill(scene.server.worker_pids[0], signal.SIGKILL)
        await until(lambda: gpus.looks_wanted > 0)


async def test_who_holds_gpu_memory_that_was_wanted_is_told():
    load = ("--fail-load", "gpu_memory_taken", "--load-seconds", "6")
    async with following(*load, gpus=ToyGpus(fault=None), is_serving=False) as scene:
        scene.local.watch_load()
        while not any(isinstance(event, EndSettled) for event in scene.events):
            # As discovery would tell: a line of a process that nobody knows is another launch's.
            scene.local.arrived(filter(None, map(Proc().stat, Proc().pids())))
            await asyncio.sleep(0.05)
        evidence = await scene.evidence()
        assert evidence.logged_cause is Reason.GPU_MEMORY_TAKEN
        assert evidence.gpu_holder == "python3 (PID 7)"
        assert any("Free memory on device" in line for line in evidence.log)
        assert judge(evidence).reason is Reason.GPU_MEMORY_TAKEN


async def test_who_holds_a_port_is_looked_for_where_the_log_tells_that_it_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # Nobody knocks: it is looked for when it has ended.
        async with following("--load-seconds", "10", is_serving=False, port=port) as scene:
            evidence = await scene.evidence()
            assert evidence.logged_cause is Reason.PORT_IN_USE
            assert f"(PID {os.getpid()})" in evidence.port_holder


async def test_a_load_is_looked_at_while_it_is_watched():
    async with following("--load-seconds", "30", is_serving=False) as scene:
        scene.local.watch_load()
        looked = await scene.told(LoadLooked)
        assert isinstance(looked, LoadLooked)
        assert looked.look.process.pid == scene.server.pid
        assert looked.look.log is not None
        assert looked.look.io_bytes is not None
        scene.local.leave_load()
        await asyncio.sleep(0)
        count = len(scene.events)
        await asyncio.sleep(0.05)
        assert [e for e in scene.events[count:] if isinstance(e, LoadLooked)] == []


async def test_gpus_that_do_not_answer_hold_up_no_verdict(monkeypatch):
    monkeypatch.setattr(local_launch, "SETTLE_SECONDS", 0.3)
    async with following(gpus=ToyGpus(is_hung=True)) as scene:
        scene.server.kill()
        evidence = await scene.evidence()
        assert not evidence.gpu_fault
        assert judge(evidence).reason is Reason.SIGNAL


async def test_the_log_alone_tells_a_stop(tmp_path: Path):
    """No idle connection, nobody saw who was alive: what is left is its own line."""
    log = tmp_path / "vllm.log"
    async with following(log=log) as scene:
        await until(lambda: SightKind.LOG in {sight.kind for sight in scene.local.sights()})
        scene.server.terminate()
        evidence = await scene.evidence()
        assert evidence.close_seconds is None
        assert evidence.stop_sign_seconds is not None
        assert judge(evidence).rule == 3


async def test_orphans_are_counted_until_they_are_gone():
    async with following() as scene:
        engine, worker = scene.server.engine_pids[0], scene.server.worker_pids[0]
        scene.server.kill()
        await scene.evidence()
        await asyncio.sleep(0)
        assert len(scene.tree.orphans) == 2
        for pid in (engine, worker):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while scene.tree.orphans:
                scene.news.clear()
                await scene.news.wait()


async def test_orphans_of_a_launch_that_nobody_saw_end_are_counted_too():
    async with following() as scene:
        proc, server = Proc(), scene.server
        main = proc.stat(server.pid)
        assert main is not None
        left = [
            stat
            for pid in (*server.engine_pids, *server.worker_pids)
            if (stat := proc.stat(pid)) is not None
        ]
        host = LocalHost(proc, list, now, lambda _: None)
        later = LocalServer(host, TARGET)
        told: list[Event] = []
        server.kill()
        await scene.evidence()
        later.adopt_orphans(proc.identify(main), left, told.append)
        assert isinstance(told[-1], TreeSeen)
        assert len(told[-1].tree.orphans) == len(left) == 2
        with StandIn.start("--load-seconds", "60") as second:
            later.follow(sighting(Proc(), second.pid), told.append)
            # The next launch has none of its own, and they hold the GPU all the same.
            assert told[-1].tree.process.pid == second.pid
            assert len(told[-1].tree.orphans) == 2
        for stat in left:
            os.kill(stat.pid, signal.SIGKILL)
        await until(lambda: told[-1].tree.orphans == ())  # type: ignore[union-attr] # as above
        later.close()


async def test_cpu_does_not_fall_from_one_launch_to_the_next():
    async with following() as scene:
        await scene.local.look(ask_models=True)
        before = scene.tree.cpu_seconds
        scene.server.kill()
        await scene.evidence()
        with StandIn.start("--speed", "10") as second:
            await second.serving()
            found = sighting(Proc(), second.pid, VllmCommand(port=second.port, host="127.0.0.1"))
            scene.local.follow(found, scene.tell)
            assert before is not None
            assert scene.tree.cpu_seconds is not None
            assert scene.tree.cpu_seconds >= before
            own = scene.local._launches[-1].refreshed_tree().cpu_seconds
            scene.local._tell_tree()
            assert own is not None
            assert scene.tree.cpu_seconds >= before + own
            assert scene.tree.process == found.process


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left_open():
    before = _open_files()
    for _ in range(3):
        async with following() as scene:
            await scene.hold()
            scene.server.kill()
            await scene.evidence()
    await asyncio.sleep(0)
    assert _open_files() <= before + 1
