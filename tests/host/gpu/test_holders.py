"""Who holds the memory of the GPUs, in a line for people."""

from __future__ import annotations

from tests.host.gpu.scene import GIB, gpu
from vllm_agent.host.gpu.holders import MAX_HOLDERS, holders_text
from vllm_agent.observations import ComponentRole
from vllm_agent.snapshot import GpuOrphan, GpuSnapshot, GpuStranger

FULL = GpuSnapshot(
    gpu("0"),
    servers={"qwen": 8 * GIB, "unknown": None},
    orphans=(GpuOrphan(7, ComponentRole.WORKER, "llama", 30 * GIB, 5_000.0),),
    strangers=(GpuStranger(9, "python3", 2 * GIB), GpuStranger(10, None, None)),
)


def test_the_largest_come_first_and_are_named():
    assert holders_text([FULL]) == (
        "orphan of llama (PID 7): 30.0 GiB of GPU 0, server qwen: 8.0 GiB of GPU 0, "
        "python3 (PID 9): 2.0 GiB of GPU 0"
    )


def test_processes_of_the_launch_itself_are_left_out():
    assert "PID 7" not in holders_text([FULL], {7})
    assert "PID 9" not in holders_text([FULL], {9})


def test_of_many_the_largest_are_named():
    strangers = tuple(GpuStranger(pid, "python3", pid * GIB) for pid in range(1, 9))
    told = holders_text([GpuSnapshot(gpu("1"), strangers=strangers)])
    assert told.count("PID") == MAX_HOLDERS
    assert told.startswith("python3 (PID 8): 8.0 GiB of GPU 1")


def test_where_nobody_holds_any_or_nobody_can_tell_nothing_is_said():
    assert holders_text([GpuSnapshot(gpu("0")), GpuSnapshot(gpu("1"), orphans=())]) == ""
    orphan = GpuOrphan(7, ComponentRole.WORKER, None, None, 5_000.0)
    assert holders_text([GpuSnapshot(gpu("0"), orphans=(orphan,))]) == ""


def test_an_orphan_and_a_stranger_without_a_name_have_their_pid():
    orphan = GpuOrphan(7, ComponentRole.WORKER, None, GIB, 5_000.0)
    seen = GpuSnapshot(gpu("0"), orphans=(orphan,), strangers=(GpuStranger(8, None, GIB),))
    assert holders_text([seen]) == (
        "orphan (PID 7): 1.0 GiB of GPU 0, a process (PID 8): 1.0 GiB of GPU 0"
    )
