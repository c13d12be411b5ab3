"""`start`, `stop` and `restart`: what they ask, tell meanwhile and end with."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace

import pytest

from tests.cli.managed_servers import NO_SUCH, alive, backing_off, given_up, gone, stopped
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import managed_server
from vllm_agent.cli import agent_client, follow, main, operation
from vllm_agent.cli.outcome import CommandError
from vllm_agent.expose.operations import NotManagedError
from vllm_agent.lifecycle.management import StopOutcome, Wish
from vllm_agent.lifecycle.operations import Answer, Outcome
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase

STARTING = "llama is starting (PID 4021): vllm-agent wait llama --for running\n"
PORT_TAKEN = Answer(
    Outcome.FAILED, "port 8000 is held by nginx (PID 812)\x1b[31m", Reason.PORT_IN_USE
)
GOES_ON = "vllm-agent: the agent goes on with what was asked: vllm-agent status llama\n"


@pytest.fixture
def down(served):
    """The agent, whose server is down."""
    served.show(stopped())
    served.became = (alive(),)
    return served


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["start", "llama"], ("llama", Wish.START, None)),
        (["start", "llama", "--model", "org/new"], ("llama", Wish.START, "org/new")),
        (["restart", "llama"], ("llama", Wish.RESTART, None)),
    ],
)
def test_a_start_is_done_once_the_process_is_there(cli, down, words, asked) -> None:
    outcome = cli(*words)

    assert (outcome.code, outcome.out, outcome.err) == (0, STARTING, "")
    assert down.asked == [asked]


def test_what_runs_already_needs_no_waiting_for(cli, served) -> None:
    served.show(managed_server())

    assert cli("start", "llama").out == "llama is running (PID 4021)\n"


def test_a_name_is_quoted_where_it_is_part_of_a_command(cli, served) -> None:
    served.show(managed_server("a b", life=alive().life))

    assert cli("start", "a b").out == (
        "a b is starting (PID 4021): vllm-agent wait 'a b' --for running\n"
    )


def test_wait_goes_on_while_there_is_a_process_or_a_plan(cli, down, monkeypatch) -> None:
    becomes = iter([alive(Phase.UNREADY), backing_off(), backing_off(2), managed_server()])
    clock = SimpleNamespace(
        monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda _: down.show(next(becomes))
    )
    monkeypatch.setattr(follow, "time", clock)

    assert cli("start", "llama", "--wait").code == 0
    assert next(becomes, None) is None


@pytest.mark.parametrize("command", ["start", "restart"])
def test_wait_goes_on_until_it_runs(cli, down, monkeypatch, command) -> None:
    clock = SimpleNamespace(
        monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda _: down.show(managed_server())
    )
    monkeypatch.setattr(follow, "time", clock)

    outcome = cli(command, "llama", "--wait")

    assert (outcome.code, outcome.out) == (0, "llama is running (PID 4021)\n")
    assert outcome.err.startswith("llama: starting")


@pytest.mark.parametrize(
    ("becomes", "told"),
    [
        (
            given_up(),
            [
                f"vllm-agent: llama is failed: model_not_found: {NO_SUCH}",
                "vllm-agent: what happened: vllm-agent history llama --log",
                "vllm-agent: advice: ",
            ],
        ),
        (
            stopped(),
            [
                "vllm-agent: llama is stopped: somebody stopped it meanwhile",
                "vllm-agent: to start it: vllm-agent start llama",
            ],
        ),
    ],
)
def test_wait_ends_once_it_will_not_run_by_itself(cli, down, monkeypatch, becomes, told) -> None:
    clock = SimpleNamespace(
        monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda _: down.show(becomes)
    )
    monkeypatch.setattr(follow, "time", clock)

    outcome = cli("start", "llama", "--wait")

    assert (outcome.code, outcome.out) == (1, "")
    assert "vllm-agent start llama" in outcome.err
    last = outcome.err.splitlines()[-len(told) :]
    assert [line[: len(start)] for line, start in zip(last, told, strict=True)] == told


@pytest.mark.parametrize(
    ("words", "again"),
    [
        ("start llama", "vllm-agent start llama"),
        ("start llama --model=org/new", "vllm-agent start llama --model org/new"),
        ("restart llama", "vllm-agent restart llama"),
    ],
)
def test_a_start_that_came_to_nothing_says_why_and_what_to_do(cli, down, words, again) -> None:
    down.became, down.came = (), PORT_TAKEN

    outcome = cli(*words.split())

    assert (outcome.code, outcome.out) == (1, "")
    why, advice, then = outcome.err.splitlines()
    assert why.startswith("vllm-agent: 'llama' was not started (port_in_use)")
    assert why.endswith("port 8000 is held by nginx (PID 812)\ufffd[31m")
    assert advice.startswith("vllm-agent: advice: ")
    assert then == f"vllm-agent: when that is mended: {again}"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, StopOutcome(1, 1.234, is_forced=False), ": gracefully in 1.2 s"),
        (None, StopOutcome(1, 0.04, is_forced=False), ": gracefully in <0.1 s"),
        (None, StopOutcome(1, 30.04, is_forced=True), ": with SIGKILL after 30 s"),
        (StopOutcome(1, 1.2, False), StopOutcome(2, 1.2, False), ": gracefully in 1.2 s"),  # noqa: FBT003 - as in a page
        (StopOutcome(1, 1.2, False), StopOutcome(1, 1.2, False), ""),  # noqa: FBT003 - as in a page
        (None, None, ""),
    ],
)
def test_a_stop_says_how_it_ended(cli, served, before, after, told) -> None:
    served.show(alive(Phase.READY, last_stop=before))
    served.became = (stopped(after),)

    outcome = cli("stop", "llama")

    assert (outcome.code, outcome.out, outcome.err) == (0, f"llama is stopped{told}\n", "")
    assert served.asked == [("llama", Wish.STOP, None)]


def test_a_stop_that_failed_says_why_and_what_to_do(cli, served) -> None:
    served.show(alive(Phase.OVERDUE))
    served.came = Answer(Outcome.FAILED, "it is there after SIGKILL", Reason.UNRESPONSIVE)

    outcome = cli("stop", "llama")

    assert outcome.code == 1
    why, advice, again = outcome.err.splitlines()
    assert "not stopped" in why
    assert "it is there after SIGKILL" in why
    assert advice.startswith("vllm-agent: advice: ")
    assert again == "vllm-agent: when that is mended: vllm-agent stop llama"


def test_a_stop_that_goes_on_is_no_success(cli, served) -> None:
    served.show(alive(Phase.TERMINATING))
    served.came = Answer(Outcome.UNDER_WAY, "")

    outcome = cli("stop", "llama")

    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err == (
        "vllm-agent: llama is stopping, not stopped yet: vllm-agent wait llama --for stopped\n"
    )


@pytest.mark.parametrize("command", ["start", "stop", "restart"])
def test_what_was_not_even_tried_is_told_in_one_line(cli, down, command) -> None:
    down.became, down.came = (), NotManagedError("llama is started by llama.service")
    not_managed = cli(command, "llama")
    down.came = Answer(Outcome.SUPERSEDED, "somebody asked for something else")
    superseded = cli(command, "llama")

    for outcome in (not_managed, superseded):
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "llama is started by llama.service: The agent starts and stops" in not_managed.err
    assert "somebody asked for something else" in superseded.err
    assert "vllm-agent status llama" in superseded.err


@pytest.mark.parametrize("words", ["start", "stop", "restart", "ensure-healthy"])
def test_an_agent_of_an_older_version_is_to_be_restarted(cli, served, monkeypatch, words) -> None:
    ask = agent_client.server_path
    monkeypatch.setattr(agent_client, "server_path", lambda name: f"{ask(name)}/../../old")

    outcome = cli(words, "llama")

    assert served.asked == []
    assert outcome.code == 1
    assert "of an older version that starts and stops nothing: restart it" in outcome.err


def test_what_takes_longer_says_what_it_waits_for(cli, down, monkeypatch) -> None:
    monkeypatch.setattr(operation, "SILENT_SECONDS", 0.0)
    down.until = lambda: down.answered[304] > 0

    outcome = cli("restart", "llama")

    assert (outcome.code, outcome.out) == (0, STARTING)
    first, why = outcome.err.splitlines()
    assert first == "llama: stopped, waiting for its new process"
    assert why == "llama: it is wanted down until: vllm-agent start llama"


def test_a_stop_says_what_it_waits_for(cli, served, monkeypatch) -> None:
    monkeypatch.setattr(operation, "SILENT_SECONDS", 0.0)
    served.show(alive(Phase.TERMINATING))
    served.until = lambda: served.answered[304] > 0

    assert cli("stop", "llama").err == "llama: stopping, waiting for all its processes to end\n"


def test_no_answer_is_late_while_the_agent_works(cli, down, monkeypatch) -> None:
    looks = iter(range(1_000))
    monkeypatch.setattr(operation, "SILENT_SECONDS", math.inf)
    monkeypatch.setattr(agent_client, "ANSWER_SECONDS", 0.4)
    down.until = lambda: next(looks) > 80

    outcome = cli("start", "llama")

    assert (outcome.code, outcome.out, outcome.err) == (0, STARTING, "")
    assert down.answered == {200: 1}


def test_an_agent_that_hangs_is_told_of(cli, down, monkeypatch) -> None:
    monkeypatch.setattr(operation, "SILENT_SECONDS", 0.0)
    down.until = lambda: False

    def hang(*_: object) -> None:
        raise CommandError("the agent did not answer within 15 s")

    monkeypatch.setattr(agent_client.AgentClient, "read_if_changed", hang)

    outcome = cli("start", "llama")

    assert (outcome.code, outcome.out) == (1, "")
    assert "did not answer within 15 s" in outcome.err


def test_an_agent_that_goes_away_meanwhile(down, program) -> None:
    down.until = lambda: False

    with program("start", "llama") as command:
        assert down.is_asked.wait(30)
        down.__exit__()
        out, err = command.communicate(timeout=30)

    assert (command.returncode, out) == (3, "")
    assert "went away before it answered" in err
    assert "'vllm-agent status llama' says what came of it" in err
    down.__enter__()


def test_an_interrupt_ends_the_command_only(down, program) -> None:
    down.until = lambda: False

    with program("stop", "llama") as command:
        assert down.is_asked.wait(30)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)

    assert (command.returncode, out, err) == (130, "", GOES_ON)
    assert down.asked == []


def test_a_terminal_shows_it_live(down) -> None:
    down.until = lambda: False
    argv = ["restart", "llama", f"--state.dir={down.state_dir}"]

    with PseudoTerminal(argv, 100) as terminal:
        terminal.read_until("stopped for")
        terminal.read_until("waiting for its new process")
        down.until = lambda: True
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert "gives up in" not in shown.text
    assert shown.lines[-1] == STARTING.strip()
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l"), "the cursor is back"


def test_an_interrupt_on_a_terminal_leaves_it_as_it_was(down) -> None:
    down.until = lambda: False
    argv = ["start", "llama", f"--state.dir={down.state_dir}"]

    with PseudoTerminal(argv, 100) as terminal:
        terminal.read_until("waiting for its new process")
        terminal.signal(signal.SIGINT)
        shown = terminal.read_all()

    assert terminal.returncode == 130
    assert shown.lines[-1] == GOES_ON.strip()
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("phase", [Phase.CRASHED, Phase.BACKOFF, Phase.REFUSED])
def test_dry_run_is_named_where_it_keeps_a_server_down(cli, down, phase) -> None:
    down.became = (gone(phase, is_dry_run=True, reason=Reason.ENGINE_DIED),)

    outcome = cli("start", "llama", "--wait")

    assert outcome.code == 1
    assert "restart.dry_run keeps the agent from starting it again" in outcome.err


def test_help_of_maintenance_says_that_it_works_in_every_mode(capsys) -> None:
    assert main(["maintenance", "--help"]) == 0

    assert "works in every mode" in " ".join(capsys.readouterr().out.split())
