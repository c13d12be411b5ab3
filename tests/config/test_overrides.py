"""VLLM_MODEL, VLLM_PORT and HF_TOKEN: what they change, and where they are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.load import load
from vllm_agent.config.overrides import override
from vllm_agent.config.problem import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_agent.config.model import Config

TOKEN = "canary-of-a-token-77ab"
KUBERNETES = "tcp://10.0.0.1:8000"
MANAGED = {"name": "llama", "mode": "managed", "model": "org/llama"}
OTHERS = ({"name": "a", "match": {"port": 1}}, {"name": "b", "mode": "external", "url": "http://h"})


def loaded(folder: Path, environ: Mapping[str, str], *servers: Mapping[str, object]) -> Config:
    path = folder / "config.yml"
    path.write_text(json.dumps({"servers": servers}))
    return load(path, environ)


def problems(folder: Path, environ: Mapping[str, str], *servers: Mapping[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, environ, *servers)
    return [str(problem) for problem in caught.value.problems]


def test_they_change_the_one_managed_server(tmp_path: Path):
    environ = {"VLLM_MODEL": " org/other ", "VLLM_PORT": " 8005 ", "HF_TOKEN": TOKEN}

    config = loaded(tmp_path, environ, OTHERS[0], MANAGED, OTHERS[1])

    first, managed, last = config.servers
    assert (managed.model, str(managed.url)) == ("org/other", "http://127.0.0.1:8005")
    assert (first, last) == loaded(tmp_path, {}, *OTHERS).servers
    assert config.warnings == ()


def test_the_token_is_in_no_configuration(tmp_path: Path):
    with_token = loaded(tmp_path, {"HF_TOKEN": TOKEN}, MANAGED)

    assert with_token == loaded(tmp_path, {}, MANAGED)
    assert TOKEN not in repr(with_token)


def test_a_model_in_the_environment_is_enough(tmp_path: Path):
    (server,) = loaded(tmp_path, {"VLLM_MODEL": "org/m"}, {"name": "a", "mode": "managed"}).servers

    assert server.model == "org/m"


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:8005"),
        ("http://[::1]", "http://[::1]:8005"),
        ("http://localhost:8000/llama", "http://localhost:8005/llama"),
    ],
)
def test_of_a_url_only_the_port_changes(tmp_path: Path, url: str, changed: str):
    (server,) = loaded(tmp_path, {"VLLM_PORT": "8005"}, {**MANAGED, "url": url}).servers

    assert str(server.url) == changed


def test_empty_variables_count_as_unset(tmp_path: Path):
    environ = {"VLLM_MODEL": "", "VLLM_PORT": " ", "HF_TOKEN": ""}

    assert loaded(tmp_path, environ, MANAGED) == loaded(tmp_path, {}, MANAGED)
    second = {**MANAGED, "name": "b", "url": "http://127.0.0.1:8001"}
    loaded(tmp_path, environ, MANAGED, second)


@pytest.mark.parametrize("port", ["8005", "nonsense", KUBERNETES])
def test_without_a_managed_server_they_are_ignored(tmp_path: Path, port: str):
    environ = {"VLLM_MODEL": "-x", "VLLM_PORT": port, "HF_TOKEN": TOKEN}

    assert loaded(tmp_path, environ, *OTHERS) == loaded(tmp_path, {}, *OTHERS)
    assert load(None, environ) == load(None, {})


def test_a_port_that_kubernetes_set_is_ignored_with_a_warning(tmp_path: Path):
    config = loaded(tmp_path, {"VLLM_PORT": KUBERNETES}, MANAGED)

    assert config.servers == loaded(tmp_path, {}, MANAGED).servers
    (warning,) = config.warnings
    assert warning.startswith("VLLM_PORT is ignored: it is a URI, as Kubernetes sets it")


def test_with_several_managed_servers_each_of_them_is_refused(tmp_path: Path):
    servers = [
        {**MANAGED, "name": f"s{port}", "url": f"http://127.0.0.1:{port}"} for port in (5, 6, 7)
    ]
    environ = {"VLLM_MODEL": "org/m", "VLLM_PORT": "8000", "HF_TOKEN": TOKEN}

    lines = problems(tmp_path, environ, servers[0], OTHERS[0], *servers[1:])

    token = "for each managed.env: {HF_TOKEN_PATH: /path}, the file with its token"
    text = "is for one managed server, and 3 are configured (servers[0], servers[2], ...): unset it"
    assert lines == [
        f"VLLM_MODEL: {text} and write the model of each",
        f"VLLM_PORT: {text} and write the url of each",
        f"HF_TOKEN: {text} and write {token}",
    ]
    # Nobody asked for it: it is no reason to refuse a start.
    config = loaded(tmp_path, {"VLLM_PORT": KUBERNETES}, *servers)
    assert len(config.warnings) == 1


@pytest.mark.parametrize("port", ["0", "65536", "80a", "-1", "8000.0", "\u0664", "1" * 5_000])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str):
    (line,) = problems(tmp_path, {"VLLM_PORT": port}, MANAGED)

    assert line.startswith("VLLM_PORT: must be a port from 1 to 65535, got '")
    assert len(line) < 200


def test_a_model_that_is_none_is_refused(tmp_path: Path):
    assert problems(tmp_path, {"VLLM_MODEL": "--port=1"}, MANAGED) == [
        "VLLM_MODEL: a model does not begin with '-': that would be a flag, got '--port=1'"
    ]


def test_a_unix_socket_has_no_port(tmp_path: Path):
    (line,) = problems(tmp_path, {"VLLM_PORT": "8000"}, {**MANAGED, "url": "unix:///s"})

    advice = "unset it, or write url: http://127.0.0.1:8000"
    assert line == f"VLLM_PORT: servers[0] listens on a unix socket: {advice}"


@pytest.mark.parametrize("url", ["nowhere", 8000, ["http://h"]])
def test_a_url_that_is_wrong_is_told_once(tmp_path: Path, url: object):
    (line,) = problems(tmp_path, {"VLLM_PORT": "8005"}, {**MANAGED, "url": url})

    assert "servers[0].url: must" in line


def test_the_port_that_counts_is_compared_with_others(tmp_path: Path):
    other = {"name": "b", "match": {"port": 8005}}

    (line,) = problems(tmp_path, {"VLLM_PORT": "8005"}, MANAGED, other)

    assert line.endswith(
        "servers[1].match: servers[0] is the same process of this host: write a match that tells "
        "them apart"
    )


VALUES = st.sampled_from(["", "8000", "x", "-1", KUBERNETES, "org/m", "\ud800", "unix:///s", "a b"])


@given(
    server=st.dictionaries(st.sampled_from(["mode", "model", "url", "name"]), VALUES | st.none())
    | st.none()
    | st.integers(),
    environ=st.dictionaries(st.sampled_from(["VLLM_MODEL", "VLLM_PORT", "HF_TOKEN"]), VALUES),
)
def test_nothing_makes_them_raise(server: object, environ: dict[str, str]):
    if isinstance(server, dict):
        server["mode"] = "managed"
    value = {"servers": [server]}
    original = json.dumps(value)

    found = override(value, environ)

    assert json.dumps(value) == original
    assert len(found.value["servers"]) == 1
    assert all(f"{problem}".startswith("VLLM_") for problem in found.problems)
