"""What holds for every command: how it is found, how it fails, and what it must not do."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import vllm_agent
from tests.expose.snapshots import server
from vllm_agent.cli import main
from vllm_agent.cli.program import COMMANDS


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vllm-agent {vllm_agent.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_and_exit_code(capsys, flag) -> None:
    assert main([flag]) == 0

    out = capsys.readouterr().out
    assert all(f"\n  {command.name} " in out for command in COMMANDS)
    assert "3 no agent running" in out


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help(capsys, command) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: vllm-agent {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["stauts"], "unknown command 'stauts', did you mean status?"),
        (["status", "--wach"], "unknown flag '--wach', did you mean --watch?"),
        (["status", "--wat"], "unknown flag '--wat', did you mean --watch?"),
        (["status", "a", "b"], "unknown argument 'b'"),
        (["history", "a", "b"], "unknown argument 'b'"),
        (["history", "a", "--limit=0"], "from 1 to 1000, got '0'"),
        (["history", "a", "--limit=1001"], "from 1 to 1000"),
        (["--config.fle=x"], "did you mean --config.file?"),
        (["--config.fi", "x"], "unknown command 'x'"),
        (["maintenance", "a", "maybe"], "maybe"),
        (["wait", "a"], "--for"),
    ],
)
def test_a_wrong_command_line_says_what_was_meant(capfd, argv, told) -> None:
    assert main(argv) == 2

    written = capfd.readouterr()
    assert written.out == ""
    assert written.err.startswith("vllm-agent: ")
    assert told in written.err
    assert "--help'" in written.err
    assert written.err.count("\n") == 1


def test_flags_may_come_before_the_command(served, capfd) -> None:
    assert main(["--state.dir", str(served.state_dir), "status", "llama"]) == 0
    assert "llama" in capfd.readouterr().out


def test_the_value_of_a_flag_is_not_taken_for_a_command(capfd) -> None:
    assert main(["--config.check", "--config.file", "status"]) == 2
    assert capfd.readouterr().err == "status: no such file: correct --config.file\n"


@pytest.fixture
def _broken_agent(monkeypatch) -> None:
    def fail(*_: object) -> int:
        raise ValueError("what went wrong")

    monkeypatch.setitem(sys.modules, "vllm_agent.agent", SimpleNamespace(run=fail))


@pytest.mark.usefixtures("_broken_agent")
def test_a_fault_of_ours_shows_no_traceback(cli) -> None:
    outcome = cli("run")

    assert outcome.code == 1
    assert outcome.err == (
        "vllm-agent: internal error: ValueError: what went wrong; run with --log.level=debug\n"
    )


@pytest.mark.usefixtures("_broken_agent")
@pytest.mark.parametrize("flags", [["--log.level=debug"], ["--log.level", "debug"]])
def test_a_fault_shows_its_traceback_to_who_asks(cli, flags) -> None:
    outcome = cli("run", *flags)

    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("vllm-agent: internal error: ValueError")


def test_an_interrupt_ends_a_command_without_a_traceback(cli, monkeypatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "vllm_agent.agent", SimpleNamespace(run=interrupt))

    outcome = cli("run")

    assert (outcome.code, outcome.err) == (130, "")


def test_a_reader_that_goes_away_is_no_error(served, program) -> None:
    served.show(*(server(f"llama-{number}") for number in range(50)))
    status = program("status")
    status.stdout.close()

    with status:
        assert status.stderr.read() == ""
    assert status.returncode == 0


@pytest.mark.usefixtures("served")
def test_a_full_disk_is_told_without_a_traceback(program) -> None:
    with open("/dev/full", "w") as full, program("status", stdout=full) as status:  # noqa: PTH123 - a device
        err = status.stderr.read()

    assert status.returncode == 1
    assert err == "vllm-agent: cannot write: No space left on device\n"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "words", ["status", "status --json", "status llama", "gpus --json", "--version"]
)
def test_a_closed_standard_output_is_no_error(tmp_path, words) -> None:
    command = f"exec {sys.executable} -m vllm_agent {words} --state.dir={tmp_path} >&-"

    ended = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_that_cannot_show_a_name_gets_a_substitute(served, program) -> None:
    served.show(server(model_name="modèle-漢"))

    with program("status", environ={"PYTHONIOENCODING": "ascii"}) as status:
        out, err = status.communicate()

    assert (status.returncode, err) == (0, "")
    assert "mod?le-?" in out


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "command",
    [
        *("status", "gpus", "history", "history llama", "doctor"),
        *("wait llama --for running", "ensure-healthy llama", "stop llama"),
    ],
)
def test_a_client_command_imports_nothing_heavy(tmp_path, command) -> None:
    heavy = ("aiohttp", "asyncio", "huggingface_hub", "prometheus_client", "rich", "uvloop")
    program = (
        "import sys; from vllm_agent.cli import main\n"
        f"code = main({[*command.split(), f'--state.dir={tmp_path}']!r})\n"
        f"print(code, [name for name in {heavy!r} if name in sys.modules])"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert ended.stdout.splitlines()[-1] == "0 []"
