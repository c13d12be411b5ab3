"""The command line and the environment that a managed server is started with."""

from __future__ import annotations

import logging
import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.model import ServerConfig
from vllm_agent.config.url import parse_server_url
from vllm_agent.host.launching.plan import MARKER, LaunchPlan, plan_launch
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.vllm_grammar import read_flags
from vllm_agent.lifecycle.reasons import Reason

MODULE = ["/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name
ADDRESS = ("--host", "127.0.0.1", "--port", "8000")
SHARE = ("--gpu-memory-utilization", "0.9")
SECRET = "sk-0123456789"


def server(**keys: object) -> ServerConfig:
    facts = {"name": "llama", "mode": "managed", "model": "org/small"} | keys
    return ServerConfig.model_validate(facts)


def with_args(*args: str, **managed: object) -> ServerConfig:
    """Also such as the configuration refuses."""
    configured = server(managed=managed)
    unchecked = configured.managed.model_copy(update={"args": args})
    return configured.model_copy(update={"managed": unchecked})


def plan(configured: ServerConfig, **environ: str) -> LaunchPlan:
    return plan_launch(configured, None, environ)


def test_a_plain_server():
    planned = plan(server())
    assert planned.arguments == ("vllm", "serve", "org/small", *ADDRESS, *SHARE)
    assert (planned.server, planned.model, planned.url) == (
        "llama",
        "org/small",
        "http://127.0.0.1:8000",
    )
    assert (planned.user, planned.gpus, planned.is_airgapped) == (None, 1, False)
    assert planned.gpu_memory_utilization == 0.9
    assert (planned.command.model, planned.command.port) == ("org/small", 8000)


def test_everything_that_is_configured_comes_before_the_arguments():
    planned = plan(
        server(
            url="http://[::1]:9001",
            managed={
                "command": ["/opt/vllm/bin/vllm", "serve"],
                "args": ["--max-model-len", "8192", "--hf-overrides", '{"a": 1}'],
                "served_model_name": "small",
                "gpu_memory_utilization": 0.5,
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 4,
                "user": OWN_NAME,
                "airgapped": True,
            },
        )
    )
    assert planned.arguments == (
        *("/opt/vllm/bin/vllm", "serve", "org/small"),
        *("--host", "::1", "--port", "9001", "--served-model-name", "small"),
        *("--gpu-memory-utilization", "0.5"),
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "4"),
        *("--max-model-len", "8192", "--hf-overrides", '{"a": 1}'),
    )
    assert (planned.user, planned.gpus, planned.is_airgapped) == (OWN_NAME, 8, True)
    assert planned.gpu_memory_utilization == 0.5
    assert planned.command.served_name == "small"
    assert planned.url == "http://[::1]:9001"


def test_the_module_is_told_its_model_by_a_flag():
    planned = plan(server(managed={"command": MODULE}))
    assert planned.arguments == (*MODULE, "--model", "org/small", *ADDRESS, *SHARE)
    assert planned.command.model == "org/small"


def test_a_unix_socket_takes_the_place_of_host_and_port():
    planned = plan(server(url="unix:///run/vllm.sock"))
    assert planned.arguments[3:] == ("--uds", "/run/vllm.sock", *SHARE)
    assert (planned.url, planned.command.uds) == ("unix:///run/vllm.sock", "/run/vllm.sock")


def test_a_root_path_in_the_url_is_given():
    url = parse_server_url("http://127.0.0.1:8000/llama")
    planned = plan(server().model_copy(update={"url": url}))
    assert planned.arguments[3:] == (*ADDRESS, "--root-path", "/llama", *SHARE)


def test_the_model_that_an_operator_chose_comes_first():
    planned = plan_launch(server(), "org/other", {})
    assert (planned.model, planned.arguments[2]) == ("org/other", "org/other")


def test_a_server_without_a_model_is_not_started():
    with pytest.raises(StartError, match="set model") as caught:
        plan(server().model_copy(update={"model": None}))
    assert caught.value.reason is Reason.BAD_ARGUMENTS


