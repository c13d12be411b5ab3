"""The looks at the GPUs: how often, what is made of them, and what they tell of an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.expose.snapshots import local_server, tree
from tests.host.gpu.scene import DEADLINE_SECONDS, GIB, ToyReader, gpu, xid
from vllm_agent.config.choices import GpuUse
from vllm_agent.demo.launch import StandIn, kill_all
from vllm_agent.host.gpu import collector as module
from vllm_agent.host.gpu.collector import AGAIN_SECONDS, GpuCollector
from vllm_agent.host.gpu.faults import AFTERMATH_XIDS, FAULT_SECONDS, HELD_SECONDS, LOG_SECONDS
from vllm_agent.host.gpu.reader import DriverError, NoDriverError
from vllm_agent.host.gpu.seen import GpusSeen
from vllm_agent.host.proc import Proc
from vllm_agent.observations import Instant, Sight, SightKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vllm_agent.snapshot import ServerSnapshot

LONG_SECONDS = 600.0
PAUSE_SECONDS = 0.02


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """A tenth of the pause between two looks: each test here waits for some."""
    monkeypatch.setattr(module, "MIN_PAUSE_SECONDS", PAUSE_SECONDS)


class Scene:
    """A collector at work, on a clock that stands still unless it is moved."""

    def __init__(self, *readers: ToyReader, timeout_seconds: float) -> None:
        self.seconds = 1_000.0
        self.servers: list[ServerSnapshot] = []
        self.collector = GpuCollector(
            [(reader, GpuUse.AUTO) for reader in readers],
            proc=Proc(),
            clock=lambda: Instant(self.seconds, self.seconds),
            servers=lambda: self.servers,
            interval_seconds=LONG_SECONDS,
            timeout_seconds=timeout_seconds,
        )

    async def look(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.collector.look_now()

    def xids(self) -> dict[str, dict[int, int]]:
        told = self.collector.snapshots([])
        return {one.gpu.uuid: {x: count.count for x, count in one.xids.items()} for one in told}


@contextlib.asynccontextmanager
async def scene(*readers: ToyReader, timeout_seconds: float = 5.0) -> AsyncIterator[Scene]:
    played = Scene(*readers, timeout_seconds=timeout_seconds)
    task = asyncio.create_task(played.collector.run())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await played.collector.first_look_done.wait()
        yield played
    finally:
        for reader in readers:
            reader.may_answer.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _sighted(monkeypatch):
    # Where these tests run in a container of their own, PIDs are told apart all the same.
    sight = Sight(SightKind.PROCESSES, is_visible=True)
    monkeypatch.setattr(module, "process_sight", lambda _: sight)


async def test_no_driver_is_no_collector_and_nothing_to_see():
    async with scene(ToyReader(open_error=NoDriverError("none"))) as played:
        collector = played.collector
        assert (collector.status, collector.sights, collector.snapshots([])) == (None, (), ())
    # Who waits for a look is not held up where there is nothing to look at.
    await played.look()


async def test_no_reader_at_all_is_no_collector():
    async with scene() as played:
        assert played.collector.status is None


async def test_before_the_first_look_nothing_is_said():
    played = Scene(ToyReader((gpu("0"),)), timeout_seconds=1.0)
    assert (played.collector.status, played.collector.snapshots([])) == (None, ())


async def test_devices_of_every_driver_are_shown_and_the_collector_is_up():
    one, two = ToyReader((gpu("0"),)), ToyReader((gpu("1"),), name="other")
    async with scene(one, two) as played:
        assert [told.gpu.index for told in played.collector.snapshots([])] == ["0", "1"]
        status = played.collector.status
        assert status is not None
        assert (status.name, status.is_up, status.detail) == ("gpu", True, "")
        assert status.last_success_unix_seconds == played.seconds
        assert status.duration_seconds == 0.0
        kinds = {sight.kind: sight.is_visible for sight in played.collector.sights}
        assert kinds == {SightKind.GPU: True, SightKind.GPU_PROCESSES: True}


async def test_a_driver_that_hangs_takes_its_devices_along_and_no_other():
    hung, well = ToyReader((gpu("0"),)), ToyReader((gpu("1"),), name="other")
    async with scene(hung, well, timeout_seconds=0.1) as played:
        hung.hang()
        await played.look()
        assert [told.gpu.index for told in played.collector.snapshots([])] == ["1"]
        status = played.collector.status
        assert status is not None
        assert not status.is_up
        assert "toy" in status.detail
        assert [s.is_visible for s in played.collector.sights] == [False]
        await played.look()  # does not wait for it a second time
        hung.may_answer.set()
        while not played.collector.is_up:
            await played.look()
        assert len(played.collector.snapshots([])) == 2


async def test_a_look_that_is_asked_for_begins_after_the_asking():
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        reader.gpus = (gpu("0"), gpu("1"))
        await played.look()
        assert len(played.collector.snapshots([])) == 2


async def test_many_who_ask_share_a_look_and_looks_keep_a_distance():
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await played.look()
        await asyncio.gather(*(played.look() for _ in range(50)))
        assert reader.calls.count("read") == 3
        assert not played.collector._waiting
        assert loop.time() - began >= PAUSE_SECONDS


async def test_the_pids_of_the_servers_are_handed_to_drivers_that_list_none():
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        played.servers = [local_server("a", tree=tree(pids=(4, 2))), local_server("b", tree=None)]
        await played.look()
        assert reader.asked[-1] == (4, 2)


async def test_an_orphan_of_a_server_that_nobody_knew_is_recognized_by_its_title():
    reader = ToyReader()
    with StandIn.start("--tensor-parallel-size", "1") as server:
        await server.serving()
        engine, worker = server.engine_pids[0], server.worker_pids[0]
        reader.gpus = (gpu("0", (engine, GIB), (worker, 30 * GIB), (os.getpid(), 2 * GIB)),)
        async with scene(reader) as played:
            (told,) = played.collector.snapshots([])
            # Its API server lives, known to the agent or not.
            assert (told.orphans, told.other_bytes) == ((), 34 * GIB)
            names = {one.pid: one.name for one in told.strangers}
            assert names[worker] == "VLLM::Worker"
            server.kill()
            await server.exited()
            await played.look()
            (told,) = played.collector.snapshots([])
            assert told.orphans is not None
            assert {orphan.pid for orphan in told.orphans} == {engine, worker}
            assert (told.orphan_bytes, told.other_bytes) == (31 * GIB, 3 * GIB)
            kill_all([engine, worker])
            await played.look()
            (told,) = played.collector.snapshots([])
            assert told.orphans == ()


async def test_what_ended_since_the_look_is_not_others():
    reader = ToyReader((gpu("0", (10, GIB)),))
    async with scene(reader) as played:
        played.servers = [local_server("llama", tree=tree(pids=(10,)))]
        await played.look()
        gone = [local_server("llama", tree=tree(pids=()))]
        (told,) = played.collector.snapshots(gone)
        assert (told.servers, told.strangers) == ({"llama": GIB}, ())


async def test_without_the_host_s_pids_nobody_is_named_and_it_is_said_what_helps(
    monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "vllm_agent.host.gpu.collector")
    blind = Sight(SightKind.PROCESSES, False, "in a container", "--pid=host")  # noqa: FBT003
    monkeypatch.setattr(module, "process_sight", lambda _: blind)
    holder = local_server("llama", tree=tree(pids=(10,)))
    reader = ToyReader((gpu("0", (10, GIB)),))
    async with scene(reader) as played:
        (told,) = played.collector.snapshots([holder])
        assert (told.servers, told.orphans, told.other_bytes) == ({}, None, None)
        assert told.gpu.memory_used_bytes == 2 * GIB
        sight = played.collector.sights[1]
        assert (sight.kind, sight.is_visible) == (SightKind.GPU_PROCESSES, False)
        assert "in a container" in sight.why_not
        assert sight.fix == "--pid=host"
        await played.look()
        reader.error = DriverError("does not answer for a while")
        await played.look()
        reader.error = None
        seeing = Sight(SightKind.PROCESSES, is_visible=True)
        monkeypatch.setattr(module, "process_sight", lambda _: seeing)
        await played.look()
    logged = [record for record in caplog.records if "who holds" in record.getMessage()]
    assert [record.levelname for record in logged] == ["WARNING", "INFO"]
    assert logged[0].__dict__["fix"] == "--pid=host"


async def test_pids_of_another_namespace_are_told_by_their_absence_here(monkeypatch):
    monkeypatch.setattr(module, "has_pids_of_its_own", lambda _: True)
    here, elsewhere = os.getpid(), 2**22 + 1
    reader = ToyReader((gpu("0", (here, GIB), (elsewhere, GIB)),))
    async with scene(reader) as played:
        # One may have ended since it was listed.
        assert played.collector.sights[1].is_visible
        reader.gpus = (gpu("0", (here, GIB), (elsewhere, GIB), (elsewhere + 1, GIB)),)
        await played.look()
        assert not played.collector.sights[1].is_visible
        assert "--pid=host" in played.collector.sights[1].fix
        assert played.collector.snapshots([])[0].orphans is None
        reader.gpus = (gpu("0"),)
        await played.look()
        assert played.collector.sights[1].is_visible


async def test_a_driver_that_lists_no_processes_is_told_of():
    async with scene(ToyReader((gpu("0", processes=None),))) as played:
        assert "does not tell which processes" in played.collector.sights[1].why_not


# Lost devices, and faults.


async def test_a_lost_gpu_is_logged_once_and_so_is_its_return(caplog):
    caplog.set_level(logging.INFO, "vllm_agent.host.gpu.faults")
    reader = ToyReader((gpu("0"), gpu("1")))
    async with scene(reader) as played:
        reader.gpus = (gpu("0"), gpu("1", is_lost=True, processes=None))
        for _ in range(2):
            await played.look()
        reader.gpus = (gpu("0"), gpu("1"))
        await played.look()
    told = [r.getMessage() for r in caplog.records if r.name.endswith("faults")]
    assert told == ["a GPU is lost", "a GPU is back"]


async def test_faults_are_counted_and_logged_now_and_then(caplog):
    reader = ToyReader((gpu("0"), gpu("1")), faults=[xid(31), xid(31), xid(79, "GPU-1")])
    async with scene(reader) as played:
        assert played.xids() == {"GPU-0": {31: 2}, "GPU-1": {79: 1}}
        played.seconds += LOG_SECONDS
        reader.faults = [xid(31, at=played.seconds)]
        await played.look()
        assert played.xids()["GPU-0"] == {31: 3}
        newest = played.collector.snapshots([])[0].xids[31]
        assert newest.last_unix_seconds == played.seconds
    assert [r.getMessage() for r in caplog.records].count("XID") == 3


async def test_a_fault_explains_an_end_on_its_gpu_only():
    reader = ToyReader((gpu("0", (10, GIB)), gpu("1", (20, GIB))), faults=[xid(79)])
    async with scene(reader) as played:
        fault = played.collector.fault_of([9, 10], played.seconds)
        assert fault == "XID 79 on GPU 0 (GPU-0)"
        assert played.collector.fault_of([20], played.seconds) is None
        assert played.collector.fault_of([], played.seconds) is None


async def test_who_held_a_gpu_that_is_lost_now_is_remembered():
    reader = ToyReader((gpu("0", (10, GIB)),))
    async with scene(reader) as played:
        reader.gpus = (gpu("0", is_lost=True, processes=None),)
        reader.faults = [xid(79)]
        await played.look()
        assert played.collector.fault_of([10], played.seconds) is not None
        reader.error = DriverError("gone")
        await played.look()
        assert played.collector.fault_of([10], played.seconds) is not None
        played.seconds += HELD_SECONDS + 1
        reader.faults = [xid(79, at=played.seconds)]
        reader.error = None
        await played.look()
        assert played.collector.fault_of([10], played.seconds) is None
        played.seconds += HELD_SECONDS + 1
        await played.look()
        assert not played.collector._faults._spells


async def test_a_gpu_that_was_lost_without_a_word_explains_the_end_of_who_held_it():
    reader = ToyReader((gpu("0", (10, GIB)), gpu("1", (20, GIB))))
    async with scene(reader) as played:
        reader.gpus = (gpu("1", (20, GIB)),)  # not even listed any more
        await played.look()
        assert played.collector.fault_of([10], played.seconds) == "GPU 0 (GPU-0) was lost"
        assert played.collector.fault_of([20], played.seconds) is None


async def test_a_device_that_is_no_longer_listed_is_lost_and_an_instance_is_gone():
    part = gpu("0:0", (10, GIB), uuid="MIG-a", parent_uuid="GPU-0")
    reader = ToyReader((gpu("0"), part, gpu("1")))
    async with scene(reader) as played:
        reader.gpus = (gpu("1"),)
        await played.look()
        told = {one.gpu.uuid: one.gpu for one in played.collector.snapshots([])}
        assert {uuid: one.is_lost for uuid, one in told.items()} == {"GPU-0": True, "GPU-1": False}
        lost = told["GPU-0"]
        assert (lost.name, lost.index) == ("NVIDIA H100", "0")
        assert (lost.memory_used_bytes, lost.processes) == (None, None)


async def test_a_fault_long_before_an_end_explains_nothing():
    reader = ToyReader((gpu("0", (10, GIB)),), faults=[xid(79)])
    async with scene(reader) as played:
        at = played.seconds
        assert played.collector.fault_of([10], at + FAULT_SECONDS) is not None
        assert played.collector.fault_of([10], at + FAULT_SECONDS + 0.1) is None
        reader.faults = [xid(79, at=at + 50)]
        await played.look()
        assert played.collector.fault_of([10], at + 50 + FAULT_SECONDS) is not None
        # What is told a moment later, too, was there before.
        assert played.collector.fault_of([10], at - 1) is not None


async def test_of_several_faults_the_first_is_the_cause_and_an_aftermath_never():
    (aftermath,) = AFTERMATH_XIDS
    faults = [xid(aftermath), xid(31), xid(43)]
    async with scene(ToyReader((gpu("0", (10, GIB)),), faults=faults)) as played:
        fault = played.collector.fault_of([10], played.seconds)
        assert fault is not None
        assert fault.startswith("XID 31 ")


@pytest.mark.parametrize(
    ("instance", "is_explained"), [(None, True), ("MIG-a", True), ("MIG-b", False)]
)
async def test_a_fault_of_a_mig_instance_is_its_own_and_one_of_the_device_is_everybody_s(
    instance, is_explained
):
    device = gpu("0", processes=None, memory_used_bytes=None)
    part = gpu("0:0", (10, GIB), uuid="MIG-a", parent_uuid="GPU-0")
    reader = ToyReader((device, part), faults=[xid(31, instance=instance)])
    async with scene(reader) as played:
        assert (played.collector.fault_of([10], played.seconds) is not None) is is_explained


async def test_a_storm_on_one_gpu_hides_no_fault_of_another():
    storm = [xid(13)] * 2_000
    reader = ToyReader((gpu("0", (10, GIB)), gpu("1", (20, GIB))), faults=storm)
    async with scene(reader) as played:
        reader.faults = [xid(79, "GPU-1")]
        await played.look()
        assert played.xids() == {"GPU-0": {13: 2_000}, "GPU-1": {79: 1}}
        assert played.collector.fault_of([20], played.seconds) == "XID 79 on GPU 1 (GPU-1)"


async def test_a_fault_that_goes_on_explains_ends_and_began_before_another():
    reader = ToyReader((gpu("0", (10, GIB)),))
    async with scene(reader) as played:
        began = played.seconds
        for after, number in ((0, 31), (40, 94), (55, 31)):
            reader.faults = [xid(number, at=began + after)]
            await played.look()
        fault = played.collector.fault_of([10], began + 56)
        assert fault is not None
        assert fault.startswith("XID 31 ")
        # An old one that comes again after a while is a new one.
        reader.faults = [xid(94, at=began + 200), xid(31, at=began + 201)]
        await played.look()
        fault = played.collector.fault_of([10], began + 202)
        assert fault is not None
        assert fault.startswith("XID 94 ")


async def test_a_look_that_somebody_asked_for_is_repeated_soon(monkeypatch):
    monkeypatch.setattr(module, "AGAIN_SECONDS", PAUSE_SECONDS)
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        played.collector.look_soon()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while reader.calls.count("read") < 3:  # noqa: ASYNC110 - a thread sends no event here
                await asyncio.sleep(0.01)
    assert AGAIN_SECONDS < LONG_SECONDS


async def test_no_driver_at_all_is_one_line_of_the_log(caplog):
    caplog.set_level(logging.INFO)
    readers = [ToyReader(open_error=NoDriverError(f"no {name}"), name=name) for name in "ab"]
    async with scene(*readers) as played:
        await played.look()
    assert [record.getMessage() for record in caplog.records] == ["no GPU driver was found"]
    assert caplog.records[0].__dict__["detail"] == "no a; no b"


async def test_an_absent_driver_beside_another_is_not_worth_a_line(caplog):
    caplog.set_level(logging.INFO)
    async with scene(ToyReader((gpu("0"),)), ToyReader(open_error=NoDriverError("none"))):
        pass
    assert [record.getMessage() for record in caplog.records] == ["found a GPU driver"]


async def test_the_last_success_is_the_last_look_that_succeeded():
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        succeeded = played.seconds
        reader.error = DriverError("gone")
        played.seconds += 30
        await played.look()
        assert played.collector.status is not None
        assert played.collector.status.last_success_unix_seconds == succeeded


async def test_a_fault_of_ours_in_a_look_ends_neither_the_looking_nor_who_waits(
    monkeypatch, caplog
):
    reader = ToyReader((gpu("0"),))
    async with scene(reader) as played:
        with monkeypatch.context() as broken:
            broken.setattr(GpuCollector, "_tell_blind", lambda *_, **__: 1 / 0)
            for _ in range(2):
                await played.look()
        assert played.collector.snapshots([]) == ()
        assert played.collector.status is not None
        assert not played.collector.status.is_up
        assert "division by zero" in played.collector.status.detail
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        played.seconds += 30
        reader.gpus = (replace(gpu("0"), uuid="GPU-new"),)
        await played.look()
        assert played.collector.snapshots([])[0].gpu.uuid == "GPU-new"
        assert played.collector.is_up
        assert played.collector.status.last_success_unix_seconds == played.seconds


# What a load and an end ask.


async def test_what_processes_hold_is_the_sum_over_all_devices():
    devices = (gpu("0", (11, 30 * GIB), (12, 2 * GIB)), gpu("1", (11, 3 * GIB), (99, GIB)))
    async with scene(ToyReader(gpus=devices)) as played:
        assert played.collector.used_bytes([11, 12]) == 35 * GIB
        assert played.collector.used_bytes([5]) == 0


@pytest.mark.parametrize(
    "devices",
    [
        (),
        (gpu("0", processes=None),),
        (gpu("0", (11, None)),),
    ],
)
async def test_what_a_driver_does_not_tell_stays_unknown(devices):
    async with scene(ToyReader(gpus=devices)) as played:
        assert played.collector.used_bytes([11]) is None


async def test_a_device_that_is_cut_into_instances_hides_none_of_them():
    devices = (gpu("0", processes=None), gpu("0:1", (11, GIB)))
    async with scene(ToyReader(gpus=devices)) as played:
        assert played.collector.used_bytes([11]) == GIB


async def test_where_pids_mean_nothing_nothing_is_claimed(monkeypatch):
    hidden = Sight(SightKind.PROCESSES, is_visible=False, why_not="in a container")
    monkeypatch.setattr(module, "process_sight", lambda _: hidden)
    async with scene(ToyReader(gpus=(gpu("0", (11, GIB)),))) as played:
        assert played.collector.used_bytes([11]) is None
        assert played.collector.holders([]) == ""


async def test_who_else_holds_memory_is_named():
    own = os.getpid()
    async with scene(ToyReader(gpus=(gpu("0", (own, GIB)),))) as played:
        assert f"(PID {own}): 1.0 GiB of GPU 0" in played.collector.holders([])
        assert played.collector.holders([own]) == ""


async def test_what_a_start_has_to_know_of_the_devices():
    readers = ToyReader((gpu("0"),), name="nvml"), ToyReader(open_error=no_driver(), name="amdgpu")
    async with scene(*readers) as played:
        seen = played.collector.seen()
        assert [one.index for one in seen.devices] == ["0"]
        assert seen.is_whole
        assert not seen.is_required
    # Of a kind that is not asked nobody knows.
    async with scene(ToyReader((gpu("0"),), name="nvml")) as played:
        assert not played.collector.seen().is_whole


async def test_before_the_first_look_and_while_a_driver_hangs_not_all_is_seen():
    readers = ToyReader(name="nvml"), ToyReader(name="amdgpu")
    played = Scene(*readers, timeout_seconds=1.0)
    assert not played.collector.seen().is_whole
    async with scene(*readers, timeout_seconds=0.1) as played:
        assert played.collector.seen() == GpusSeen((), is_whole=True)
        readers[0].hang()
        await played.look()
        assert not played.collector.seen().is_whole


async def test_a_driver_that_is_required_and_was_never_there_is_known_to_be_missing():
    def collector(reader: ToyReader) -> GpuCollector:
        return GpuCollector(
            [(reader, GpuUse.REQUIRED), (ToyReader(name="amdgpu"), GpuUse.AUTO)],
            proc=Proc(),
            clock=lambda: Instant(1.0, 1.0),
            servers=list,
            interval_seconds=LONG_SECONDS,
            timeout_seconds=5.0,
        )

    missing = collector(ToyReader(open_error=no_driver(), name="nvml"))
    await missing._look()
    assert not missing.is_up
    missing.first_look_done.set()
    assert missing.seen() == GpusSeen((), is_whole=True, is_required=True)
    # One that was unloaded comes back.
    reader = ToyReader((gpu("0"),), name="nvml")
    unloaded = collector(reader)
    await unloaded._look()
    reader.error = no_driver()
    await unloaded._look()
    unloaded.first_look_done.set()
    assert unloaded.seen() == GpusSeen((), is_whole=False, is_required=True)


async def test_invented_devices_are_no_evidence():
    async with scene(ToyReader((gpu("0"),), name="demo")) as played:
        assert played.collector.snapshots([])
        assert played.collector.seen() == GpusSeen()


async def test_who_holds_the_memory_of_some_devices():
    own = os.getpid()
    reader = ToyReader((gpu("0", (own, 3 * GIB)), gpu("1", (own, 5 * GIB))))
    async with scene(reader) as played:
        assert played.collector.holders_of(["GPU-0"]).endswith(f"(PID {own}): 3.0 GiB of GPU 0")
        assert played.collector.holders_of([]) == ""


def no_driver() -> NoDriverError:
    return NoDriverError("none")
