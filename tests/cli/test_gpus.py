"""`gpus`: every device and who holds its memory, for people, for pipes and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web

from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import (
    GIB,
    bare_device,
    device,
    gpu,
    lost_device,
    orphaned_device,
    server,
)
from vllm_agent.cli.agent_client import GPUS_PATH
from vllm_agent.cli.gpu_rows import HEADINGS, NO_DEVICE, NO_DRIVER
from vllm_agent.cli.gpu_terminal import fit
from vllm_agent.cli.process_rows import SHOW_ORPHANS
from vllm_agent.observations import ComponentRole, Sight, SightKind
from vllm_agent.snapshot import (
    CollectorSnapshot,
    FaultCount,
    GpuOrphan,
    GpuSnapshot,
    GpuStranger,
)

UP = CollectorSnapshot("gpu", is_up=True)
HUNG = CollectorSnapshot("gpu", is_up=False, detail="nvml did not answer within 2 s")
MIG_NAME = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"


def orphan(pid: int, age_seconds: float = 0.0, **changes) -> GpuOrphan:
    started = time.time() - age_seconds
    one = GpuOrphan(pid, ComponentRole.WORKER, "llama", 12 * GIB, started)
    return replace(one, **changes)


def holding(index: str, *orphans: GpuOrphan) -> GpuSnapshot:
    held = sum(one.used_bytes or 0 for one in orphans)
    return orphaned_device(index, orphans=orphans, orphan_bytes=held, xids={})


def cut_device() -> tuple[GpuSnapshot, GpuSnapshot]:
    """A device that is cut into instances, and one of them."""
    nothing = {"memory_total_bytes": None, "memory_used_bytes": None}
    untold: dict[str, Any] = {
        "servers": {},
        "orphans": None,
        "orphan_bytes": None,
        "other_bytes": None,
    }
    instance = gpu("0:1", parent_uuid="GPU-0", name=MIG_NAME)
    return device("0", gpu=gpu("0", **nothing), **untold), device("0:1", gpu=instance)


def show(served, *gpus, collectors=(UP,), **changes) -> None:
    served.show(server(), gpus=gpus, collectors=collectors, **changes)


def test_a_pipe_gets_a_row_per_device_and_a_line_per_holder(cli, served) -> None:
    xids = MappingProxyType({31: FaultCount(2, time.time() - 75)})
    stray = orphan(4243, 7_500, server=None, role=ComponentRole.ENGINE_CORE)
    old = orphan(4242, 11_550)
    show(served, device(), orphaned_device(orphans=(old, stray), xids=xids))

    outcome = cli("gpus")

    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "GPU  MEMORY                USED/TOTAL    UTIL  TEMP  POWER     NAME",
        "0    ##################.-  72.5/80.0GiB  87%   61C   412/700W  NVIDIA H100 80GB HBM3",
        "0    server llama, 72.0 GiB",
        "0    other, 512.0 MiB",
        "1    ###############!!!.-  72.5/80.0GiB  87%   61C   412/700W  NVIDIA H100 80GB HBM3",
        "1    XID 31, 2 times, last 1m15s ago",
        "1    server llama, 60.0 GiB",
        "1    server mixtral, -",
        "1    orphan PID 4242 worker of llama, 12.0 GiB, 3h12m old",
        "1    orphan PID 4243 engine_core, 12.0 GiB, 2h05m old",
        "1    other, 512.0 MiB",
    ]
    assert outcome.out.isascii()


def test_orphans_come_with_a_caution_and_the_command_that_frees_them(cli, served) -> None:
    # One that holds memory of two devices is killed once.
    show(served, holding("0", orphan(4300), orphan(4242)), holding("1", orphan(4242)))

    caution, command, rest = cli("gpus").err.splitlines()

    assert caution == (
        "2 orphans hold 36.0 GiB; check first that nobody needs them: ps -fp 4242,4300"
    )
    assert command == ("then free it, as root or as the user that ran vLLM: kill -9 4242 4300")
    assert rest == (
        f"others may be left without GPU memory, their parent is no vLLM: {SHOW_ORPHANS}"
    )


def test_one_orphan_is_one(cli, served) -> None:
    show(served, holding("0", orphan(4242, used_bytes=None)), device("1"))
    served.snapshot = replace(
        served.snapshot, gpus=(replace(served.snapshot.gpus[0], orphan_bytes=None),)
    )

    outcome = cli("gpus")

    assert outcome.err.startswith("1 orphan holds memory; check first")
    assert "0    orphan PID 4242 worker of llama, -, 0s old" in outcome.out.splitlines()


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_no_command_kills_more_than_one_process(cli, served, pid) -> None:
    show(served, holding("0", orphan(pid)))
    assert cli("gpus").err == ""

    show(served, holding("0", orphan(pid), orphan(4242)))
    assert cli("gpus").err.splitlines()[1].endswith("kill -9 4242")


@pytest.mark.needs("ps")
def test_the_caution_shows_the_processes(cli, served) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        show(served, holding("0", orphan(process.pid), orphan(2)))
        command = cli("gpus").err.splitlines()[0].rpartition(": ")[2].split()
        # Of those that are not there nothing is shown.
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        process.communicate(b"\n")

    assert str(process.pid) in [line.split()[1] for line in shown.splitlines()[1:]]


def test_without_orphans_there_is_nothing_to_free(cli, served) -> None:
    show(served, device(), lost_device(), bare_device())

    assert cli("gpus").err == ""


def test_a_lost_device_says_so_with_its_last_faults(cli, served) -> None:
    xids = {79: FaultCount(1, time.time() - 40), 154: FaultCount(3, time.time() - 7_500)}
    show(served, lost_device("2", xids=MappingProxyType(xids)))

    assert cli("gpus").out.splitlines()[1:] == [
        "2    -       -           -     -     -      -",
        "2    lost: the driver no longer reaches it",
        "2    XID 79, once, 40s ago",
        "2    XID 154, 3 times, last 2h05m ago",
    ]


def test_what_is_not_told_is_not_shown_as_nothing(cli, served) -> None:
    told: dict[str, Any] = {
        "memory_used_bytes": None,
        "power_limit_watts": None,
        "temperature_celsius": None,
    }
    show(served, device(gpu=gpu(**told)), device("1", gpu=gpu("1", power_watts=None)))

    rows = [line.split() for line in cli("gpus").out.splitlines() if "server" not in line]

    assert rows[1][:6] == ["0", "-", "-/80.0GiB", "87%", "-", "412/-W"]
    assert rows[3][5] == "-/700W"


def test_what_is_there_is_never_shown_as_nothing(cli, served) -> None:
    show(served, device(gpu=gpu(memory_used_bytes=2**20, utilization_ratio=0.0)))

    assert cli("gpus").out.splitlines()[1].split()[2:4] == ["<0.1/80.0GiB", "0%"]


def test_instances_are_indented_below_their_device(cli, served) -> None:
    show(served, *cut_device(), device("1"))

    lines = cli("gpus").out.splitlines()

    assert [line[:7] for line in lines] == [
        *("GPU    ", "0      ", "  0:1  ", "  0:1  ", "  0:1  "),
        *("1      ", "1      ", "1      "),
    ]
    assert lines[1].split()[1:3] == ["-", "-"]
    assert lines[2].endswith(MIG_NAME)


def test_devices_of_two_drivers_are_told_apart(cli, served) -> None:
    show(served, device(), bare_device())

    assert {line.split()[0] for line in cli("gpus").out.splitlines()[1:]} == {"nvidia/0", "amd/0"}


def test_processes_that_hold_other_memory_are_named_below_it(cli, served) -> None:
    strangers = (
        GpuStranger(4242, "python3", 12 * GIB),
        GpuStranger(977, "orphan", 300 * 2**20),
        GpuStranger(5, None, None),
    )
    untold = device("1", servers={}, other_bytes=None, strangers=strangers[2:])
    show(served, device(other_bytes=13 * GIB, strangers=strangers), untold)

    lines = cli("gpus").out.splitlines()

    assert lines[3:7] == [
        "0    other, 13.0 GiB",
        "0      python3 PID 4242, 12.0 GiB",
        "0      orphan PID 977, 300.0 MiB",
        "0      PID 5, -",
    ]
    assert lines[8:] == ["1    other, -", "1      PID 5, -"]


def test_devices_of_one_number_are_told_apart_by_their_uuid(cli, served) -> None:
    renumbered = device(gpu=gpu("0", uuid="GPU-11111111-2222"))
    lost = lost_device("0")
    show(served, lost_device("0", gpu=replace(lost.gpu, uuid="GPU-99999999-8888")), renumbered)
    labels = {line.split()[0] for line in cli("gpus").out.splitlines()[1:]}
    assert labels == {"0(GPU-99999999)", "0(GPU-11111111)"}

    twin = device(gpu=gpu("0", uuid="GPU-11111111-3333"))
    show(served, renumbered, twin, device("1"))
    labels = {line.split()[0] for line in cli("gpus").out.splitlines()[1:]}
    assert labels == {"0(GPU-11111111-2222)", "0(GPU-11111111-3333)", "1"}


def test_text_from_outside_is_only_text(cli, served) -> None:
    named = device(
        gpu=gpu("\x1b[1m0", name="H\x1b]0;x\a100"),
        servers={"a\x1b[31m": GIB},
        strangers=(GpuStranger(7, "b\x1b[31m\n0    orphan", GIB),),
    )
    show(served, named)

    outcome = cli("gpus")

    assert "\x1b" not in outcome.out
    assert "\a" not in outcome.out
    assert "server a\ufffd[31m, 1.0 GiB" in outcome.out
    assert "  b\ufffd[31m 0    orphan PID 7, 1.0 GiB" in outcome.out


def test_json_is_the_answer_of_the_api(cli, served) -> None:
    show(served, device(), lost_device())

    outcome = cli("gpus", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    view = json.loads(outcome.out)
    assert view["collector"]["up"]
    assert [one["lost"] for one in view["gpus"]] == [False, True]


@pytest.mark.parametrize(
    ("collectors", "sights", "told"),
    [
        ((), (), f"{NO_DRIVER}\n"),
        ((UP,), (), f"{NO_DEVICE}\n"),
        ((HUNG,), (), "the agent's collector gpu does not work: nvml did not answer within 2 s\n"),
        (
            (HUNG,),
            (Sight(SightKind.GPU, False, "nvml: no driver", "docker run --gpus all"),),  # noqa: FBT003 - as in a page
            "gpu not visible: nvml: no driver; try: docker run --gpus all\n",
        ),
    ],
)
def test_no_device_says_why(cli, served, collectors, sights, told) -> None:
    show(served, collectors=collectors, sights=sights)

    outcome = cli("gpus")

    assert (outcome.code, outcome.out, outcome.err) == (0, "", told)


def test_devices_whose_holders_cannot_be_seen_are_shown_with_what_would_help(cli, served) -> None:
    untold = device(servers={}, orphans=None, orphan_bytes=None, other_bytes=None)
    hidden = Sight(SightKind.GPU_PROCESSES, False, "these are not the host's PIDs", "pid: host")  # noqa: FBT003 - as in a page
    show(served, untold, sights=(hidden,))

    outcome = cli("gpus")

    assert len(outcome.out.splitlines()) == 2
    assert "????" in outcome.out
    assert outcome.err == (
        "gpu_processes not visible: these are not the host's PIDs; try: pid: host\n"
    )


def test_an_older_agent_has_to_be_restarted(cli, served) -> None:
    served.refused[GPUS_PATH] = web.HTTPNotFound

    outcome = cli("gpus")

    assert (outcome.code, outcome.out) == (1, "")
    assert "older version" in outcome.err
    assert "restart it" in outcome.err


@pytest.mark.parametrize("columns", [160, 80, 45, 20])
def test_a_terminal_of_any_width_shows_who_holds_the_memory(served, columns) -> None:
    show(served, *cut_device(), holding("1", orphan(4242)), lost_device())
    command = ["gpus", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns) as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    # The command to copy is the terminal's to wrap.
    drawn, caution, kill, rest = shown.text.rstrip().rsplit("\n", 3)
    assert max(len(line.rstrip()) for line in drawn.splitlines()) <= columns
    assert caution.startswith("1 orphan holds 12.0 GiB")
    assert kill.rstrip().endswith("kill -9 4242")
    assert rest.endswith(SHOW_ORPHANS)
    words = drawn.split()
    text = " ".join(words)
    for told in ("72.5/80.0GiB", "server mixtral, -", "orphan PID 4242 worker of llama, 12.0 GiB"):
        assert told in text
    assert ("MEMORY" in words) == (columns >= 45)
    assert ("POWER" in words) == (columns >= 80)
    assert ("H100 80GB HBM3 MIG 1g.10gb" in text) == (columns == 160)


def test_a_terminal_tells_holders_apart_by_colour_and_explains_their_signs(served) -> None:
    show(served, holding("0", orphan(4242)))
    command = ["gpus", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, 100) as terminal:
        shown = terminal.read_all()
    with PseudoTerminal(command, 100, {"NO_COLOR": "1"}) as terminal:
        without_colour = terminal.read_all()

    assert "\x1b[32m###############\x1b[0m\x1b[1;31m!!!\x1b[0m\x1b[33m.\x1b[0m" in shown.raw
    assert "# servers   ! orphans   . other   - free" in shown.lines
    assert "###############!!!.-" in without_colour.text
    assert "\x1b[3" not in without_colour.raw


def test_markup_in_a_name_is_only_text(served) -> None:
    stranger = GpuStranger(7, "[red]y[/red]", GIB)
    named = gpu(name="[red]x[/red]")
    show(served, device(gpu=named, servers={":smile:[bold]m": GIB}, strangers=(stranger,)))

    with PseudoTerminal(["gpus", f"--state.dir={served.state_dir}"], columns=100) as terminal:
        shown = terminal.read_all()

    assert "[red]x[/red]" in shown.text
    assert "other, 512.0 MiB" in shown.text
    assert "       [red]y[/red] PID 7, 1.0 GiB" in shown.lines
    assert "server :smile:[bold]m, 1.0 GiB" in shown.text


def test_a_name_is_cut_before_a_column_is_given_up() -> None:
    widths = dict(zip(HEADINGS, (3, 20, 12, 4, 4, 8, 14), strict=True))
    total = sum(widths.values()) + 2 * 6

    assert fit(widths, total) == widths
    assert fit(widths, total - 6) == widths | {"NAME": 8}
    assert list(fit(widths, total - 7)) == [h for h in HEADINGS if h != "POWER"]
    assert list(fit(widths, 17)) == ["GPU", "USED/TOTAL"]
    assert list(fit(widths, 1)) == ["GPU", "USED/TOTAL"]
