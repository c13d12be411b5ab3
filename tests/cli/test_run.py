"""`run` and `check-config`: what reaches the agent, and every problem at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_agent.cli import main

CONFIG = "servers:\n  - {name: llama, mode: external, url: 'http://127.0.0.1:8000'}\n"


@pytest.fixture
def started(monkeypatch):
    """What the agent was started with; it ends with code 7."""
    calls = []

    def run(settings, config) -> int:
        calls.append((settings, config))
        return 7

    monkeypatch.setitem(sys.modules, "vllm_agent.agent", SimpleNamespace(run=run))
    return calls


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("command", [[], ["run"]])
def test_the_agent_runs_without_a_configuration(started, command) -> None:
    assert main(command) == 7

    settings, config = started[0]
    assert settings.config_file is None
    assert config.servers == ()


@pytest.mark.parametrize("flags", [["--config.file=FILE"], ["run", "--config.file", "FILE"]])
def test_the_agent_gets_its_flags_and_configuration(started, config_file, flags) -> None:
    words = [word.replace("FILE", str(config_file)) for word in flags]

    assert main([*words, "--web.listen-address=:1234", "--state.dir=/x"]) == 7

    settings, config = started[0]
    assert [str(address) for address in settings.listen_addresses] == [":1234"]
    assert settings.state_dir == Path("/x")
    assert [server.name for server in config.servers] == ["llama"]


def test_the_environment_counts(started, config_file, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_AGENT_CONFIG_FILE", str(config_file))

    assert main([]) == 7
    assert started[0][1].servers[0].name == "llama"


@pytest.mark.parametrize(
    "command", [["check-config"], ["--config.check"], ["run", "--config.check"]]
)
def test_a_valid_configuration_is_checked_and_not_run(started, config_file, capfd, command) -> None:
    assert main([*command, f"--config.file={config_file}"]) == 0

    assert capfd.readouterr().out == f"configuration is valid: {config_file}, 1 server\n"
    assert started == []


def test_no_configuration_is_valid(capfd) -> None:
    assert main(["check-config"]) == 0
    assert capfd.readouterr().out == "configuration is valid: no --config.file, no servers\n"


@pytest.mark.parametrize("command", [["check-config"], ["--config.check"], ["run"], []])
def test_every_problem_is_told_and_nothing_else(started, tmp_path, capfd, command) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("servers:\n  - {name: a b, mode: external, url: 'ftp://x'}\n")

    code = main([*command, f"--config.file={path}", "--log.level=loud", "--web.listen-address=1"])

    written = capfd.readouterr()
    assert (code, written.out, started) == (2, "", [])
    lines = written.err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "--web.listen-address",
        "--log.level",
        f"{path}:2",
        f"{path}:2",
    ]


def test_a_missing_file_is_told_once(capfd) -> None:
    assert main(["check-config", "--config.file=/no/such", "--log.level=loud"]) == 2

    assert capfd.readouterr().err.splitlines() == [
        "--log.level: must be one of debug, info, warn, error, got 'loud'",
        "/no/such: no such file: correct --config.file",
    ]


def test_an_unusable_file_flag_is_told_once(capfd) -> None:
    assert main(["check-config", "--config.file="]) == 2

    assert capfd.readouterr().err == "--config.file: must not be empty\n"


def test_an_agent_does_without_the_runtime_of_another_language() -> None:
    code = (
        "from vllm_agent.cli import run; run._spare_memory()\n"
        "import vllm_agent.agent; print(open('/proc/self/maps').read())"
    )
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "/aiohttp/" in maps.stdout
    assert "libstdc++" not in maps.stdout


def test_a_configuration_that_nobody_could_read_is_no_mistake_in_it(
    started, monkeypatch, capfd
) -> None:
    """The next start may find memory: exit code 2 would say that it is in vain."""
    monkeypatch.setattr(
        "vllm_agent.config.load.load", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )

    assert main([]) == 1

    written = capfd.readouterr()
    assert (written.out, started) == ("", [])
    assert written.err.startswith("vllm-agent: the process that reads the configuration was killed")
    assert written.err.count("\n") == 1


@pytest.mark.parametrize("command", [["run"], []])
def test_the_agent_tells_of_its_file_what_a_check_tells(started, tmp_path, capfd, command) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("servers:\n  - {name: a b, mode: external, url: 'ftp://x'}\n")
    flag = f"--config.file={path}"

    assert main(["check-config", flag]) == 2
    checked = capfd.readouterr()
    assert main([*command, flag]) == 2

    assert capfd.readouterr() == checked
    assert len(checked.err.splitlines()) == 2
    assert started == []
