"""`doctor` on GPUs: drivers, devices that are lost or had faults, and memory that nobody needs."""

from __future__ import annotations

import time
from dataclasses import replace
from types import MappingProxyType

import pytest
from aiohttp import web

from tests.cli.conftest import said
from tests.expose.snapshots import (
    GIB,
    bare_device,
    device,
    ended_local_server,
    gpu,
    local_server,
    lost_device,
    orphaned_device,
    server,
)
from vllm_agent.cli.agent_client import GPUS_PATH
from vllm_agent.cli.gpu_findings import GIVE_GPUS, RECENT_XID_SECONDS, SHOW_GPUS
from vllm_agent.cli.gpu_rows import NO_DEVICE, NO_DRIVER
from vllm_agent.observations import ComponentRole, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot, FaultCount, GpuOrphan

UP = CollectorSnapshot("gpu", is_up=True)
HUNG = CollectorSnapshot("gpu", is_up=False, detail="nvml did not answer within 2 s")


INSTANCE = device("0:1", gpu=gpu("0:1", uuid="MIG-1", parent_uuid="GPU-0"))


def show(served, *servers, collectors=(UP,), **changes) -> None:
    served.show(*servers, collectors=collectors, discovered=len(servers), **changes)


def about_gpus(outcome) -> list[str]:
    """Findings on GPUs, each with the line that says what would help."""
    kept, is_about = [], False
    for line in said(outcome):
        if not line.startswith("try: "):
            is_about = line.split()[1].startswith("gpu")
        if is_about:
            kept.append(line)
    return kept


def orphaned(*pids: int, server="qwen"):
    orphans = tuple(
        GpuOrphan(pid, ComponentRole.WORKER, server, 12 * GIB, time.time()) for pid in pids
    )
    return orphaned_device(orphans=orphans, orphan_bytes=12 * GIB * len(pids), xids={})


def test_drivers_are_told_with_their_devices(cli, served) -> None:
    instance = gpu("0:1", parent_uuid="GPU-0")
    show(served, gpus=(lost_device("1"), device(), device("0:1", gpu=instance), bare_device()))

    found = [line for line in said(cli("doctor")) if line.startswith("ok gpus")]

    assert found == [
        "ok gpus driver of NVIDIA 580.95.05 found, 2 device(s), 1 MIG instance(s)",
        "ok gpus driver of AMD found, 1 device(s)",
    ]


@pytest.mark.parametrize(
    ("shown", "collectors", "told"),
    [
        ((), (), [f"ok gpus {NO_DRIVER}"]),
        ((server(),), (), [f"ok gpus {NO_DRIVER}"]),
        ((), (UP,), [f"note gpus {NO_DEVICE}"]),
    ],
)
def test_a_host_without_gpus(cli, served, shown, collectors, told) -> None:
    show(served, *shown, collectors=collectors)

    outcome = cli("doctor")

    assert (outcome.code, about_gpus(outcome)[:1]) == (0, told)


def test_a_vllm_without_a_driver_is_worth_a_note(cli, served) -> None:
    show(served, local_server(), collectors=())

    outcome = cli("doctor")

    assert outcome.code == 0
    note, fix = about_gpus(outcome)
    assert note.startswith(f"note gpus {NO_DRIVER}, though vLLM runs on it")
    assert fix == f"try: {GIVE_GPUS}"


def test_a_driver_that_is_required_and_not_there_is_a_problem_told_once(cli, served) -> None:
    missing = Sight(SightKind.GPU, False, "nvml: no libnvidia-ml.so.1", "--gpus all")  # noqa: FBT003 - as in a page
    show(served, local_server(), collectors=(HUNG,), sights=(missing,))

    outcome = cli("doctor")

    assert outcome.code == 1
    assert about_gpus(outcome) == [
        "problem gpu not visible of this host: nvml: no libnvidia-ml.so.1",
        "try: --gpus all",
    ]
    assert said(outcome)[-1] == "1 problem"


def test_a_collector_that_is_down_is_a_problem(cli, served) -> None:
    show(served, collectors=(HUNG,))

    outcome = cli("doctor")

    assert outcome.code == 1
    assert "problem collector gpu does not work: nvml did not answer within 2 s" in said(outcome)
    assert about_gpus(outcome) == []


