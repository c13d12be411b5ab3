"""GPUs in `status`: a line per device below the servers, and rows among those of a server."""

from __future__ import annotations

import json
import signal
import time
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web

from tests.cli.pseudo_terminal import ROWS, PseudoTerminal
from tests.expose.snapshots import (
    GIB,
    device,
    ended_local_server,
    gpu,
    local_server,
    lost_device,
    orphaned_device,
    server,
)
from vllm_agent.cli.agent_client import GPUS_PATH
from vllm_agent.cli.gpu_lines import FREE_IT
from vllm_agent.observations import ComponentRole
from vllm_agent.snapshot import CollectorSnapshot, GpuOrphan

UP = (CollectorSnapshot("gpu", is_up=True),)


def left_by_qwen(index: str = "1"):
    """A device that a worker of qwen holds on to."""
    worker = GpuOrphan(4301, ComponentRole.WORKER, "qwen", 12 * GIB, time.time() - 11_550)
    return orphaned_device(index, orphans=(worker,), xids=MappingProxyType({}))


def watching(served, columns: int, *argv: str) -> PseudoTerminal:
    return PseudoTerminal(["status", *argv, "--watch", f"--state.dir={served.state_dir}"], columns)


def test_a_pipe_gets_a_line_per_device_below_the_servers(cli, served) -> None:
    served.show(server(), collectors=UP, gpus=(device(), left_by_qwen(), lost_device()))

    outcome = cli("status")

    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[1].split()[:2] == ["llama", "running"]
    assert lines[2:] == [
        "",
        "GPU 0  H100 80GB HBM3  72.5/80.0 GiB  llama 72.0, other 0.5",
        "GPU 1  H100 80GB HBM3  72.5/80.0 GiB  llama 60.0, mixtral -, orphans 12.0, other 0.5",
        "GPU 2  -               -              lost: the driver no longer reaches it",
    ]


def test_a_device_that_is_cut_leaves_the_telling_to_its_instances(cli, served) -> None:
    nothing = {"memory_total_bytes": None, "memory_used_bytes": None}
    untold: dict[str, Any] = {
        "servers": {},
        "orphans": None,
        "orphan_bytes": None,
        "other_bytes": None,
    }
    instance = gpu("0:1", parent_uuid="GPU-0")
    served.show(
        server(),
        collectors=UP,
        gpus=(device("0", gpu=gpu("0", **nothing), **untold), device("0:1", gpu=instance)),
    )

    assert [line[:7] for line in cli("status").out.splitlines()[3:]] == ["GPU 0:1"]
    # One that is lost is told of, whatever was cut out of it.
    served.show(server(), collectors=UP, gpus=(lost_device("0"), device("0:1", gpu=instance)))
    assert [line[:5] for line in cli("status").out.splitlines()[3:]] == ["GPU 0", "GPU 0"]


def test_gpus_are_shown_where_there_is_no_server(cli, served) -> None:
    served.show(collectors=UP, gpus=(device(servers={}),))

    outcome = cli("status")

    assert outcome.out == "GPU 0  H100 80GB HBM3  72.5/80.0 GiB  other 0.5\n"
    assert "no server is configured" in outcome.err


def test_a_device_whose_holders_cannot_be_seen(cli, served) -> None:
    untold = device(servers={}, orphans=None, orphan_bytes=None, other_bytes=None)
    served.show(collectors=UP, gpus=(untold,))

    assert cli("status").out == "GPU 0  H100 80GB HBM3  72.5/80.0 GiB  -\n"


def test_a_server_in_full_has_what_it_holds(cli, served) -> None:
    served.show(local_server(), collectors=UP, gpus=(device(), left_by_qwen(), lost_device()))

    lines = cli("status", "llama").out.splitlines()

    place = next(n for n, line in enumerate(lines) if line.startswith("gpu memory"))
    assert lines[place : place + 2] == [
        "gpu memory     GPU 0: 72.0 GiB of 80.0 GiB",
        "               GPU 1: 60.0 GiB of 80.0 GiB",
    ]
    assert lines[place - 1].startswith("processes")
    assert lines[place + 2].startswith("last check")


def test_a_server_in_full_has_what_its_orphans_hold(cli, served) -> None:
    served.show(ended_local_server(), server("mixtral"), collectors=UP, gpus=(left_by_qwen(),))

    rows = [line.split("  ", 1) for line in cli("status", "qwen").out.splitlines()]
    said = {label: text.strip() for label, text in rows}

    assert said["gpu orphans"] == "GPU 1: PID 4301 worker of qwen, 12.0 GiB, 3h12m old"
    assert said["to free it"] == FREE_IT
    assert "gpu memory" not in said
    out = cli("status", "mixtral").out
    assert "gpu memory     GPU 1: - of 80.0 GiB" in out
    assert "orphan" not in out


def test_json_is_the_answer_on_servers_and_nothing_else_is_asked(cli, served) -> None:
    served.show(server(), collectors=UP, gpus=(device(),))

    assert set(json.loads(cli("status", "--json").out)) == {"agent", "servers"}
    assert served.answered == {200: 1}


