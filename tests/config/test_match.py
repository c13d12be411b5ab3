"""Which process of this host a monitored server means."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from vllm_agent.config.load import load
from vllm_agent.config.match import matches
from vllm_agent.config.match_values import (
    MAX_COMMAND_CHARACTERS,
    MAX_PATTERN_LENGTH,
    MAX_REPEATS,
    MAX_UNIT_LENGTH,
    parse_container,
    parse_pattern,
    parse_unit,
)
from vllm_agent.config.model import MatchConfig, ServerConfig
from vllm_agent.config.url import parse_server_url
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.observations import ProcessId, Sighting, VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable

CONTAINER = "0123456789abcdef" * 4
ARGUMENTS = ("/opt/venv/bin/python", "/opt/venv/bin/vllm", "serve", "acme/llama", "--port", "8000")
SIGHTING = Sighting(
    process=ProcessId("boot", 4242, 77),
    start_seconds=1.7e9,
    command=VllmCommand(model="acme/llama"),
    uid=1000,
    session=4242,
    unit="vllm.service",
    container_id=CONTAINER,
    url="http://127.0.0.1:8000",
)
PID_FILE = Path("/run/vllm.pid")


def no_pid_file(path: Path) -> int | None:
    raise AssertionError(f"{path} must not be read here")


def is_match(
    sighting: Sighting = SIGHTING,
    *,
    arguments: tuple[str, ...] = ARGUMENTS,
    pid_of: Callable[[Path], int | None] = no_pid_file,
    **match,
) -> bool:
    server = ServerConfig(name="llama", match=MatchConfig(**match))
    return matches(server, sighting, arguments, pid_of)


def is_at(url: str, sighting: Sighting) -> bool:
    server = ServerConfig(name="llama", url=parse_server_url(url))
    return matches(server, sighting, ARGUMENTS, no_pid_file)


def commanded(**command) -> Sighting:
    return replace(SIGHTING, command=VllmCommand(**command))


def test_a_port_matches():
    assert is_match(port=8000)
    assert not is_match(port=8001)


@pytest.mark.parametrize("command", [{"uds": "/run/vllm.sock"}, {"is_headless": True}])
def test_a_server_without_a_port_has_no_default_port(command: dict):
    assert not is_match(commanded(**command), port=8000)
    assert not is_at("http://127.0.0.1:8000", commanded(**command))


def test_a_unit_matches_with_or_without_its_suffix():
    assert is_match(systemd_unit="vllm")
    assert is_match(systemd_unit="vllm.service")
    assert not is_match(systemd_unit="vll")
    assert not is_match(replace(SIGHTING, unit=None), systemd_unit="vllm")


def test_a_container_matches_by_the_beginning_of_its_id():
    assert is_match(container=CONTAINER[:12])
    assert is_match(container=CONTAINER.upper())
    assert not is_match(container=CONTAINER[1:13])
    assert not is_match(replace(SIGHTING, container_id=None), container=CONTAINER[:12])


def test_a_pid_file_matches_the_main_process():
    assert is_match(pid_file=PID_FILE, pid_of={PID_FILE: 4242}.get)
    assert not is_match(pid_file=PID_FILE, pid_of={PID_FILE: 4243}.get)
    assert not is_match(pid_file=PID_FILE, pid_of=dict[Path, int]().get)


def test_a_command_matches_anywhere_in_the_arguments():
    assert is_match(command="serve acme/llama")
    assert is_match(command=r"--port 80\d\d$")
    assert is_match(command="(?i)LLAMA")
    assert not is_match(command="^vllm")
    assert not is_match(command="llama", arguments=())


def test_a_command_is_searched_in_its_beginning_only():
    arguments = ("vllm", "x" * (MAX_COMMAND_CHARACTERS - 9), "end", "beyond")

    assert is_match(command="end$", arguments=arguments)
    assert not is_match(command="beyond", arguments=arguments)


def test_a_command_line_made_for_the_pattern_does_not_hold_the_search_up():
    """Without the bound on the text this takes hours."""
    arguments = ("vllm", "serve", *["vllm serve llama"] * 8_000)

    assert not is_match(command="vllm serve .*llama.*--port 8000", arguments=arguments)


@pytest.mark.parametrize(
    "wrong",
    [{"port": 1}, {"systemd_unit": "a"}, {"container": "f" * 12}, {"command": "^llama"}, {}],
)
def test_all_that_is_written_must_hold(wrong: dict[str, Any]):
    right = {"port": 8000, "systemd_unit": "vllm", "container": CONTAINER, "command": "llama"}
    match = MatchConfig(**{**right, **wrong}, pid_file=PID_FILE)
    server = ServerConfig(name="llama", match=match)

    assert matches(server, SIGHTING, ARGUMENTS, {PID_FILE: 4242}.get) is (not wrong)


def test_a_url_matches_by_its_port_whatever_the_host_is_called():
    for url in ("http://127.0.0.1:8000", "https://gpu7.example.org:8000", "http://[::1]:8000/qwen"):
        assert is_at(url, SIGHTING)
    assert not is_at("http://127.0.0.1:8001", SIGHTING)
    assert is_at("http://localhost", commanded(port=80))


def test_a_url_of_a_unix_socket_matches_by_its_path():
    here = commanded(uds="/run/vllm.sock")
    elsewhere = replace(commanded(uds="vllm.sock"), url="unix:///srv/vllm.sock")

    assert is_at("unix:///run/vllm.sock", here)
    assert is_at("unix:///srv/vllm.sock", elsewhere)
    assert not is_at("unix:///srv/vllm.sock", here)
    assert not is_at("unix:///srv/vllm.sock", SIGHTING)


def test_a_match_counts_before_the_url():
    url = parse_server_url("http://127.0.0.1:9000")
    server = ServerConfig(name="llama", match=MatchConfig(port=8000), url=url)

    assert matches(server, SIGHTING, ARGUMENTS, no_pid_file)
    assert not matches(server, commanded(port=9000), ARGUMENTS, no_pid_file)


def test_an_external_server_has_no_process_here():
    url = parse_server_url("http://127.0.0.1:8000")
    server = ServerConfig(name="llama", mode=LifecycleMode.EXTERNAL, url=url)

    assert not matches(server, SIGHTING, ARGUMENTS, no_pid_file)


def test_every_key_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text(f"""\
servers:
  - name: llama
    match:
      port: 8000
      systemd_unit: vllm@llama
      container: {CONTAINER[:12].upper()}
      pid_file: {PID_FILE}
      command: --port 80\\d\\d