def test_holders_that_cannot_be_seen_are_a_problem_with_what_would_help(cli, served) -> None:
    hidden = Sight(SightKind.GPU_PROCESSES, False, "not the host's PIDs", "pid: host")  # noqa: FBT003 - as in a page
    show(served, gpus=(device(),), sights=(Sight(SightKind.GPU, is_visible=True), hidden))

    outcome = cli("doctor")

    assert outcome.code == 1
    lines = said(outcome)
    place = lines.index("problem gpu_processes not visible of this host: not the host's PIDs")
    assert lines[place + 1] == "try: pid: host"
    assert "ok visible gpu" in lines


def test_a_lost_device_is_a_problem(cli, served) -> None:
    named = lost_device("1", xids={})
    show(served, gpus=(device(), replace(named, gpu=replace(named.gpu, name="NVIDIA H100"))))

    outcome = cli("doctor")

    assert outcome.code == 1
    assert about_gpus(outcome)[1] == (
        "problem gpus GPU 1 (H100) is lost: the driver no longer reaches it"
    )
    assert "reboot" in about_gpus(outcome)[2]


def test_faults_of_the_last_day_are_worth_a_note(cli, served) -> None:
    now = time.time()
    old = FaultCount(1, now - RECENT_XID_SECONDS - 60)
    recent = FaultCount(2, now - RECENT_XID_SECONDS + 60)
    show(served, gpus=(device(xids=MappingProxyType({13: old, 31: recent})),))

    outcome = cli("doctor")

    assert outcome.code == 0
    _, note, fix = about_gpus(outcome)
    assert note == "note gpus GPU 0 (H100 80GB HBM3) had XID 31, 2 times, last 23h59m ago"
    assert "xid-errors" in fix


def test_orphans_that_hold_memory_of_a_device_are_told_once_with_how_to_free_it(
    cli, served
) -> None:
    # The tree of this server has two orphans.
    show(served, ended_local_server("qwen"), gpus=(orphaned(4301, 4302),))

    outcome = cli("doctor")

    assert outcome.code == 0
    assert about_gpus(outcome)[1:] == [
        "note gpus GPU 1 (H100 80GB HBM3): 2 orphans of qwen hold 24.0 GiB",
        f"try: {SHOW_GPUS}",
    ]
    assert not [line for line in said(outcome) if "outlived" in line]


def test_orphans_beside_those_that_hold_memory_of_a_device_are_told_too(cli, served) -> None:
    # One on two devices is one.
    show(served, ended_local_server("qwen"), gpus=(orphaned(4301), orphaned(4301)))

    (rest,) = [line for line in said(cli("doctor")) if "outlived" in line]

    assert rest == ("note orphans 1 more of qwen outlived their main process, without GPU memory")


@pytest.mark.parametrize(
    ("gpus", "held"),
    [
        ((device(),), ", without GPU memory"),
        ((bare_device(gpu=gpu()), INSTANCE), ", without GPU memory"),
        ((device(), lost_device()), " and may hold memory and GPUs"),
        ((), " and may hold memory and GPUs"),
    ],
)
def test_orphans_are_without_gpu_memory_where_every_device_tells_its_holders(
    cli, served, gpus, held
) -> None:
    show(served, ended_local_server("qwen"), gpus=gpus)

    (rest,) = [line for line in said(cli("doctor")) if "outlived" in line]

    assert rest == f"note orphans 2 of qwen outlived their main process{held}"


def test_an_orphan_of_nobody_known_is_told(cli, served) -> None:
    show(served, gpus=(orphaned(4301, server=None),))

    note = about_gpus(cli("doctor"))[1]

    assert note == "note gpus GPU 1 (H100 80GB HBM3): 1 orphan holds 12.0 GiB"


def test_an_older_agent_has_nothing_to_say_of_gpus(cli, served) -> None:
    served.refused[GPUS_PATH] = web.HTTPNotFound
    show(served, ended_local_server("qwen"), gpus=(orphaned(4301),))

    outcome = cli("doctor")

    assert outcome.code == 0
    assert about_gpus(outcome) == []
    assert any("2 of qwen outlived" in line for line in said(outcome))


def test_a_fault_with_gpus_is_a_problem_beside_the_others(cli, served) -> None:
    served.refused[GPUS_PATH] = ValueError
    show(served, local_server())

    outcome = cli("doctor")

    assert outcome.code == 1
    assert "because of a fault of its own" in about_gpus(outcome)[0]
    assert said(outcome)[0].startswith("ok agent")
