"""`ensure-healthy`: at once where it runs; else until it does, cannot, or takes too long."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.managed_servers import alive, backing_off, given_up
from tests.expose.snapshots import crashed_server, managed_server
from vllm_agent.cli import follow
from vllm_agent.lifecycle.operations import Answer, Outcome
from vllm_agent.lifecycle.reasons import Reason

ENSURE = ("ensure-healthy", "llama")
UNDER_WAY = Answer(Outcome.UNDER_WAY, "it is under way")


class Clock:
    """A clock that moves by a minute when somebody sleeps on it, and what happens then."""

    def __init__(self, happen) -> None:
        self.seconds = 0.0
        self._happen = happen

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return self.seconds

    def sleep(self, _: float) -> None:
        self.seconds += 60.0
        self._happen()


@pytest.fixture
def down(served):
    """The agent, whose server crashed and is started again."""
    served.show(backing_off())
    served.came = UNDER_WAY
    return served


def test_what_runs_is_told_after_one_question(cli, served) -> None:
    served.show(managed_server())

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out, outcome.err) == (0, "llama is running\n", "")
    assert served.asked_health == [("llama", 0.0)]
    assert served.answered == {200: 1}


def test_what_does_not_run_is_followed_until_it_does(cli, down, monkeypatch) -> None:
    becomes = iter([alive(), backing_off(), managed_server()])
    monkeypatch.setattr(follow, "time", Clock(lambda: down.show(next(becomes))))

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")
    assert outcome.err.splitlines()[0] == "llama: crashed, engine_died, waiting for running"
    assert len(down.asked_health) == 1


def test_it_bears_a_restart_of_the_agent(cli, down, monkeypatch) -> None:
    def come_back() -> None:
        down.show(managed_server())
        down.__enter__()

    happens = iter([down.__exit__, lambda: None, come_back])

    def happen() -> None:
        next(happens)()

    monkeypatch.setattr(follow, "time", Clock(happen))

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")
    assert "no agent is running" in outcome.err


@pytest.mark.parametrize(
    ("flags", "limit"), [([], "10m"), (["--timeout=5m"], "5m"), (["--timeout", "90s"], "1m30s")]
)
def test_what_takes_too_long_goes_on(cli, down, monkeypatch, flags, limit) -> None:
    monkeypatch.setattr(follow, "time", Clock(lambda: down.show(alive())))

    outcome = cli(*ENSURE, *flags)

    assert (outcome.code, outcome.out) == (4, "")
    assert f"llama is still starting, not running, after {limit};" in outcome.err


def test_what_cannot_come_up_ends_with_the_reason_and_advice(cli, down, monkeypatch) -> None:
    monkeypatch.setattr(follow, "time", Clock(lambda: down.show(given_up())))

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (1, "")
    assert "vllm-agent: llama is failed: model_not_found: 2 times in a row" in outcome.err
    assert "\nvllm-agent: advice: " in outcome.err
    assert outcome.err.count("vllm-agent start llama") == 1


def test_what_was_given_up_before_it_was_asked_for_is_waited_for(cli, down, monkeypatch) -> None:
    down.show(given_up())
    becomes = iter([given_up(), alive(), managed_server()])
    monkeypatch.setattr(follow, "time", Clock(lambda: down.show(next(becomes))))

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")


def test_what_the_agent_knows_cannot_come_up_ends_at_once(cli, down) -> None:
    down.came = Answer(Outcome.FAILED, "the restart limit of 3 is reached", Reason.GPU_OOM)

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (1, "")
    why, advice, then = outcome.err.splitlines()
    assert "gpu_oom" in why
    assert "the restart limit of 3 is reached" in why
    assert advice.startswith("vllm-agent: advice: ")
    assert then == "vllm-agent: when that is mended: vllm-agent start llama"


def test_what_is_only_watched_is_started_by_somebody_else(cli, served) -> None:
    served.show(crashed_server("llama"))
    served.came = Answer(Outcome.FAILED, "llama is crashed", Reason.UNREACHABLE)

    outcome = cli(*ENSURE)

    assert (outcome.code, outcome.out) == (1, "")
    why, advice, who = outcome.err.splitlines()
    assert "unreachable" in why
    assert "llama is crashed" in why
    assert advice.startswith("vllm-agent: advice: ")
    assert who == (
        "vllm-agent: this agent only watches llama and does not start it: "
        "whoever runs it has to, and vllm-agent wait llama --for running waits for that"
    )


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("timeout", ["5", "0", "-1s", "soon"])
def test_a_bad_timeout(cli, timeout) -> None:
    outcome = cli(*ENSURE, f"--timeout={timeout}")

    assert outcome.code == 2
    assert "--timeout" in outcome.err


def test_the_question_needs_few_imports(tmp_path, served) -> None:
    served.show(managed_server())
    program = (
        "import sys; from vllm_agent.cli import main\n"
        f"code = main({[*ENSURE, f'--state.dir={tmp_path}']!r})\n"
        "costly = ('cli.follow', 'lifecycle', 'observations')\n"
        "print(code, [name for name in costly if f'vllm_agent.{name}' in sys.modules])"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert ended.stdout.splitlines()[-1] == "0 []"
