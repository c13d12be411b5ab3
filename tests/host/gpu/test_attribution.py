"""Who holds the memory of a GPU, told from PIDs alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.expose.snapshots import local_server, server, tree
from tests.host.gpu.scene import GIB, gpu
from vllm_agent.host.gpu.attribution import MAX_STRANGERS, Owners, attribute
from vllm_agent.observations import ComponentRole, GpuProcess, Orphan, ProcessId
from vllm_agent.snapshot import FaultCount, GpuOrphan, GpuSnapshot, GpuStranger, ServerSnapshot


def orphan(pid: int, role: ComponentRole = ComponentRole.WORKER) -> Orphan:
    return Orphan(ProcessId("b00d", pid, 100), role, "tp0", 5_000.0)


def holder(name: str, *pids: int, orphans: tuple[int, ...] = ()) -> ServerSnapshot:
    left = tuple(orphan(pid) for pid in orphans)
    return local_server(name, tree=tree(pids=(*pids, *orphans), orphans=left))


def shares(
    gpus: Any,
    servers: Any = (),
    strays: Any = None,
    xids: Any = None,
    *,
    before: Owners | None = None,
    can_tell: bool = True,
) -> tuple[GpuSnapshot, ...]:
    owners = Owners.of(servers, strays or {}).after(before or Owners())
    return attribute(gpus, owners if can_tell else None, {5: "python3"}, xids or {})


def test_memory_of_a_whole_tree_is_the_server_s():
    llama, qwen = holder("llama", 10, 11, 12), holder("qwen", 20)
    devices = [gpu("0", (11, 30 * GIB), (12, 2 * GIB), (20, 8 * GIB)), gpu("1", (12, 3 * GIB))]
    first, second = shares(devices, [llama, qwen])
    assert first.servers == {"llama": 32 * GIB, "qwen": 8 * GIB}
    assert (first.orphans, first.orphan_bytes, first.other_bytes) == ((), 0, GIB)
    assert second.servers == {"llama": 3 * GIB}


def test_what_outlived_its_main_process_is_an_orphan_of_its_server():
    (told,) = shares([gpu("0", (11, 30 * GIB))], [holder("llama", 10, orphans=(11,))])
    assert told.servers == {}
    assert told.orphans == (GpuOrphan(11, ComponentRole.WORKER, "llama", 30 * GIB, 5_000.0),)
    assert (told.orphan_bytes, told.other_bytes) == (30 * GIB, GIB)


def test_a_stray_that_no_server_knows_is_an_orphan_of_nobody():
    (told,) = shares([gpu("0", (99, GIB))], [holder("llama", 10)], {99: orphan(99)})
    assert told.orphans == (GpuOrphan(99, ComponentRole.WORKER, None, GIB, 5_000.0),)


def test_a_stray_that_a_server_knows_by_now_is_that_server_s():
    (told,) = shares([gpu("0", (11, GIB))], [holder("llama", 11)], {11: orphan(11)})
    assert told.servers == {"llama": GIB}
    (told,) = shares([gpu("0", (11, GIB))], [holder("llama", orphans=(11,))], {11: orphan(11)})
    assert told.orphans is not None
    assert [one.server for one in told.orphans] == ["llama"]


def test_processes_of_others_are_other_memory():
    (told,) = shares([gpu("0", (5, 7 * GIB))], [holder("llama", 10), server("elsewhere")])
    assert (told.servers, told.orphans, told.other_bytes) == ({}, (), 8 * GIB)
    assert told.strangers == (GpuStranger(5, "python3", 7 * GIB),)


def test_of_many_others_the_largest_are_named():
    many = [(pid, pid * GIB) for pid in range(100, 105 + MAX_STRANGERS)]
    (told,) = shares([gpu("0", *many, (7, None))])
    assert [one.pid for one in told.strangers] == [pid for pid, _ in many[::-1]][:MAX_STRANGERS]
    assert told.strangers[0].name is None


def test_what_ended_since_the_look_stays_with_who_had_it():
    before = Owners.of([holder("llama", 10, 11), holder("qwen", orphans=(20,))], {30: orphan(30)})
    device = gpu("0", (11, GIB), (20, 2 * GIB), (30, 4 * GIB))
    (told,) = shares([device], [holder("llama", 10)], before=before)
    assert told.servers == {"llama": GIB}
    assert told.orphans is not None
    assert {one.pid: one.server for one in told.orphans} == {20: "qwen", 30: None}
    (told,) = shares([gpu("0", (11, GIB))], [holder("qwen", 11)], before=before)
    assert told.servers == {"qwen": GIB}
    # Who has them now counts more: the engine is an orphan by now, the stray was claimed.
    now = [holder("llama", orphans=(11,)), holder("new", 30)]
    (told,) = shares([device], now, before=before)
    assert told.servers == {"new": 4 * GIB}
    assert told.orphans is not None
    assert {one.pid: one.server for one in told.orphans} == {11: "llama", 20: "qwen"}


def test_an_amount_that_is_not_told_makes_the_sums_unknown():
    (told,) = shares([gpu("0", (10, None), (11, GIB))], [holder("llama", 10, 11)])
    assert told.servers == {"llama": None}
    assert (told.orphan_bytes, told.other_bytes) == (0, None)
    (told,) = shares([gpu("0", (11, None))], [holder("llama", orphans=(11,))])
    assert (told.orphan_bytes, told.other_bytes) == (None, None)
    assert told.orphans is not None
    assert len(told.orphans) == 1
    (told,) = shares([gpu("0", (10, GIB), memory_used_bytes=None)], [holder("llama", 10)])
    assert (told.servers, told.other_bytes) == ({"llama": GIB}, None)


def test_without_a_list_of_processes_nobody_holds_anything_that_is_known():
    (told,) = shares([gpu("0", processes=None)], [holder("llama", 10)])
    assert (told.servers, told.orphans, told.orphan_bytes, told.other_bytes) == ({}, *[None] * 3)


def test_pids_that_mean_nothing_here_are_given_to_nobody():
    (told,) = shares([gpu("0", (10, GIB))], [holder("llama", 10)], can_tell=False)
    assert (told.servers, told.orphans, told.other_bytes) == ({}, None, None)


def test_faults_go_with_their_device_even_when_it_is_lost():
    xids = {"GPU-1": {79: FaultCount(2, 50.0)}}
    first, second = shares([gpu("0"), gpu("1", is_lost=True, processes=None)], xids=xids)
    assert (first.xids, second.xids) == ({}, {79: FaultCount(2, 50.0)})


def test_shared_memory_that_counts_twice_leaves_nothing_for_others():
    device = gpu("0", (10, 50 * GIB), (11, 50 * GIB), memory_used_bytes=60 * GIB)
    (told,) = shares([device], [holder("llama", 10, 11)])
    assert told.other_bytes == 0


PIDS = st.integers(1, 12)


@given(
    processes=st.dictionaries(PIDS, st.integers(0, 80 * GIB)),
    trees=st.lists(st.tuples(st.sets(PIDS), st.sets(PIDS)), max_size=3),
    strays=st.sets(PIDS),
)
def test_every_byte_that_is_used_belongs_to_exactly_one(processes, trees, strays):
    servers = [
        holder(f"s{number}", *(pids - orphans), orphans=tuple(orphans))
        for number, (pids, orphans) in enumerate(trees)
    ]
    held = tuple(GpuProcess(pid, used) for pid, used in processes.items())
    device = gpu("0", memory_used_bytes=sum(processes.values()) + 5, processes=held)
    (told,) = shares([device], servers, {pid: orphan(pid) for pid in strays})
    assert told.orphan_bytes is not None
    assert told.other_bytes is not None
    total = sum(used or 0 for used in told.servers.values()) + told.orphan_bytes
    assert total + told.other_bytes == device.memory_used_bytes
