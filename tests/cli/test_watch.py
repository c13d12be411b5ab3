"""`--watch`: what changes shows, what does not costs nothing, and Ctrl-C is a good end."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from tests.cli.pseudo_terminal import ROWS, PseudoTerminal
from tests.expose.snapshots import (
    GIB,
    crashed_server,
    device,
    life,
    lost_device,
    orphaned_device,
    server,
)
from vllm_agent.cli.gpu_lines import FREE_IT
from vllm_agent.lifecycle.states import Phase
from vllm_agent.snapshot import CollectorSnapshot

UP = (CollectorSnapshot("gpu", is_up=True),)
HUNG = (CollectorSnapshot("gpu", is_up=False, detail="nvml did not answer within 2 s"),)


def test_a_pipe_gets_a_line_per_change(served, program) -> None:
    with program("status", "--watch") as watching:
        first = [watching.stdout.readline() for _ in range(2)]
        served.show(crashed_server(), crashed_server("llama"))
        changed = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        rest, err = watching.communicate()

    assert "llama  running" in first[0]
    assert "qwen  crashed  unreachable" in first[1]
    assert "llama  crashed  unreachable" in changed
    assert (watching.returncode, rest, err) == (0, "", "")


def test_one_server_is_watched_alone(served, program) -> None:
    with program("status", "llama", "--watch") as watching:
        assert "llama  running" in watching.stdout.readline()
        served.show(crashed_server("llama"), crashed_server("new"))
        assert "llama  crashed" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.communicate()[0] == ""


def test_json_is_a_line_per_change(served, program) -> None:
    with program("status", "--watch", "--json") as watching:
        before = json.loads(watching.stdout.readline())
        served.show(crashed_server("llama"))
        after = json.loads(watching.stdout.readline())
        watching.send_signal(signal.SIGINT)
        assert watching.communicate()[0] == ""

    assert [s["state"] for s in before["servers"]] == ["running", "crashed"]
    assert [s["state"] for s in after["servers"]] == ["crashed"]


def test_an_unchanged_answer_is_not_sent_again(served, program) -> None:
    with program("status", "--watch") as watching:
        watching.stdout.readline()
        while served.answered[304] < 2:
            assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        watching.communicate()

    assert served.answered[200] == 1


def test_an_agent_that_goes_and_comes_back(served, program) -> None:
    with program("status", "--watch") as watching:
        first = [watching.stdout.readline() for _ in range(2)]
        served.__exit__()
        assert "no agent is running" in watching.stderr.readline()
        served.show(crashed_server("llama"), crashed_server())
        served.__enter__()
        assert "llama  crashed" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        watching.communicate()

    assert len(first) == 2
    assert watching.returncode == 0


def test_a_reader_that_goes_away_ends_it_quietly(served, program) -> None:
    with program("status", "--watch") as watching:
        watching.stdout.readline()
        watching.stdout.close()
        served.show(crashed_server("llama"))
        assert watching.stderr.read() == ""

    assert watching.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_is_redrawn_and_left_as_it_was(served, number) -> None:
    command = ["status", "--watch", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns=80) as terminal:
        terminal.read_until("1 crashed, 1 running")
        served.show(crashed_server("llama"), crashed_server())
        terminal.read_until("2 crashed")
        terminal.signal(number)
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l"), "the cursor is back"
    assert "Traceback" not in shown.text


def test_what_does_not_fit_the_terminal_is_counted(served) -> None:
    failed = (server(f"bad-{number}", life=life(Phase.UNREADY)) for number in range(25))
    well = (server(f"well-{number}") for number in range(25))
    served.show(*well, *failed)
    command = ["status", "--watch", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns=100) as terminal:
        shown = terminal.read_until("more (")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    # Above the rows: the sum, an empty line and the heading; below them the line that counts.
    rows = [line for line in shown.lines if line.startswith("bad-")]
    assert len(rows) == ROWS - 4
    assert "… 30 more (5 failed, 25 running)" in terminal.shown.text


def test_rows_that_fit_the_terminal_need_no_count(served) -> None:
    # As many as there are lines, less the sum, an empty line and the heading.
    served.show(*(server(f"llama-{number}") for number in range(ROWS - 3)))
    command = ["status", "--watch", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns=100) as terminal:
        shown = terminal.read_until(f"llama-{ROWS - 4}")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert "more" not in shown.text


def test_a_terminal_is_told_that_the_agent_is_gone(served) -> None:
    command = ["status", "llama", "--watch", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns=120) as terminal:
        terminal.read_until("probe metrics")
        served.__exit__()
        terminal.read_until("no agent is running")
        served.show(replace(server(), version="9.9.9"))
        served.__enter__()
        terminal.read_until("9.9.9")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert terminal.returncode == 0


def test_a_pipe_gets_a_line_per_device_whose_holders_change(served, program) -> None:
    served.show(collectors=UP, gpus=(device(), device("1")))
    with program("gpus", "--watch") as watching:
        first = [watching.stdout.readline() for _ in range(2)]
        served.show(collectors=HUNG)
        assert "nvml did not answer" in watching.stderr.readline()
        served.show(collectors=UP, gpus=(device("1"),))
        back = watching.stdout.readline()
        served.show(collectors=UP, gpus=(device("1"), lost_device()))
        lost = watching.stdout.readline()
        served.show(collectors=UP, gpus=(device("1", servers={"b": GIB}), lost_device()))
        changed = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        rest, err = watching.communicate()

    for line, number in zip(first, (0, 1), strict=True):
        told = f"  GPU {number}  H100 80GB HBM3  72.5/80.0 GiB  llama 72.0, other 0.5\n"
        assert line.endswith(told)
    assert "  GPU 1  " in back
    assert "  GPU 2  -  -  lost: " in lost
    assert changed.endswith("  GPU 1  H100 80GB HBM3  72.5/80.0 GiB  b 1.0, other 0.5\n")
    assert (watching.returncode, rest, err) == (0, "", "")


def test_json_of_gpus_is_a_line_per_change(served, program) -> None:
    served.show(collectors=UP, gpus=(device(),))
    with program("gpus", "--watch", "--json") as watching:
        before = json.loads(watching.stdout.readline())
        served.show(collectors=UP, gpus=(orphaned_device(),))
        after = json.loads(watching.stdout.readline())
        watching.send_signal(signal.SIGINT)
        assert watching.communicate()[0] == ""

    assert [view["gpus"][0]["gpu"] for view in (before, after)] == ["0", "1"]


def test_a_terminal_follows_the_gpus_and_says_where_the_command_is(served) -> None:
    served.show(collectors=UP, gpus=(device(),))

    with PseudoTerminal(["gpus", "--watch", f"--state.dir={served.state_dir}"], 100) as terminal:
        terminal.read_until("# servers   . other   - free")
        served.show(collectors=UP, gpus=(orphaned_device(),))
        terminal.read_until(f"1 orphan holds 12.0 GiB: {FREE_IT}")
        terminal.read_until("orphan PID 4301 worker of phi")
        served.show(collectors=HUNG)
        terminal.read_until("nvml did not answer")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert terminal.returncode == 0
    assert "kill" not in terminal.shown.text
    assert served.answered.keys() <= {200, 304}


@pytest.mark.parametrize(
    ("devices", "last"),
    [(7, ". other   - free"), (8, "… 4 more lines: 'vllm-agent gpus' shows all")],
)
def test_gpus_that_do_not_fit_the_terminal_are_counted(served, devices, last) -> None:
    # A heading, three lines for each, an empty line and what the signs mean.
    served.show(collectors=UP, gpus=tuple(device(str(number)) for number in range(devices)))

    with PseudoTerminal(["gpus", "--watch", f"--state.dir={served.state_dir}"], 100) as terminal:
        shown = terminal.read_until(last).text.partition(last)[0]
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert len(f"{shown}{last}".splitlines()) == ROWS
