"""Managed servers in the configuration: their keys, their bounds, and where they may listen."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.load import load
from vllm_agent.config.managed import (
    MAX_ARGUMENTS,
    MAX_ARGUMENTS_BYTES,
    MAX_COMMAND_WORDS,
    MAX_PARALLEL,
    MAX_TEXT_LENGTH,
    MAX_VARIABLES,
    MAX_VARIABLES_BYTES,
    REFUSED_FLAGS,
    ManagedConfig,
)
from vllm_agent.config.model import ServerConfig
from vllm_agent.config.model_id import MAX_MODEL_LENGTH, why_no_model
from vllm_agent.config.problem import ConfigError
from vllm_agent.config.restart import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, RestartConfig
from vllm_agent.config.this_host import is_of_this_host
from vllm_agent.config.url import parse_server_url
from vllm_agent.config.values import LoadContext
from vllm_agent.config.variables import Variables
from vllm_agent.host.vllm_flags import NAMES, SHORT, SWITCH_FORMS
from vllm_agent.lifecycle.states import LifecycleMode

TESTDATA = Path(__file__).parent / "testdata"


def managed(**values: object) -> ManagedConfig:
    return ManagedConfig.model_validate(values)


def test_every_key_is_read():
    (server,) = load(TESTDATA / "valid-managed.yml", {}).servers

    assert server.mode is LifecycleMode.MANAGED
    assert server.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert server.url == parse_server_url("http://0.0.0.0:8001")
    assert server.restart == RestartConfig(
        max_restarts=5,
        window_seconds=600.0,
        delay_seconds=10.0,
        on_unhealthy=False,
        dry_run=True,
    )
    assert server.managed == ManagedConfig(
        command=("/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        args=(
            *("--max-model-len", "8192", "--model-impl", "auto"),
            *("--override-generation-config", '{"top_k": 1}'),
        ),
        env={"HF_HOME": "/srv/models", "VLLM_LOGGING_LEVEL": ""},
        served_model_name="llama",
        gpu_memory_utilization=1.0,
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        stop_timeout_seconds=120.0,
        stop_on_exit=True,
        airgapped=True,
        user="vllm",
    )


def test_a_name_and_a_model_are_enough(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text("servers: [{name: a, mode: managed, model: m}]")

    (server,) = load(path, {}).servers

    assert server.url == parse_server_url("http://127.0.0.1:8000")
    assert server.managed == ManagedConfig(
        command=("vllm", "serve"),
        args=(),
        env={},
        served_model_name=None,
        gpu_memory_utilization=0.9,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        stop_timeout_seconds=30.0,
        stop_on_exit=False,
        airgapped=False,
        user=None,
    )
    restart = server.restart
    assert (restart.delay_seconds, restart.on_unhealthy, restart.dry_run) == (2.0, True, False)


@pytest.mark.parametrize("mode", ["monitored", "external"])
def test_other_servers_have_the_section_too_with_its_defaults(mode: str):
    server = ServerConfig.model_validate({"name": "a", "mode": mode, "url": "http://h"})

    assert server.managed == ManagedConfig()


@pytest.mark.parametrize(
    ("key", "largest", "larger"),
    [
        ("command", ["a"] * MAX_COMMAND_WORDS, ["a"] * (MAX_COMMAND_WORDS + 1)),
        ("args", ["-a"] * MAX_ARGUMENTS, ["-a"] * (MAX_ARGUMENTS + 1)),
        ("args", ["-" * MAX_ARGUMENTS_BYTES], ["-" * MAX_ARGUMENTS_BYTES, "a"]),
        ("args", ["-", "\xe9" * (MAX_ARGUMENTS_BYTES // 2 - 1)], ["-", "\xe9" * 2**15]),
        (
            "env",
            {f"A{n}": "" for n in range(MAX_VARIABLES)},
            {f"A{n}": "" for n in range(MAX_VARIABLES + 1)},
        ),
        ("env", {"A": "x" * (MAX_VARIABLES_BYTES - 1)}, {"A": "x" * MAX_VARIABLES_BYTES}),
        ("env", {"A": "\xe9" * (MAX_VARIABLES_BYTES // 2 - 1)}, {"A": "\xe9" * 2**15}),
        ("served_model_name", "x" * MAX_TEXT_LENGTH, "x" * (MAX_TEXT_LENGTH + 1)),
        ("user", "x" * MAX_TEXT_LENGTH, "x" * (MAX_TEXT_LENGTH + 1)),
        ("gpu_memory_utilization", 1, 1.000001),
        ("tensor_parallel_size", MAX_PARALLEL, MAX_PARALLEL + 1),
        ("pipeline_parallel_size", MAX_PARALLEL, MAX_PARALLEL + 1),
        ("stop_timeout", "10m", "10m1ms"),
    ],
)
def test_a_bound_is_the_last_that_is_allowed(key: str, largest: object, larger: object):
    managed(**{key: largest})

    with pytest.raises(ValueError, match=re.escape(key)):
        managed(**{key: larger})


@pytest.mark.parametrize(
    ("key", "smallest", "smaller"),
    [
        ("gpu_memory_utilization", 0.000001, 0),
        ("gpu_memory_utilization", 0.5, float("nan")),
        ("gpu_memory_utilization", 0.5, True),
        ("tensor_parallel_size", 1, 0),
        ("stop_timeout", "1s", "999ms"),
        ("command", ["vllm"], []),
        ("env", {"A": ""}, {"": "x"}),
        ("env", {"A": "x"}, {"A": "\ud800"}),
        ("args", ["--x\n\t"], ["\ud800"]),
    ],
)
def test_a_lower_bound_is_allowed_and_what_is_below_is_not(
    key: str, smallest: object, smaller: object
):
    managed(**{key: smallest})

    with pytest.raises(ValueError, match=re.escape(key)):
        managed(**{key: smaller})


def test_the_bounds_of_the_delay():
    for seconds in (MIN_DELAY_SECONDS, MAX_DELAY_SECONDS):
        assert RestartConfig(delay_seconds=seconds).delay_seconds == seconds
    for seconds in (MIN_DELAY_SECONDS - 0.001, MAX_DELAY_SECONDS + 0.001):
        with pytest.raises(ValueError, match="must be at"):
            RestartConfig(delay_seconds=seconds)


@pytest.mark.parametrize(
    "args",
    [
        ["--model-impl", "auto"],
        ["--host-x"],
        ["--no-enable-prefix-caching"],
        ["--max-num-seqs", "-1"],
        ["--override-generation-config", '{"a": "--port"}'],
        ["-O3"],
        ["-dp", "2"],
        ["--config", "/etc/vllm.yml"],
        ["--"],
    ],
)
def test_other_flags_are_taken(args: list[str]):
    assert managed(args=args).args == tuple(args)


@pytest.mark.parametrize("flag", sorted(REFUSED_FLAGS))
def test_a_flag_that_a_key_says_is_refused_however_it_is_written(flag: str):
    forms = {flag, f"{flag}=x", flag.replace("-", "_").replace("__", "--", 1)}
    forms |= {flag[:-1]} if flag.startswith("--") else set()

    for form in forms:
        if form.startswith("-"):
            with pytest.raises(ValueError, match="args"):
                managed(args=["--enforce-eager", form])


def test_no_other_flag_of_vllm_is_refused():
    """Nor is it the beginning of one that is, which alone stands for that one."""
    flags = {f"--{name}" for name in (*NAMES, *SWITCH_FORMS)} | {f"-{name}" for name in SHORT}

    refused = set()
    for flag in sorted(flags):
        try:
            managed(args=[flag])
        except ValueError:
            refused.add(flag)
    assert refused == set(REFUSED_FLAGS)


@pytest.mark.parametrize(
    ("model", "is_one"),
    [
        ("org/name", True),
        ("/models/llama 3", True),
        ("./llama", True),
        ("s3://bucket/llama", True),
        ("org/name:Q4_K_M", True),
        ("x" * MAX_MODEL_LENGTH, True),
        ("x" * (MAX_MODEL_LENGTH + 1), False),
        ("", False),
        (" m", False),
        ("m\n", False),
        ("a\0b", False),
        ("-m", False),
        ("--trust-remote-code", False),
    ],
)
def test_what_can_be_a_model(model: str, *, is_one: bool):
    assert (why_no_model(model) == "") is is_one


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        *(("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("0.0.0.0", True)),
        *(("::1", True), ("::", True)),
        # Of TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849): no host has them.
        *(("192.0.2.1", False), ("2001:db8::1", False)),
        # A name is not looked up, whatever it stands for.
        *(("gpu7", False), ("localhost.localdomain", False)),
    ],
)
def test_which_addresses_are_of_this_host(host: str, *, is_here: bool):
    assert is_of_this_host(host) is is_here


def test_addresses_of_interfaces_are_of_this_host():
    local = re.findall(r"-- ([0-9.]+)\n +/32 host LOCAL", Path("/proc/net/fib_trie").read_text())

    assert "127.0.0.1" in local
    assert [host for host in local if not is_of_this_host(host)] == []


def test_variables_are_frozen_and_comparable_and_can_be_sent():
    variables = Variables({"A": "1", "B": "2"})

    assert variables == {"B": "2", "A": "1"} == Variables({"B": "2", "A": "1"})
    assert variables != {"A": "1"}
    assert variables != "A"
    assert hash(variables) == hash(Variables({"B": "2", "A": "1"}))
    assert pickle.loads(pickle.dumps(variables)) == variables  # noqa: S301 - the line's own
    assert (variables["A"], list(variables), len(variables)) == ("1", ["A", "B"], 2)
    with pytest.raises(TypeError):
        variables["A"] = "2"  # type: ignore[index]  # the point of the test


def test_what_they_were_made_of_may_change():
    values = {"A": "1"}
    variables = Variables(values)
    values["A"] = "2"

    assert variables["A"] == "1"


def test_values_of_variables_are_never_shown(tmp_path: Path):
    canary = "canary-of-a-token-77ab"
    server = {"name": "a", "mode": "managed", "model": "m", "managed": {"env": {"T": canary}}}
    config = ServerConfig.model_validate(server)

    views = (repr(config), str(config), repr(config.plain()), config.model_dump_json())
    assert not [view for view in views if canary in view]
    assert config.managed.env["T"] == canary


@pytest.mark.parametrize(
    "written",
    [
        "command: vllm serve --api-key {}",
        "command: [vllm serve --api-key {}]",
        "args: --api-key {}",
        "args: [--api-key, {}]",
        "args: [--api-key={}]",
        "args: [--hf-token={}]",
        "args: [{}]",
        "env: T={}",
        "env: [T={}]",
        "env: {{T: [{}]}}",
        "env: {{VLLM_PORT: {}}}",
        'env: {{T: "{}\\0"}}',
        "hf_token: {}",
        "gpu_memory_utilization: [{}]",
    ],
)
def test_a_secret_is_not_repeated_where_it_is_wrong(tmp_path: Path, written: str):
    canary = "canary-of-a-token-77ab"
    path = tmp_path / "config.yml"
    server = "servers:\n- name: a\n  mode: managed\n  model: m\n  managed:\n    "
    path.write_text(server + written.format(canary))

    with pytest.raises(ConfigError) as caught:
        load(path, {})

    assert canary not in str(caught.value)


WORDS = st.text(max_size=8) | st.sampled_from(["--port", "-tp", "--x", "vllm serve", "VLLM_PORT"])


@given(
    values=st.dictionaries(
        st.sampled_from(
            sorted({field.alias or n for n, field in ManagedConfig.model_fields.items()})
        ),
        st.none()
        | st.integers()
        | st.floats()
        | WORDS
        | st.lists(WORDS | st.integers(), max_size=3)
        | st.dictionaries(WORDS, WORDS | st.none() | st.integers(), max_size=3),
    )
)
def test_no_values_raise_anything_else(values: dict[str, object]):
    def read() -> ManagedConfig:
        context = LoadContext(Path("/"))
        return ManagedConfig.model_validate(values, context=context, by_alias=True, by_name=False)

    try:
        found = read()
    except ValueError:
        return
    assert hash(found.plain()) == hash(read().plain())
    assert pickle.loads(pickle.dumps(found.plain())) == read().plain()  # noqa: S301 - own
