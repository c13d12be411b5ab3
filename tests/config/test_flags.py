"""Flags, their environment twins and defaults, and which of them wins."""

from __future__ import annotations

import argparse
import os
import pwd
from pathlib import Path

import pytest

from vllm_agent.config.flags import (
    FLAGS,
    LogFormat,
    LogLevel,
    Settings,
    add_to,
    resolve,
)
from vllm_agent.config.listen_address import ListenAddress, parse_listen_address
from vllm_agent.config.problem import ConfigError


def settings(*argv: str, **environ: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_to(parser)
    return resolve(parser.parse_args(argv), environ)


def problems(*argv: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings(*argv, **environ)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4_294_000_000)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_defaults(as_root: None):
    assert settings() == Settings(
        config_file=None,
        config_check=False,
        listen_addresses=(ListenAddress(None, 10060),),
        telemetry_path="/metrics",
        enable_lifecycle=False,
        state_dir=Path("/var/lib/vllm-agent"),
        log_level=LogLevel.INFO,
        log_format=LogFormat.LOGFMT,
    )


EXPECTED = Settings(
    config_file=Path("/etc/vllm-agent/config.yml"),
    config_check=True,
    listen_addresses=(ListenAddress("127.0.0.1", 0), ListenAddress("::1", 10061)),
    telemetry_path="/exporter/metrics",
    enable_lifecycle=True,
    state_dir=Path("/srv/state"),
    log_level=LogLevel.DEBUG,
    log_format=LogFormat.JSON,
)
FLAG_VALUES = [
    "--config.file=/etc/vllm-agent/config.yml",
    "--config.check",
    "--web.listen-address=127.0.0.1:0",
    "--web.listen-address=[::1]:10061",
    "--web.telemetry-path=/exporter/metrics",
    "--web.enable-lifecycle",
    "--state.dir=/srv/state",
    "--log.level=debug",
    "--log.format=json",
]
VARIABLES = {
    "VLLM_AGENT_CONFIG_FILE": "/etc/vllm-agent/config.yml",
    "VLLM_AGENT_CONFIG_CHECK": "true",
    "VLLM_AGENT_WEB_LISTEN_ADDRESS": "127.0.0.1:0, [::1]:10061",
    "VLLM_AGENT_WEB_TELEMETRY_PATH": "/exporter/metrics",
    "VLLM_AGENT_WEB_ENABLE_LIFECYCLE": "true",
    "VLLM_AGENT_STATE_DIR": "/srv/state",
    "VLLM_AGENT_LOG_LEVEL": "debug",
    "VLLM_AGENT_LOG_FORMAT": "json",
}


def test_every_flag_can_be_given_on_the_command_line():
    assert settings(*FLAG_VALUES) == EXPECTED


def test_a_value_may_stand_in_the_next_argument():
    argv = [part for flag in FLAG_VALUES for part in flag.split("=")]

    assert settings(*argv) == EXPECTED


def test_every_flag_has_an_environment_twin():
    assert [flag.variable for flag in FLAGS] == list(VARIABLES)
    assert settings(**VARIABLES) == EXPECTED


def test_a_flag_wins_over_its_variable_and_replaces_all_of_a_list():
    result = settings("--log.level=warn", "--web.listen-address=:1", "--config.check", **VARIABLES)

    assert (result.log_level, result.listen_addresses) == ("warn", (ListenAddress(None, 1),))


def test_a_wrong_variable_does_not_matter_where_a_flag_wins():
    assert settings("--log.level=warn", VLLM_AGENT_LOG_LEVEL="loud").log_level == LogLevel.WARN


def test_an_empty_variable_counts_as_unset():
    result = settings(VLLM_AGENT_CONFIG_FILE="", VLLM_AGENT_CONFIG_CHECK="")

    assert (result.config_file, result.config_check) == (None, False)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)]
)
def test_a_switch_in_the_environment_is_true_or_false(text: str, *, value: bool):
    assert settings(VLLM_AGENT_CONFIG_CHECK=text).config_check is value


def test_a_command_without_the_flags_takes_environment_and_defaults():
    result = resolve(argparse.Namespace(), {"VLLM_AGENT_LOG_LEVEL": "error"})

    assert (result.log_level, result.telemetry_path) == (LogLevel.ERROR, "/metrics")


def test_variables_that_kubernetes_sets_for_a_service_of_this_name_are_ignored():
    kubernetes = {
        "VLLM_AGENT_PORT": "tcp://10.0.0.1:10060",
        "VLLM_AGENT_SERVICE_HOST": "10.0.0.1",
        "VLLM_AGENT_SERVICE_PORT": "10060",
        "VLLM_AGENT_PORT_10060_TCP": "tcp://10.0.0.1:10060",
    }

    assert settings(**kubernetes) == settings()


