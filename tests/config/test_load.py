"""Loading configuration files: what they give, and the exact lines for what is wrong in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.choices import DiscoveryPage
from vllm_agent.config.discovery import DiscoveryConfig
from vllm_agent.config.document import MAX_DEPTH
from vllm_agent.config.load import MAX_FILE_BYTES, load
from vllm_agent.config.model import (
    MAX_SERVERS,
    Config,
    MatchConfig,
    ProbeConfig,
    ServerConfig,
)
from vllm_agent.config.problem import ConfigError
from vllm_agent.config.restart import RestartConfig
from vllm_agent.config.tls import TlsConfig
from vllm_agent.config.url import parse_server_url
from vllm_agent.lifecycle.states import LifecycleMode

TESTDATA = Path(__file__).parent / "testdata"
INVALID = sorted(path.name for path in TESTDATA.glob("invalid-*.yml"))

SERVER = "  - {{name: {name}, mode: external, url: 'http://{host}:8000'}}\n"


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [str(problem) for problem in caught.value.problems]


def problems_of(content: str | bytes, folder: Path) -> list[str]:
    """Give the problems of a file with this content, without its name in front."""
    path = folder / "config.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [line.removeprefix(f"{path}:").strip() for line in problems(path)]


def test_no_file_is_a_configuration_without_servers():
    assert Config(servers=(), source=None) == load(None, {"VLLM_MODEL": "ignored"})


def test_an_empty_file_is_a_configuration_without_servers():
    path = TESTDATA / "valid-empty.yml"

    assert Config(servers=(), source=path) == load(path, {})


def test_every_key_of_an_external_server_is_read():
    config = load(TESTDATA / "valid-external.yml", {})

    expected = ServerConfig(
        name="qwen",
        mode=LifecycleMode.EXTERNAL,
        url=parse_server_url("https://gpu7.example.org:8443/qwen"),
        model="Qwen/Qwen3-8B",
        api_key_file=TESTDATA / "qwen.key",
        tls_config=TlsConfig(ca_file=TESTDATA / "ca.pem"),
        probe=ProbeConfig(interval_seconds=5.0, timeout_seconds=2.0, failure_threshold=3),
        restart=RestartConfig(max_restarts=3, window_seconds=60.0),
    )
    assert ("llama", expected, "embeddings") == (
        config.servers[0].name,
        config.servers[1],
        config.servers[2].name,
    )


def test_what_is_not_written_has_its_default():
    server = load(TESTDATA / "valid-external.yml", {}).servers[0]

    assert (server.model, server.api_key_file, server.tls_config) == (None, None, None)
    assert (
        server.probe.interval_seconds,
        server.probe.timeout_seconds,
        server.probe.failure_threshold,
    ) == (10.0, 5.0, 3)
    assert (server.restart.max_restarts, server.restart.window_seconds) == (3, 60.0)


def test_discovery_has_defaults():
    expected = DiscoveryConfig(
        enabled=True,
        page=DiscoveryPage.SUPERVISED,
        forget_after_seconds=3_600.0,
        max_servers=32,
        read_environ=True,
        ask_hub=False,
    )

    assert load(TESTDATA / "valid-external.yml", {}).discovery == expected
    assert load(None, {}).discovery == expected


def test_every_key_of_discovery_is_read(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text(
        "discovery: {enabled: false, page: all, forget_after: 1d, max_servers: 1, "
        "read_environ: false, ask_hub: true}"
    )

    expected = DiscoveryConfig(
        enabled=False,
        page=DiscoveryPage.ALL,
        forget_after_seconds=86_400.0,
        max_servers=1,
        read_environ=False,
        ask_hub=True,
    )
    assert load(path, {}).discovery == expected


def test_a_server_is_monitored_unless_another_mode_is_written():
    llama, embeddings, qwen, gemma = load(TESTDATA / "valid-example.yml", {}).servers

    assert llama.mode is embeddings.mode is LifecycleMode.MONITORED
    assert (llama.match, llama.url) == (MatchConfig(port=8000), None)
    assert embeddings.url == parse_server_url("unix:///run/vllm/embeddings.sock")
    assert (qwen.mode, qwen.match) == (LifecycleMode.EXTERNAL, None)
    assert (gemma.mode, gemma.match) == (LifecycleMode.MANAGED, None)


def test_a_monitored_server_may_have_a_url_only(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text("servers: [{name: a, url: 'http://127.0.0.1:8000', mode: monitored}]")

    (server,) = load(path, {}).servers
    assert (server.mode, server.match) == (LifecycleMode.MONITORED, None)


def test_anchors_merge_and_a_key_without_value_has_its_default():
    first, second, third = load(TESTDATA / "valid-anchors.yml", {}).servers

    assert first.probe == second.probe
    assert (third.probe.failure_threshold, third.probe.interval_seconds) == (5, 3.0)
    assert third.model is None


def test_the_default_timeout_never_exceeds_the_interval():
    first = load(TESTDATA / "valid-anchors.yml", {}).servers[0]

    assert (first.probe.interval_seconds, first.probe.timeout_seconds) == (2.0, 2.0)


def test_configurations_cannot_be_changed():
    config = load(TESTDATA / "valid-external.yml", {})

    with pytest.raises(ValueError, match="frozen"):
        config.servers[0].name = "other"  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_file_gives_exactly_the_lines_beside_it(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(TESTDATA)

    expected = Path(name).with_suffix(".errors").read_text(encoding="utf-8").splitlines()
    assert expected == problems(Path(name))


def test_a_relative_path_starts_at_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "llama.key").write_text("key\n")
    server = "{name: a, mode: external, url: 'http://h', api_key_file: keys/llama.key}"
    (tmp_path / "config.yml").write_text(f"servers: [{server}]")

    servers = load(Path("config.yml"), {}).servers

    assert tmp_path / "keys" / "llama.key" == servers[0].api_key_file


def test_a_missing_file_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "none.yml"

    assert [f"{path}: no such file: correct --config.file"] == problems(path)


def test_a_directory_is_one_clear_line(tmp_path: Path):
    assert [f"{tmp_path}: is a directory: name the file in it"] == problems(tmp_path)


def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object, **_options: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    path = tmp_path / "config.yml"

    assert [f"{path}: cannot be read: let the user of the agent read it"] == problems(path)


def test_another_system_error_is_named(tmp_path: Path):
    loop = tmp_path / "loop.yml"
    loop.symlink_to(loop)

    assert [f"{loop}: cannot be read: Too many levels of symbolic links"] == problems(loop)


def test_a_name_that_no_file_can_have_is_one_clear_line():
    assert problems(Path("a\0b")) == ["a\0b: is not the name of a file"]


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path):
    expected = ["is larger than 1 MiB: this is not a configuration file"]

    assert expected == problems_of("#" * (MAX_FILE_BYTES + 1), tmp_path)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path):
    expected = ["2: is not UTF-8 text: save the file as UTF-8"]

    assert expected == problems_of(b"servers:\n- name: caf\xe9\n", tmp_path)


def test_a_byte_order_mark_is_fine(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_bytes(b"\xef\xbb\xbfservers: []\n")

    assert load(path, {}).servers == ()


def test_a_control_character_is_refused_with_its_line(tmp_path: Path):
    expected = [r"2: contains the control character '\x00': a text file is expected"]

    assert expected == problems_of("servers:\n\0", tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path):
    assert [f"1: nested deeper than {MAX_DEPTH} levels"] == problems_of("[" * 100_000, tmp_path)


def test_aliases_that_nest_are_as_deep_as_what_they_stand_for(tmp_path: Path):
    lines = ["k0: &a0 x"] + [f"k{n}: &a{n} [*a{n - 1}]" for n in range(1, 2_000)]

    assert [f"1: nested deeper than {MAX_DEPTH} levels"] == problems_of("\n".join(lines), tmp_path)


def test_a_long_chain_of_merges_is_followed(tmp_path: Path):
    lines = ["k0: &a0 {x: 1}"] + [f"k{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 300)]

    found = problems_of("\n".join(lines), tmp_path)

    assert found[0] == "1: k0: is not a known key (known: discovery, gpu, servers)"
    assert len(found) == 300


def test_a_long_value_is_cut_in_a_message(tmp_path: Path):
    (line,) = problems_of(f"servers: {'x' * 10_000}", tmp_path)

    assert line.endswith("got '" + "x" * 60 + "...'")


def test_an_odd_key_is_quoted_in_its_path(tmp_path: Path):
    expected = [r"1: 'a\nb': is not a known key (known: discovery, gpu, servers)"]

    assert expected == problems_of(r'"a\nb": 1', tmp_path)


def test_more_servers_than_the_bound_are_refused(tmp_path: Path):
    lines = (SERVER.format(name=f"s{n}", host=f"h{n}") for n in range(MAX_SERVERS + 1))
    expected = ["1: servers: must have at most 2,000 entries, got 2,001"]

    assert expected == problems_of("servers:\n" + "".join(lines), tmp_path)


def test_a_fifo_as_api_key_file_is_refused_without_waiting_for_a_writer(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    server = "{name: a, mode: external, url: 'http://h', api_key_file: fifo}"
    expected = [
        "1: servers[0].api_key_file: must name a file: this is a directory or a device",
    ]

    assert expected == problems_of(f"servers: [{server}]", tmp_path)


def test_a_client_certificate_that_is_no_pem_file_by_its_size_is_refused(tmp_path: Path):
    with (tmp_path / "large.pem").open("wb") as file:
        file.truncate(5 * 2**20)
    server = "{name: a, mode: external, url: 'https://h', tls_config: {ca_file: large.pem}}"

    expected = ["1: servers[0].tls_config.ca_file: must be at most 4 MiB"]
    assert expected == problems_of(f"servers: [{server}]", tmp_path)


KEYS = st.sampled_from(
    [
        *(
            "servers",
            "name",
            "mode",
            "url",
            "probe",
            "interval",
            "restart",
            "tls_config",
            "<<",
            "x",
        ),
        *("discovery", "page", "match", "port", "systemd_unit", "container", "pid_file", "command"),
        *("gpu", "nvml", "amdgpu", "demo", "timeout", "read_environ", "ask_hub"),
        *("start", "start_timeout", "load_timeout", "log_file", "model", "managed", "args"),
        *("env", "command", "stop_timeout", "user", "gpu_memory_utilization", "delay"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["external", "monitored", "managed", "10s", "http://h", "unix:///s", "llama", "[[a]*"]
    ),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def outcome(content: bytes, folder: Path) -> Config | ConfigError:
    path = folder / "config.yml"
    path.write_bytes(content)
    try:
        return load(path, {})
    except ConfigError as error:
        return error


def assert_usable(result: Config | ConfigError) -> None:
    """A configuration, or problems of one line each in words of our own."""
    if isinstance(result, ConfigError):
        lines = [str(problem) for problem in result.problems]
        assert lines
        assert all(line.isprintable() for line in lines)
        assert not [line for line in lines if "pydantic" in line or "Input should" in line]


@given(content=st.binary(max_size=300))
def test_no_bytes_make_load_raise_anything_else(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
):
    assert_usable(outcome(content, tmp_path_factory.getbasetemp()))


YAML_PIECES = st.sampled_from(
    [
        *"[]{},:-?&*!|>'\"%@`#<\t\n ",
        *("- ", ": ", "<<: *", "&a ", "*a", "!!str ", "!", "---\n", "\\ud800", "1e999", "x"),
        *("servers:\n", "  - name: a\n", "    url: http://h\n", "    mode: external\n"),
        *("    match: {command: '(", "discovery:\n", "gpu: {nvml: "),
    ]
)


@given(pieces=st.lists(YAML_PIECES, max_size=40))
def test_no_yaml_syntax_makes_load_raise_anything_else(
    pieces: list[str], tmp_path_factory: pytest.TempPathFactory
):
    assert_usable(outcome("".join(pieces).encode(), tmp_path_factory.getbasetemp()))


@given(tree=TREES)
def test_no_shape_of_values_makes_load_raise_anything_else(
    tree: object, tmp_path_factory: pytest.TempPathFactory
):
    content = json.dumps({"servers": [tree], "discovery": tree, "gpu": tree, "x": tree}).encode()

    assert_usable(outcome(content, tmp_path_factory.getbasetemp()))