def test_a_wrapper_before_vllm_changes_nothing_of_what_the_line_says():
    command = ["numactl", "-N0", "vllm", "serve"]
    planned = plan(server(url="http://127.0.0.1:9001", managed={"command": command}))
    assert planned.arguments[:5] == (*command, "org/small")
    assert (planned.command.model, planned.command.port) == ("org/small", 9001)


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (("--port", "9"), "--port"),
        (("--port=9",), "--port"),
        (("--por", "9"), "--port"),
        (("--host", "::"), "--host"),
        (("-tp", "8"), "--tensor-parallel-size"),
        (("-tp=8",), "--tensor-parallel-size"),
        (("--tensor_parallel_size=8",), "--tensor-parallel-size"),
        (("--enforce-eager", "-pp", "8"), "--pipeline-parallel-size"),
        (("--served-model-name", "a", "b"), "--served-model-name"),
        (("--gpu-memory-utilization", "0.5"), "--gpu-memory-utilization"),
        (("--device-memory-utilization=0.5",), "--gpu-memory-utilization"),
    ],
)
def test_what_the_arguments_give_is_not_given_twice(args, flag):
    keys = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "served_model_name": "small"}
    arguments = plan(with_args(*args, **keys)).arguments
    assert flag not in arguments[: -len(args)]
    assert flag in plan(server(managed=keys)).arguments


def test_what_the_arguments_say_is_what_the_plan_says():
    planned = plan(with_args("--gpu-memory-utilization=0.25", "-tp", "4", tensor_parallel_size=2))
    assert (planned.gpu_memory_utilization, planned.gpus) == (0.25, 4)
    assert plan(with_args("--device-memory-utilization", "0.3")).gpu_memory_utilization == 0.3
    # vLLM will refuse these, and say so.
    planned = plan(with_args("--gpu-memory-utilization=most", "-tp", "all"))
    assert (planned.gpu_memory_utilization, planned.gpus) == (0.9, 1)


@pytest.mark.parametrize(
    ("args", "gpus"),
    [
        (("--data-parallel-size", "3"), 6),
        (("-dp", "8", "-dpl", "2"), 4),
        (("--distributed-executor-backend", "ray"), 1),
        (("-dp", "3", "--data-parallel-backend", "ray"), 1),
        (("--nnodes", "2"), 1),
        (("--nnodes", "1"), 2),
        (("--headless", "-dpl", "0"), 0),
    ],
)
def test_how_many_gpus_this_host_needs_at_least(args, gpus):
    assert plan(server(managed={"args": args, "tensor_parallel_size": 2})).gpus == gpus


def test_the_file_of_config_is_read_and_overruled(tmp_path):
    file = tmp_path / "vllm.yaml"
    file.write_text("port: 7\nmodel: org/none\ndata-parallel-size: 2\nroot_path: /a\n")
    command = plan(server(managed={"args": ["--config", str(file)]})).command
    assert (command.port, command.model) == (8000, "org/small")
    assert (command.engines, command.root_path) == (2, "/a")


def test_a_file_of_config_that_cannot_be_read_is_told_of(tmp_path, caplog):
    configured = server(managed={"args": ["--config", str(tmp_path / "none.yaml")]})
    with caplog.at_level(logging.WARNING):
        planned = plan(configured)
    assert "was not read" in caplog.text
    assert planned.command.port == 8000


def test_the_agents_environment_goes_on_without_what_is_its_own():
    passed = {"PATH": "/usr/bin", "HF_TOKEN": SECRET, "HF_HOME": "/hf", "VLLM_CACHE_ROOT": "/c"}
    own = {
        "VLLM_PORT": "tcp://10.0.0.1:80",
        "VLLM_MODEL": "org/small",
        "VLLM_AGENT_STATE_DIR": "/var/lib/vllm-agent",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "INVOCATION_ID": "0",
        "JOURNAL_STREAM": "8:1",
        "STATE_DIRECTORY": "/var/lib/vllm-agent",
        "SYSTEMD_EXEC_PID": "1",
        "FROZENLIST_NO_EXTENSIONS": "1",
        "PWD": "/opt",
    }
    environ = dict(plan_launch(server(), None, passed | own).environ)
    assert environ.pop(MARKER).startswith("llama/")
    assert environ == passed | {"PYTHONUNBUFFERED": "1"}


