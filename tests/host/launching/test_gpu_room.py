"""Whether the GPUs of a launch are there and have room, by what drivers say of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tests.host.gpu.scene import GIB, gpu
from tests.host.launching.fake_gpus import FakeGpus
from tests.host.launching.plans import DEADLINE_SECONDS, a_plan, some_patience
from vllm_agent.host.launching import gpu_room as module
from vllm_agent.host.launching.gpu_room import (
    GPU_MEMORY_WAIT_SECONDS,
    LOOK_AGAIN_SECONDS,
    LOOK_SECONDS,
    MAX_NAMED,
    MAX_VARIABLE_CHARACTERS,
    lacks_gpu_memory,
    lacks_gpus,
)
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import GpuVendor

if TYPE_CHECKING:
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.observations import Gpu

OPT_OUT = "; a vLLM built for CPUs has CUDA_VISIBLE_DEVICES: '' in managed.env"
SOME_SECONDS = 0.05


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(module, "GPU_MEMORY_WAIT_SECONDS", SOME_SECONDS)


async def lacks(plan: LaunchPlan, gpus: FakeGpus) -> Refusal | None:
    return await lacks_gpus(plan, gpus)  # type: ignore[arg-type]


async def lacks_memory(plan: LaunchPlan, gpus: FakeGpus) -> Refusal | None:
    with some_patience() as patience:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await lacks_gpu_memory(plan, gpus, patience)  # type: ignore[arg-type]


def cards(*free_gib: float | None, **changes: object) -> tuple[Gpu, ...]:
    """Devices of 80 GiB with so much free; None is one whose memory nobody tells."""
    return tuple(
        gpu(
            str(number),
            memory_free_bytes=None if free is None else int(free * GIB),
            memory_used_bytes=None if free is None else int((80 - free) * GIB),
            **changes,
        )
        for number, free in enumerate(free_gib)
    )


FULL = cards(20)


# GPUs that are there.


async def test_no_gpu_in_sight_is_no_evidence_that_one_is_needed():
    assert await lacks(a_plan(), FakeGpus(())) is None
    assert await lacks_gpus(a_plan(), None) is None


async def test_a_gpu_that_is_named_or_required_must_be_there():
    named = a_plan(env={"CUDA_VISIBLE_DEVICES": "0"})
    assert await lacks(named, FakeGpus(())) == Refusal(
        Reason.GPU_UNAVAILABLE,
        f"this host has no GPU, and CUDA_VISIBLE_DEVICES=0 names one{OPT_OUT}",
    )
    # Where a driver hangs, or is not asked, it may be there.
    assert await lacks(named, FakeGpus((), is_whole=False)) is None
    required = await lacks(a_plan(), FakeGpus((), is_required=True))
    assert required is not None
    assert "this host has no GPU, and the configuration requires one" in required.detail


async def test_a_server_without_gpus_needs_none():
    hidden = a_plan(env={"VLLM_CPU_KVCACHE_SPACE": "4"}, gpus=8)
    gpus = FakeGpus(FULL, is_required=True)
    assert await lacks(hidden, gpus) is None
    assert await lacks_memory(hidden, gpus) is None
    assert not gpus.looked


async def test_as_many_as_it_spreads_over_must_be_in_sight():
    there = FakeGpus(cards(79, 79, 79))
    assert await lacks(a_plan(gpus=3), there) is None
    too_few = await lacks(a_plan(gpus=4), there)
    assert too_few == Refusal(Reason.GPU_UNAVAILABLE, f"it needs 4 GPUs and would see 3{OPT_OUT}")
    chosen = await lacks(a_plan(gpus=2, env={"CUDA_VISIBLE_DEVICES": "1"}), there)
    assert chosen is not None
    assert chosen.detail.startswith("it needs 2 GPUs and would see 1 (CUDA_VISIBLE_DEVICES=1);")
    none = await lacks(a_plan(env={"CUDA_VISIBLE_DEVICES": "7"}), there)
    assert none is not None
    assert none.detail.startswith("it needs 1 GPU and would see none (CUDA_VISIBLE_DEVICES=7);")


async def test_lost_devices_are_told_of_but_not_all():
    lost = tuple(one.lost() for one in cards(*(79,) * (MAX_NAMED + 1)))
    refusal = await lacks(a_plan(), FakeGpus(lost))
    assert refusal is not None
    assert "the driver has lost GPU 0, 1, 2;" in refusal.detail


async def test_a_variable_is_shown_within_bounds():
    asked = "9\n" + "," * 1000
    refusal = await lacks(a_plan(env={"CUDA_VISIBLE_DEVICES": asked}), FakeGpus(FULL))
    assert refusal is not None
    shown = f"CUDA_VISIBLE_DEVICES={asked}".replace("\n", "?")[:MAX_VARIABLE_CHARACTERS]
    assert f"({shown})" in refusal.detail


async def test_of_amd_the_number_is_not_judged():
    assert await lacks(a_plan(gpus=8), FakeGpus(cards(79, vendor=GpuVendor.AMD))) is None


async def test_a_driver_that_hangs_stands_in_nobodys_way(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", SOME_SECONDS)
    gpus = FakeGpus(cards(1))
    gpus.may_look.clear()
    assert await lacks(a_plan(gpus=2), gpus) is None
    assert await lacks_memory(a_plan(), gpus) is None


# Their memory.


async def test_the_share_of_each_gpu_that_it_uses_must_be_free():
    assert await lacks_memory(a_plan(), FakeGpus(cards(72))) is None
    assert await lacks_memory(a_plan(gpu_memory_utilization=0.25), FakeGpus(FULL)) is None
    assert await lacks_memory(a_plan(), FakeGpus(cards(79, 1))) is None  # it takes the first
    assert await lacks_memory(a_plan(gpus=2), FakeGpus(cards(79, 1))) is not None


async def test_what_the_driver_keeps_for_itself_is_nobodys_share():
    total = gpu("0", memory_total_bytes=80 * GIB, memory_used_bytes=0, memory_free_bytes=75 * GIB)
    assert await lacks_memory(a_plan(gpu_memory_utilization=0.99), FakeGpus((total,))) is None
    only_total = gpu("0", memory_used_bytes=None, memory_free_bytes=79 * GIB)
    assert (
        await lacks_memory(a_plan(gpu_memory_utilization=0.99), FakeGpus((only_total,))) is not None
    )


async def test_who_holds_it_is_told_once_the_wait_is_over(caplog):
    caplog.set_level(logging.INFO)
    gpus = FakeGpus(cards(20, 79))
    refusal = await lacks_memory(a_plan(), gpus)
    assert refusal == Refusal(
        Reason.GPU_MEMORY_TAKEN,
        "GPU 0 has 20.0 GiB free of 80.0 GiB, and it takes 0.9 of each "
        f"(gpu_memory_utilization){OPT_OUT}",
        "python (PID 7): 60.0 GiB of GPU-0",
    )
    assert gpus.looked > 1
    assert gpus.asked == ["GPU-0"]
    assert [record.message for record in caplog.records] == ["a start waits for GPU memory"]


async def test_memory_that_is_released_meanwhile_is_waited_for(monkeypatch):
    monkeypatch.setattr(module, "GPU_MEMORY_WAIT_SECONDS", DEADLINE_SECONDS)
    gpus = FakeGpus(FULL, FULL, cards(40), cards(79), FULL)
    assert await lacks_memory(a_plan(), gpus) is None
    assert gpus.looked == 3


async def test_a_wait_can_be_cancelled(monkeypatch):
    monkeypatch.setattr(module, "GPU_MEMORY_WAIT_SECONDS", DEADLINE_SECONDS)
    gpus = FakeGpus(FULL)
    task = asyncio.create_task(lacks_memory(a_plan(), gpus))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await gpus.has_looked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_not_all_gpus_are_named():
    refusal = await lacks_memory(a_plan(gpus=5), FakeGpus(cards(*(1,) * 5)))
    assert refusal is not None
    assert "GPU 2 has 1.0 GiB free of 80.0 GiB, 2 GPUs more have too little" in refusal.detail


@pytest.mark.parametrize(
    "devices",
    [(), cards(None), (gpu("0", memory_total_bytes=None, memory_used_bytes=None),)],
)
async def test_memory_of_which_nothing_is_known_is_enough(devices):
    assert await lacks_memory(a_plan(), FakeGpus(devices)) is None


async def test_chosen_gpus_are_those_that_count():
    gpus = FakeGpus(cards(79, 1, 79))
    assert await lacks_memory(a_plan(gpus=2, env={"CUDA_VISIBLE_DEVICES": "2,0"}), gpus) is None
    assert await lacks_memory(a_plan(env={"CUDA_VISIBLE_DEVICES": "GPU-1"}), gpus) is not None


async def test_an_instance_counts_by_its_own_memory():
    cut = gpu("0", memory_total_bytes=None, memory_used_bytes=None, memory_free_bytes=None)
    part = gpu("0:0", uuid="MIG-1", parent_uuid=cut.uuid, memory_used_bytes=9, memory_free_bytes=1)
    gpus = FakeGpus((cut, part))
    assert await lacks_memory(a_plan(env={"CUDA_VISIBLE_DEVICES": "MIG-1"}), gpus) is not None
    assert await lacks_memory(a_plan(), gpus) is None


@pytest.mark.parametrize(
    "flags",
    [("--device-ids", "1"), ("--distributed-executor-backend=ray",), ("-dpb", "ray")],
)
async def test_where_others_choose_the_gpu_the_emptiest_is_enough(flags):
    gpus = FakeGpus(cards(1, 79))
    assert await lacks_memory(a_plan(), gpus) is not None
    assert await lacks_memory(a_plan(*flags), gpus) is None
    assert await lacks_memory(a_plan(*flags), FakeGpus(cards(1, None))) is None
    full = await lacks_memory(a_plan(*flags), FakeGpus(cards(1, 2)))
    assert full is not None
    assert full.detail.startswith("GPU 1 has 2.0 GiB")


async def test_ray_does_not_go_by_the_variable():
    plan = a_plan("-dpb", "ray", env={"CUDA_VISIBLE_DEVICES": "0"})
    assert await lacks_memory(plan, FakeGpus(cards(1, 79))) is None


@pytest.mark.parametrize(("mode", "is_refused"), [(None, True), ("SPX", True), ("CPX", False)])
async def test_a_partitioned_device_of_amd_is_not_judged(monkeypatch, mode, is_refused):
    paths = []

    def read_text(path):
        paths.append(path)
        return mode

    monkeypatch.setattr(module, "read_text", read_text)
    device = gpu("0", vendor=GpuVendor.AMD, pci_bus_id="0000:0c:00.0", memory_free_bytes=GIB)
    refusal = await lacks_memory(a_plan(), FakeGpus((device,)))
    assert (refusal is not None) is is_refused
    assert set(paths) == {"/sys/bus/pci/devices/0000:0c:00.0/current_compute_partition"}


def test_bounds(monkeypatch):
    monkeypatch.undo()
    # A restart has to wait for what the launch before it held, and an operator for the answer.
    assert 10 <= GPU_MEMORY_WAIT_SECONDS <= 60
    assert LOOK_AGAIN_SECONDS == 1.0
    assert LOOK_SECONDS < GPU_MEMORY_WAIT_SECONDS
