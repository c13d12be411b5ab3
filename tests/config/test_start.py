"""The keys `start` and `log_file` of a server: what they give, their bounds, and where they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_agent.config.load import load
from vllm_agent.config.model import Config, ServerConfig
from vllm_agent.config.problem import ConfigError
from vllm_agent.config.start import StartConfig
from vllm_agent.lifecycle.server_life import Policy


def server_of(keys: str, folder: Path) -> ServerConfig:
    path = folder / "config.yml"
    path.write_text(f"servers: [{{name: a, match: {{port: 8000}}, {keys}}}]", encoding="utf-8")
    (server,) = load(path, {}).servers
    return server


@pytest.mark.parametrize("keys", ["", "start: , log_file: ", "start: {load_timeout: }"])
def test_what_is_not_written_has_its_default(keys: str, tmp_path: Path):
    server = server_of(keys, tmp_path)

    expected = StartConfig(start_timeout_seconds=120.0, load_timeout_seconds=300.0)
    assert (server.start, server.log_file) == (expected, None)
    assert Config().default_start == expected


def test_the_defaults_are_those_of_the_policy():
    start, policy = StartConfig(), Policy()

    assert start.start_timeout_seconds == policy.start_timeout_seconds
    assert start.load_timeout_seconds == policy.load_timeout_seconds


def test_every_key_is_read(tmp_path: Path):
    keys = "start: {start_timeout: 1s, load_timeout: 1d}, log_file: /var/log/vllm.log"

    server = server_of(keys, tmp_path)

    assert server.start == StartConfig(start_timeout_seconds=1.0, load_timeout_seconds=86_400.0)
    assert server.log_file == Path("/var/log/vllm.log")


@pytest.mark.parametrize("key", ["start_timeout", "load_timeout"])
@pytest.mark.parametrize(
    ("written", "problem"),
    [("999ms", "must be at least 1s, got 999ms"), ("1d1s", "must be at most 1d, got 1d1s")],
)
def test_beyond_a_bound_is_refused(key: str, written: str, problem: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        server_of(f"start: {{{key}: {written}}}", tmp_path)

    (found,) = caught.value.problems
    assert (found.key_path, found.message) == (f"servers[0].start.{key}", problem)


def test_an_external_server_may_leave_both_out(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text("servers: [{name: a, mode: external, url: 'http://h', start: , log_file: }]")

    (server,) = load(path, {}).servers
    assert (server.start, server.log_file) == (StartConfig(), None)
