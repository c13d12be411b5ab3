"""`wait` on a load: a bar for people, lines for logs, and a word that is only for the script."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace

import pytest
from rich.console import Console

from tests.cli.loads import (
    ago,
    downloading,
    late_load,
    load,
    loading_server,
    stalled_server,
)
from tests.cli.managed_servers import backing_off, given_up, stopped
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import (
    ad_hoc_server,
    crashed_server,
    ended_local_server,
    server,
)
from vllm_agent.cli import follow, main
from vllm_agent.cli.patience import DEFAULT_SECONDS
from vllm_agent.cli.wait_lines import SAY_AGAIN_SECONDS, WaitLook
from vllm_agent.cli.wait_terminal import frame
from vllm_agent.expose.json_view import server_view
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason

WAIT = ("wait", "llama", "--for=running", "--timeout=30s")
STAYS_DOWN = "The agent leaves it down until 'vllm-agent start llama'."
UNREACHABLE = REASON_TEXT[Reason.UNREACHABLE].advice


class Clock:
    """A clock that moves when somebody sleeps on it, and what happens meanwhile."""

    def __init__(self, *happens: object) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []
        self._happens = iter(happens)

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return ago(0).unix_seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        happen = next(self._happens, None)
        if isinstance(happen, float):
            self.seconds += happen
        elif callable(happen):
            happen()


@pytest.fixture
def at(monkeypatch):
    """Has `wait` use a clock on which this happens, one after the other."""

    def use(*happens: object) -> Clock:
        clock = Clock(*happens)
        monkeypatch.setattr(follow, "time", clock)
        return clock

    return use


def on_terminal(served, columns: int = 100, *argv: str, **environ: str) -> PseudoTerminal:
    command = [*(argv or WAIT), f"--state.dir={served.state_dir}"]
    return PseudoTerminal(command, columns, environ)


def test_a_log_gets_a_line_per_stage_and_the_script_one_word(cli, served, at) -> None:
    served.show(loading_server(of=downloading(1, 4)))
    at(
        lambda: served.show(loading_server(of=downloading(2, 4))),
        lambda: served.show(loading_server()),
        lambda: served.show(server()),
    )

    outcome = cli(*WAIT)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")
    assert outcome.err.splitlines() == [
        "llama: starting, download 25%, 1.0 GiB of 4.0 GiB, ~3m48s left",
        "llama: starting, load_weights 50%, shard 5 of 8, 8.0 GiB of 16.0 GiB, ~1m28s left",
    ]


def test_a_load_that_goes_on_is_told_of_now_and_then(cli, served, at) -> None:
    served.show(loading_server(of=downloading(1, 4)))
    at(
        SAY_AGAIN_SECONDS - 1,
        lambda: served.show(loading_server(of=downloading(2, 4))),
        1.0,
        lambda: served.show(loading_server(of=downloading(3, 4))),
        lambda: served.show(server()),
    )

    lines = cli(*WAIT).err.splitlines()

    assert [line.split(", ")[1] for line in lines] == ["download 25%", "download 50%"]


def test_what_does_not_load_is_told_of_once(cli, served, at) -> None:
    served.show(server())
    at(*[SAY_AGAIN_SECONDS] * 5)

    outcome = cli("wait", "llama", "--for=stopped,crashed", "--timeout=60s")

    assert outcome.code == 4
    first, last = outcome.err.splitlines()
    assert first == "llama: running, waiting for stopped or crashed"
    assert "still running, not stopped or crashed, after 1m;" in last


def test_what_is_so_already_needs_no_word(cli, served) -> None:
    served.show(server())

    outcome = cli(*WAIT)

    assert (outcome.code, outcome.out, outcome.err) == (0, "llama is running\n", "")


def test_a_crash_meanwhile_tells_why_and_what_to_do_and_is_waited_out(cli, served, at) -> None:
    crashed = crashed_server("llama")
    ending = crashed.life.last_ending
    assert ending is not None
    ending = replace(ending, holder="PID 812 (nginx\x1b[0m)")
    crashed = replace(
        crashed, life=replace(crashed.life, detail="refused\r\nmore", last_ending=ending)
    )
    served.show(loading_server())
    at(lambda: served.show(crashed), lambda: served.show(server()))

    outcome = cli(*WAIT)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")
    assert outcome.err.splitlines()[1:] == [
        "llama: crashed, unreachable, waiting for running",
        "llama: refused  more",
        f"llama: advice: {UNREACHABLE}",
        "llama: held by PID 812 (nginx\ufffd[0m)",
    ]


@pytest.mark.parametrize(
    ("of", "is_told"), [(ad_hoc_server(), True), (ended_local_server(), False)]
)
def test_that_nobody_starts_it_again_is_told(cli, served, at, of, is_told) -> None:
    ended = ended_local_server("llama")
    served.show(replace(ended, sighting=of.sighting))
    at(30.0)

    outcome = cli(*WAIT)

    assert outcome.code == 4
    assert ("nobody starts it again" in outcome.err) is is_told


def test_trouble_of_its_log_is_told_when_it_comes(cli, served, at) -> None:
    troubled = load(look=replace(load().look, trouble="hub_timeout"))
    served.show(loading_server())
    at(lambda: served.show(loading_server(of=troubled)), lambda: served.show(server()))

    assert [("hub_timeout" in line) for line in cli(*WAIT).err.splitlines()] == [False, True]


def test_a_load_that_pauses_says_so(cli, served, at) -> None:
    served.show(loading_server(of=load(last_progress=ago(100.5))))
    at(lambda: served.show(server()))

    assert "load_weights 50%, no progress for 1m40s, shard 5 of 8" in cli(*WAIT).err


def test_giving_up_on_a_load_says_how_far_it_is(cli, served, at) -> None:
    served.show(loading_server())
    at(30.0)

    outcome = cli(*WAIT)

    assert (outcome.code, outcome.out) == (4, "")
    assert re.search(
        r"llama is still starting, not running, after 30s: load_weights 50%, shard 5 of 8, "
        r"8.0 GiB of 16.0 GiB, ~1m28s left, last progress \ds ago, at ",
        outcome.err,
    )


def test_giving_up_on_a_load_that_stalled_says_since_when(cli, served, at) -> None:
    served.show(stalled_server())
    at(30.0)

    told = cli(*WAIT).err.splitlines()[-1]

    assert re.search(
        r"llama is still failed \(load_stalled\), not running, after 30s: load_weights 50%, "
        r"stalled for 6m02s, .*last progress 6m0\ds ago, at 20",
        told,
    )


def test_giving_up_on_a_load_that_was_not_seen_to_move_says_so(cli, served, at) -> None:
    served.show(loading_server(of=late_load()))
    at(30.0)

    told = cli(*WAIT).err.splitlines()[-1]

    assert "~1m28s left, no progress seen yet; 'vllm-agent" in told


def test_by_default_a_load_that_moves_is_waited_for(cli, served, at) -> None:
    served.show(loading_server())
    clock = at(10 * DEFAULT_SECONDS, lambda: served.show(server()))

    outcome = cli("wait", "llama", "--for=running")

    assert (outcome.code, outcome.out) == (0, "llama is running\n")
    assert max(clock.slept) == follow.POLL_SECONDS


def test_by_default_one_that_stalled_is_given_up(cli, served, at) -> None:
    served.show(loading_server())
    at(DEFAULT_SECONDS + 2, lambda: served.show(stalled_server()))

    outcome = cli("wait", "llama", "--for=running")

    assert outcome.code == 4
    assert "after 5m02s: load_weights 50%, stalled for 6m02s" in outcome.err


def test_an_agent_that_goes_away_is_told_of_once_and_waited_for(cli, served, at) -> None:
    served.show(loading_server(of=downloading(1, 4)))

    def come_back() -> None:
        served.show(loading_server(of=downloading(2, 4)))
        served.__enter__()

    at(
        served.__exit__,
        SAY_AGAIN_SECONDS,
        come_back,
        SAY_AGAIN_SECONDS,
        lambda: served.show(server()),
    )

    outcome = cli("wait", "llama", "--for=running")

    assert outcome.code == 0
    first, gone, *again = outcome.err.splitlines()
    assert "download 25%" in first
    assert gone.startswith("vllm-agent: no agent is running")
    assert gone.endswith("; still waiting")
    assert ["download 50%" in line for line in again] == [True, True]


def test_an_agent_that_stays_away_is_not_waited_for_for_ever(cli, served, at) -> None:
    served.show(loading_server())
    at(served.__exit__, DEFAULT_SECONDS)

    assert cli("wait", "llama", "--for=running").code == 4
    served.__enter__()


def test_nobody_reads_what_happens_and_the_exit_code_still_tells(served, program) -> None:
    served.show(loading_server())
    reading, writing = os.pipe()
    os.close(reading)

    with program("wait", "llama", "--for=running", "--timeout=300ms", stderr=writing) as waiting:
        os.close(writing)
        out = waiting.communicate()[0]

    assert (waiting.returncode, out) == (4, "")


def test_without_standard_error_nothing_but_the_result_is_written(served, program) -> None:
    served.show(loading_server())

    with program(*WAIT, preexec_fn=lambda: os.close(2), stderr=None) as waiting:
        while served.answered[304] < 1:
            assert waiting.poll() is None
        served.show(server())
        out = waiting.communicate()[0]

    assert (waiting.returncode, out) == (0, "llama is running\n")


def test_a_terminal_has_a_bar_that_leaves_when_it_is_over(served) -> None:
    served.show(loading_server(of=downloading(1, 4)))

    with on_terminal(served) as terminal:
        terminal.read_until("##########------------------------------  25%  1.0 GiB of 4.0 GiB")
        assert "~3m48s left" in terminal.shown.text
        served.show(loading_server())
        terminal.read_until("load_weights, shard 5 of 8")
        terminal.read_until("50%  8.0 GiB of 16.0 GiB  ~1m28s left")
        served.show(server())
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert shown.lines[-1] == "llama is running"
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l"), "the cursor is back"
    assert "\x1b[2K" in shown.raw[shown.raw.rindex("\x1b[?25h") :], "the bar is gone"
    assert "gives up in" in shown.text


def test_a_terminal_that_has_nothing_to_wait_for_is_not_drawn_on(served) -> None:
    served.show(server())

    with on_terminal(served) as terminal:
        assert terminal.read_all().raw == "llama is running\r\n"


def test_by_default_a_terminal_is_not_told_an_end_that_there_is_not(served) -> None:
    served.show(loading_server())

    with on_terminal(served, 100, "wait", "llama", "--for=running") as terminal:
        terminal.read_until("~1m28s left")
        served.show(server())
        assert "gives up in" not in terminal.read_all().text


def test_a_failure_stays_on_the_terminal_above_the_bar(served) -> None:
    served.show(loading_server())

    with on_terminal(served) as terminal:
        terminal.read_until("~1m28s left")
        served.show(stalled_server())
        terminal.read_until("stalled for 6m02s")
        served.show(crashed_server("llama"))
        terminal.read_until("waiting for running")
        served.show(server())
        shown = terminal.read_all()

    assert "llama: failed, load_stalled, load_weights 50%, stalled" in shown.text
    assert f"llama: advice: {UNREACHABLE}" in shown.text


def test_a_terminal_is_told_that_the_agent_is_gone(served) -> None:
    served.show(loading_server())

    with on_terminal(served) as terminal:
        terminal.read_until("~1m28s left")
        served.__exit__()
        terminal.read_until("no agent is running")
        served.show(server())
        served.__enter__()
        assert terminal.read_all().lines[-1] == "llama is running"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_terminal_is_left_as_it_was(served, number, code) -> None:
    served.show(loading_server())

    with on_terminal(served) as terminal:
        terminal.read_until("~1m28s left")
        terminal.signal(number)
        shown = terminal.read_all()

    assert terminal.returncode == code
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l")
    assert "Traceback" not in shown.text


@pytest.mark.parametrize("columns", range(28, 120))
def test_shard_share_and_time_left_have_room_before_all_else(columns) -> None:
    server_shown = server_view(loading_server())
    look = WaitLook(server_shown, ("running",), 250.0, "", 0.0, ago(0).unix_seconds)

    lines = Console(width=columns).render_lines(frame(look, columns))
    first, bar = ("".join(part.text for part in line).rstrip() for line in lines)

    assert first.startswith("llama ") == (columns >= 33)
    assert "load_weights, shard 5 of 8" in first
    assert bar.endswith(("50%  ~1m28s left", "of 16.0 GiB  ~1m28s left"))
    assert "…" not in bar
    assert re.match("##+-", bar)
    assert ("GiB" in bar) == (columns >= 44)
    assert ("starting" in first) == (columns >= 43)
    assert ("gives up in 4m10s" in first) == (columns >= 62)
    assert ("starting for 1m1" in first) == (columns >= 72)


def test_a_stall_has_room_before_bytes_and_bar() -> None:
    server_shown = server_view(stalled_server())
    look = WaitLook(server_shown, ("running",), 250.0, "", 0.0, ago(0).unix_seconds)

    lines = Console(width=29).render_lines(frame(look, 29))

    assert "".join(part.text for part in lines[1]).rstrip() == "##---  50%  stalled for 6m02s"


@pytest.mark.parametrize("columns", [60, 20])
def test_a_narrow_terminal_cuts_lines_at_their_end(served, columns) -> None:
    long = "a\x1b[5m-name-that-is-longer-than-any-terminal-of-this-test-is-wide"
    served.show(loading_server(long))

    with on_terminal(served, columns, "wait", long, "--for=running", "--timeout=30s") as terminal:
        terminal.read_until("50%")
        shown = terminal.shown
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    first, bar, *_ = shown.lines
    assert len(first) <= columns
    assert re.match(r"((#+)(-+)  )?50%  ", bar)
    assert "~1m28s left" in bar
    assert "\x1b[5m" not in shown.raw


def test_a_terminal_that_cannot_go_back_gets_lines(served) -> None:
    served.show(loading_server())

    with on_terminal(served, TERM="dumb") as terminal:
        terminal.read_until("llama: starting, load_weights 50%")
        served.show(server())
        shown = terminal.read_all()

    assert "\x1b" not in shown.raw
    assert shown.lines[-1] == "llama is running"


def test_help_says_what_becomes_of_an_agent_that_is_not_there(capsys) -> None:
    assert main(["wait", "--help"]) == 0

    told = " ".join(capsys.readouterr().out.split())
    assert "An agent that goes away meanwhile is waited for; without one at the start" in told
    assert "exit code 3" in told


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (backing_off(), "llama: the agent starts it again by itself"),
        (backing_off(is_dry_run=True), STAYS_DOWN),
        (given_up(), STAYS_DOWN),
        (stopped(), "llama: it is wanted down until: vllm-agent start llama"),
    ],
)
def test_of_a_managed_server_it_is_told_what_the_agent_will_do(cli, served, at, gone, told) -> None:
    served.show(gone)
    at(lambda: served.show(server()))

    assert cli(*WAIT).err.splitlines()[-1].endswith(told)
