"""The unit for systemd: what it says, what it must not say, and that systemd takes it."""

from __future__ import annotations

import argparse
import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_agent.config.duration import parse_duration
from vllm_agent.config.flags import add_to, resolve
from vllm_agent.config.managed import ManagedConfig

UNIT = Path(__file__).parents[2] / "deploy" / "vllm-agent.service"

BLINDING = (
    # /proc of others is read with CAP_SYS_PTRACE, through its own files.
    *("ProtectProc", "ProcSubset", "PrivateUsers", "PrivatePIDs", "PrivateNetwork", "PrivateIPC"),
    *("RootDirectory", "RootImage", "InaccessiblePaths", "TemporaryFileSystem"),
)
BREAKING_GPUS = (
    *("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"),
    # nvidia-modprobe, a program of root with the setuid bit, loads the driver and makes devices.
    *("NoNewPrivileges", "ProtectKernelModules"),
)
BREAKING_SERVERS = (
    *("ProtectHome", "PrivateTmp", "DynamicUser", "ProtectControlGroups", "RestrictNamespaces"),
    *("MemoryMax", "MemoryHigh", "CPUQuota", "OOMScoreAdjust", "Nice", "AmbientCapabilities"),
)
NEEDED = {
    *("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"),  # to see others
    *("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN"),  # to start and stop as another user
    *("CAP_SYS_RESOURCE", "CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_MKNOD", "CAP_IPC_LOCK"),
    *("CAP_SYS_NICE", "CAP_NET_BIND_SERVICE"),
}


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), interpolation=None, strict=True
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_it_has_the_sections_of_a_service(unit):
    assert unit.sections() == ["Unit", "Service", "Install"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "exec"),
        ("Restart", "always"),
        ("KillMode", "process"),
        ("StateDirectory", "vllm-agent"),
        ("Delegate", "yes"),
        ("OOMPolicy", "continue"),
        ("TasksMax", "infinity"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
    ],
)
def test_an_agent_that_may_manage_servers_needs(unit, key: str, value: str):
    assert unit["Service"][key] == value


def test_it_is_restarted_for_ever(unit):
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_it_says_how_to_take_the_servers_down_with_it():
    text = UNIT.read_text(encoding="utf-8")
    comment, _, rest = text.partition("\nKillMode=process\n")

    assert rest
    assert "KillMode=control-group" in comment.rpartition("\n\n")[2]


def test_a_stop_has_time_for_servers_that_end_with_the_agent(unit):
    stop_seconds = parse_duration(unit["Service"]["TimeoutStopSec"])

    assert stop_seconds >= ManagedConfig().stop_timeout_seconds + 30


def test_files_may_be_opened_by_the_thousands_but_not_at_once(unit):
    """Programs that close all files there could be take long where the soft limit is high."""
    soft, hard = map(int, unit["Service"]["LimitNOFILE"].split(":"))

    assert soft == 1024
    assert hard >= 65_536


def test_its_command_line_is_one_of_the_agent(unit):
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_to(parser)

    settings = resolve(parser.parse_args(arguments), {"STATE_DIRECTORY": "/var/lib/vllm-agent"})

    assert (Path(program).name, command) == ("vllm-agent", "run")
    assert settings.config_file == Path("/etc/vllm-agent/config.yml")
    assert settings.state_dir == Path("/var/lib/vllm-agent")


@pytest.mark.parametrize("key", [*BLINDING, *BREAKING_GPUS, *BREAKING_SERVERS])
def test_it_leaves_out_what_would_break_it(unit, key: str):
    assert key not in unit["Service"]


def test_the_file_says_what_is_left_out():
    comment = UNIT.read_text(encoding="utf-8").partition("left out on purpose:")[2]

    for key in BREAKING_GPUS:
        assert f"{key}=" in comment


def test_no_capability_is_taken_that_is_needed(unit):
    denied = unit["Service"]["CapabilityBoundingSet"]

    assert denied.startswith("~")
    assert NEEDED.isdisjoint(denied.removeprefix("~").split())


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_it_without_a_word(tmp_path: Path):
    """But for the program, which is not installed here."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    program = shutil.which("true")
    copy.write_text(text.replace("/opt/vllm-agent/bin/vllm-agent run", f"{program}"))

    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    about_it = [line for line in found.stderr.splitlines() if UNIT.name in line]
    assert (about_it, found.returncode) == ([], 0)