def test_all_wrong_values_are_reported_at_once_with_where_they_come_from():
    expected = [
        "--config.file: must not be empty",
        "VLLM_AGENT_CONFIG_CHECK: must be true or false, got 'yes'",
        (
            "VLLM_AGENT_WEB_LISTEN_ADDRESS: must have a port behind ':', such as :10060 or "
            "127.0.0.1:10060, got '10060'"
        ),
        "--web.telemetry-path: must be a path such as /metrics, got 'metrics'",
        "VLLM_AGENT_STATE_DIR: must be a path of printable characters, got 'a\\nb'",
        "--log.level: must be one of debug, info, warn, error, got 'warning'",
        "VLLM_AGENT_LOG_FORMAT: must be one of logfmt, json, got 'text'",
    ]

    actual = problems(
        "--config.file=",
        "--web.telemetry-path=metrics",
        "--log.level=warning",
        VLLM_AGENT_CONFIG_CHECK="yes",
        VLLM_AGENT_WEB_LISTEN_ADDRESS=":10060,10060",
        VLLM_AGENT_STATE_DIR="a\nb",
        VLLM_AGENT_LOG_FORMAT="text",
    )

    assert actual == expected


def test_the_same_address_twice_is_refused():
    expected = ["--web.listen-address: must not name [::1]:80 twice"]

    assert problems("--web.listen-address=[::1]:80", "--web.listen-address=[0::1]:80") == expected


@pytest.mark.parametrize(
    "path", ["/", "", "metrics", "//", "/metrics/", "/a//b", "/..", "/{x}", "/a b", "/a?b", "/a#b"]
)
def test_what_is_no_path_for_metrics_is_refused(path: str):
    (line,) = problems("--web.telemetry-path=" + path)

    assert line.startswith("--web.telemetry-path: must ")


@pytest.mark.parametrize("path", ["/-", "/-/metrics", "/api", "/api/v1/metrics"])
def test_paths_of_the_agent_itself_are_refused_for_metrics(path: str):
    (line,) = problems("--web.telemetry-path=" + path)

    assert "which the agent uses itself" in line


def test_systemd_names_the_state_directory(as_root: None):
    assert settings(STATE_DIRECTORY="/var/lib/a:/var/lib/b").state_dir == Path("/var/lib/a")


def test_a_user_keeps_state_in_the_xdg_state_home(as_user: None):
    result = settings(XDG_STATE_HOME="/home/u/state", HOME="/home/u")

    assert result.state_dir == Path("/home/u/state/vllm-agent")


@pytest.mark.parametrize("state_home", ["", "relative/path"])
def test_a_user_without_xdg_state_home_keeps_state_in_the_home(as_user: None, state_home: str):
    result = settings(XDG_STATE_HOME=state_home, HOME="/home/u")

    assert result.state_dir == Path("/home/u/.local/state/vllm-agent")


def test_a_user_without_home_variable_has_the_home_of_the_user_database(
    as_user: None, monkeypatch: pytest.MonkeyPatch
):
    entry = pwd.struct_passwd(("u", "x", 1, 1, "", "/home/from-database", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)

    assert settings().state_dir == Path("/home/from-database/.local/state/vllm-agent")


def test_a_user_without_any_home_has_to_name_a_folder(as_user: None):
    expected = ["--state.dir: has no default for a user without a home: name a folder"]

    assert problems() == expected


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":10060", ListenAddress(None, 10060)),
        ("127.0.0.1:0", ListenAddress("127.0.0.1", 0)),
        ("[::1]:10060", ListenAddress("::1", 10060)),
        ("localhost:65535", ListenAddress("localhost", 65535)),
    ],
)
def test_an_address_to_listen_on_reads_back_as_written(text: str, address: ListenAddress):
    assert (parse_listen_address(text), str(address)) == (address, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10060", "localhost", "::1", "::1:80", "[::1]", "[h]:80", "[]:80", "1.2.3:80"),
        *(":", "h:x", ":65536", ":-1", ":\N{ARABIC-INDIC DIGIT THREE}", ":" + "9" * 5_000),
        *("a b:80", "http://h:80"),
    ],
)
def test_what_is_no_address_to_listen_on_is_refused(text: str):
    with pytest.raises(ValueError, match=r"^must "):
        parse_listen_address(text)


def test_the_help_names_every_flag_with_its_variable_and_default(
    monkeypatch: pytest.MonkeyPatch,
):
    # argparse breaks lines at hyphens; on a wide terminal there are no breaks.
    monkeypatch.setenv("COLUMNS", "1000")
    parser = argparse.ArgumentParser()
    add_to(parser)
    text = " ".join(parser.format_help().split())

    for flag in FLAGS:
        assert flag.name in text
        assert f"[${flag.variable}]" in text
        assert flag.default_text in text