def test_the_configured_environment_has_the_last_word_but_for_port_and_marker():
    env = {"HF_TOKEN": "other", "PYTHONUNBUFFERED": "", "HF_HUB_OFFLINE": "0", MARKER: "mine"}
    configured = server(managed={"env": env, "airgapped": True})
    unchecked = configured.managed.model_copy(update={"env": {**env, "VLLM_PORT": "9"}})
    planned = plan(configured.model_copy(update={"managed": unchecked}), HF_TOKEN=SECRET)
    assert planned.environ == env | {MARKER: f"llama/{planned.launch_id}"}


def test_an_airgapped_server_asks_no_hub():
    assert plan(server(managed={"airgapped": True})).environ["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in plan(server()).environ


def test_every_launch_has_a_mark_of_its_own():
    ids = {plan(server()).launch_id for _ in range(8)}
    assert len(ids) == 8
    assert all(len(launch_id) == 16 and int(launch_id, 16) >= 0 for launch_id in ids)


def test_a_server_that_runs_as_a_user_has_its_home():
    entry = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.geteuid())
    session = {"XDG_RUNTIME_DIR": "/run/user/0", "MAIL": "/m", "HOME": "/h", "SHELL": "/bin/zsh"}
    environ = plan(server(managed={"user": entry.pw_name}), **session).environ
    assert (environ["HOME"], environ["SHELL"]) == (entry.pw_dir, entry.pw_shell or "/bin/sh")
    assert (environ["USER"], environ["LOGNAME"]) == (entry.pw_name, entry.pw_name)
    assert "MAIL" not in environ
    assert "XDG_RUNTIME_DIR" not in environ


def test_a_server_that_runs_as_the_agent_keeps_its_session():
    session = {"XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/h"}
    assert plan(server(), **session).environ.items() >= session.items()
    environ = plan(server(managed={"user": OWN_NAME}), **session).environ
    assert environ["XDG_RUNTIME_DIR"] == "/run/user/1"
    assert environ["HOME"] == pwd.getpwnam(OWN_NAME).pw_dir


def test_a_user_that_is_not_there_is_for_others_to_refuse():
    assert plan(server(managed={"user": "no-such-user"}), HOME="/h").environ["HOME"] == "/h"


def test_the_api_key_is_in_the_environment_and_nowhere_else(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    planned = plan(server(api_key_file=str(file)), HF_TOKEN="hf_" + SECRET)
    assert planned.environ["VLLM_API_KEY"] == SECRET
    assert not any(SECRET in argument for argument in planned.arguments)
    assert SECRET not in repr(planned)


def test_without_its_api_key_a_server_would_serve_everybody(tmp_path):
    file = tmp_path / "key"
    file.write_text(SECRET)
    configured = server(api_key_file=str(file))
    file.unlink()
    with pytest.raises(StartError, match="api_key_file: no such file") as caught:
        plan(configured)
    assert caught.value.reason is Reason.BAD_ARGUMENTS


FLAGS = ["--port", "-tp", "--port=1", "-tp2", "--config", "--", "-", "--served-model-name", "-O3"]


@given(
    st.lists(st.sampled_from(FLAGS) | st.text(max_size=8).filter(lambda t: "\0" not in t)),
    st.booleans(),
)
def test_whatever_the_arguments_are_they_come_last_as_they_are(args, is_module):
    command = {"command": MODULE} if is_module else {}
    # Files of configuration are not what this is about.
    args = [arg for arg in args if arg != "--config"]
    planned = plan(with_args(*args, **command))
    assert planned.arguments[len(planned.arguments) - len(args) :] == tuple(args)
    head = planned.arguments[: len(planned.arguments) - len(args)]
    written = read_flags(args, {"port"}).values
    assert ("--port" in head) is ("port" not in written)