@pytest.mark.parametrize("argv", [(), ("llama",)])
def test_an_older_agent_has_no_gpus_and_that_is_all(cli, served, argv) -> None:
    served.show(local_server(), collectors=UP, gpus=(device(),))
    served.refused[GPUS_PATH] = web.HTTPNotFound

    outcome = cli("status", *argv)

    assert (outcome.code, outcome.err) == (0, "")
    assert "llama" in outcome.out
    assert "gpu" not in outcome.out.lower()


def test_a_fault_with_gpus_costs_no_server(cli, served) -> None:
    served.refused[GPUS_PATH] = ValueError

    outcome = cli("status")

    assert outcome.code == 0
    assert "llama" in outcome.out
    assert "because of a fault of its own" in outcome.err


@pytest.mark.parametrize("columns", [120, 80, 45])
def test_a_terminal_shows_all_holders_and_gives_up_names(served, columns) -> None:
    served.show(server(), collectors=UP, gpus=(device(), left_by_qwen()))

    command = ["status", f"--state.dir={served.state_dir}"]
    with PseudoTerminal(command, columns) as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert max(map(len, shown.lines)) <= columns
    assert "GPU 0  H100" in shown.text if columns == 120 else "H100" not in shown.text
    text = " ".join(shown.text.split())
    assert "72.5/80.0 GiB llama 60.0, mixtral -, orphans 12.0, other 0.5" in text
    assert "\x1b[1;31morphans\x1b[0m" in shown.raw


def test_the_watch_follows_the_gpus(served) -> None:
    served.show(server(), collectors=UP, gpus=(device(),))

    with watching(served, 100) as terminal:
        terminal.read_until("llama 72.0, other 0.5")
        served.show(server(), collectors=UP, gpus=(left_by_qwen(),))
        terminal.read_until("orphans 12.0")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert terminal.returncode == 0


def test_the_watch_of_one_server_follows_its_gpus(served) -> None:
    served.show(local_server(), collectors=UP, gpus=(device(),))

    with watching(served, 100, "llama") as terminal:
        terminal.read_until("GPU 0: 72.0 GiB of 80.0 GiB")
        served.show(local_server(), collectors=UP, gpus=(left_by_qwen(),))
        terminal.read_until("GPU 1: 60.0 GiB of 80.0 GiB")
        terminal.signal(signal.SIGINT)
        terminal.read_all()


def test_unchanged_gpus_are_not_sent_again(served) -> None:
    served.show(server(), collectors=UP, gpus=(device(),))

    with watching(served, 100) as terminal:
        terminal.read_until("llama 72.0")
        while served.answered[304] < 5:
            assert terminal.is_running
            time.sleep(0.01)
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert served.answered[200] == 2


def test_the_watch_goes_on_through_an_agent_without_gpus(served) -> None:
    served.show(server(), collectors=UP, gpus=(device(),))

    with watching(served, 100) as terminal:
        terminal.read_until("llama 72.0")
        served.refused[GPUS_PATH] = ValueError
        terminal.read_until("because of a fault of its own")
        served.refused[GPUS_PATH] = web.HTTPNotFound
        served.show(server("new"))
        terminal.read_until("new     running")
        after = len(terminal.shown.text)
        served.refused.clear()
        served.show(server("new"), collectors=UP, gpus=(device(servers={"new": GIB}),))
        terminal.read_until("new 1.0")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert "fault" not in terminal.shown.text[after:]
    assert terminal.returncode == 0


@pytest.mark.parametrize(
    ("there", "drawn", "last"),
    [
        ((2, 8), (2, 8), "s7 1.0"),
        # A third of the lines is for the devices, less the empty line above them.
        ((40, 16), (ROWS - 12, 6), "… 10 more: 'vllm-agent gpus' shows all"),
        ((40, 4), (ROWS - 9, 4), "s3 1.0"),
        ((2, 40), (2, ROWS - 7), "… 23 more: 'vllm-agent gpus' shows all"),
    ],
)
def test_what_does_not_fit_the_terminal_is_counted(served, there, drawn, last) -> None:
    servers, devices = there
    gpus = [device(f"{number:02}", servers={f"s{number}": GIB}) for number in range(devices)]
    names = [server(f"well-{number}") for number in range(servers)]
    served.show(*names, collectors=UP, gpus=tuple(gpus))

    with watching(served, 100) as terminal:
        first = terminal.read_until(last).text.partition(last)[0].splitlines()
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    # The last of these is the line with `last`.
    assert len(first) <= ROWS
    assert sum(line.startswith("well-") for line in first) == drawn[0]
    assert sum(line.startswith("GPU ") for line in first) == drawn[1]
    more = [line.rstrip() for line in first if line.startswith("… ") and "running" in line]
    rest = servers - drawn[0]
    assert more == ([f"… {rest} more ({rest} running)"] if rest else [])


def test_a_watch_cuts_what_a_line_has_no_room_for(served) -> None:
    many = {f"a-long-name-{number}": GIB for number in range(20)}
    served.show(server(), collectors=UP, gpus=(device(servers=many), device("1")))

    with watching(served, 60) as terminal:
        shown = terminal.read_until("GPU 1")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    (line,) = [line for line in shown.lines if line.startswith("GPU 0")]
    assert len(line) <= 60
    assert line.endswith("…")