""")
    expected = MatchConfig(
        port=8000,
        systemd_unit="vllm@llama.service",
        container=CONTAINER[:12],
        pid_file=PID_FILE,
        command=re.compile(r"--port 80\d\d"),
    )

    (server,) = load(path, {}).servers
    assert server.match == expected
    assert (server.mode, server.url) == (LifecycleMode.MONITORED, None)


def test_a_pid_file_need_not_be_there_yet(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text(f"servers: [{{name: a, match: {{pid_file: {tmp_path}/none.pid}}}}]")

    assert load(path, {}).servers[0].match == MatchConfig(pid_file=tmp_path / "none.pid")


def test_the_same_keys_are_the_same_match_however_they_are_written():
    first = MatchConfig(systemd_unit="vllm", command="serve")
    second = MatchConfig(command=re.compile("serve"), systemd_unit="vllm.service", port=None)

    assert first == second
    assert hash(first) == hash(second)


def test_a_match_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="at least one of port, systemd_unit"):
        MatchConfig()


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("vllm", "vllm.service"),
        ("vllm.service", "vllm.service"),
        ("vllm@llama", "vllm@llama.service"),
        (r"vllm\x2dllama", r"vllm\x2dllama.service"),
        ("my.app:1_a", "my.app:1_a.service"),
        ("u" * (MAX_UNIT_LENGTH - 8), "u" * (MAX_UNIT_LENGTH - 8) + ".service"),
    ],
)
def test_units(text: str, unit: str):
    assert parse_unit(text) == unit


@pytest.mark.parametrize(
    "text",
    [
        *("", ".service", "a b", "a/b", "vllm\n", "a.timer", "session-1.scope"),
        *("vllm@", "vllm@.service", "u" * (MAX_UNIT_LENGTH - 7)),
    ],
)
def test_no_units(text: str):
    with pytest.raises(ValueError, match=r"^must be "):
        parse_unit(text)


@pytest.mark.parametrize("text", ["", "vllm", "0123456789a", CONTAINER + "0", "0123456789ag"])
def test_no_containers(text: str):
    with pytest.raises(ValueError, match=r"^must be the id of a container"):
        parse_container(text)


@pytest.mark.parametrize(
    "text",
    [
        ".*llama.*",
        r"serve \S+ .*8000",
        "(llama|qwen)",
        "(llama)?",
        "https?://",
        r"80\d{2}",
        "x{2}y{2}z{2}",
        "[*+(){}]",
        "[]*+]",
        r"\*\+\{1,\}\)\*",
        '{"a": 1}',
        "a{b}*",
        "(?i)llama",
        ".*?llama.*?",
        "x" * MAX_PATTERN_LENGTH,
        "(" * 127 + "x" + ")" * 127,
    ],
)
def test_patterns(text: str):
    assert parse_pattern(text) == re.compile(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1 to 256"),
        ("x" * (MAX_PATTERN_LENGTH + 1), "1 to 256"),
        ("a\tb", "printable"),
        ("(a", r"unterminated subpattern at character 1$"),
        ("a**", r"multiple repeat at character 3$"),
        ("[[a]", "Possible nested set"),
        ("a{99999999999}", "repetition number is too large"),
        ("(a+)+", "repeat a group, as it does at character 4:"),
        ("(a|a)*", "repeat a group"),
        ("(a?){40}", "repeat a group"),
        ("(a?){1,40}", "repeat a group"),
        ("a*" * (MAX_REPEATS + 1), "at most 2 of .*, got 3"),
        ("a{,9}b{1,}c{1,2}", "got 3"),
        ("a+b*?c+?", "got 3"),
    ],
)
def test_no_patterns(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_pattern(text)
