"""What a managed server is to be started with: its command line and its environment."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.config.files import read_api_key
from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.launching.user import find_user
from vllm_agent.host.proc import Proc
from vllm_agent.host.vllm_argv import parse_command
from vllm_agent.host.vllm_config_file import read_config_file
from vllm_agent.host.vllm_grammar import read_flags
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllm_agent.config.model import ServerConfig
    from vllm_agent.host.vllm_grammar import Flags
    from vllm_agent.observations import VllmCommand

MARKER: Final = "LAUNCHED_BY_VLLM_AGENT"
"""The variable that every process of a launch has: `<server>/<launch id>`. Not VLLM_…: vLLM warns
of those that it does not know."""

WORKING_FOLDER: Final = "/"
"""Where it runs: no mount is held, and no folder of the agent. Relative paths begin there."""

_LAUNCH_ID_BYTES: Final = 8
_SERVE: Final = "serve"
_MODULE_LINE: Final = ("python", "-m", "vllm.entrypoints.openai.api_server")
_SERVE_LINE: Final = ("vllm", _SERVE)
_WANTED: Final = frozenset(
    {
        "data-parallel-backend",
        "device-memory-utilization",
        "distributed-executor-backend",
        "gpu-memory-utilization",
        "host",
        "nnodes",
        "pipeline-parallel-size",
        "port",
        "root-path",
        "served-model-name",
        "tensor-parallel-size",
        "uds",
    }
)
_ALIASES: Final = MappingProxyType({"device-memory-utilization": "gpu-memory-utilization"})

# Never the HTTP port: vLLM takes it for the ports between its own processes. VLLM_MODEL is ours.
_NEVER: Final = frozenset({"VLLM_PORT"})
_OF_AGENT: Final = _NEVER | {
    "VLLM_MODEL",
    # Set by `vllm-agent run` to save memory; it makes the HTTP client of a server slower.
    "FROZENLIST_NO_EXTENSIONS",
    # Of the folder that the agent was started in.
    "OLDPWD",
    "PWD",
    # What systemd tells a service of itself (systemd.exec(5), sd_notify(3), sd_listen_fds(3)).
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LOGS_DIRECTORY",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "SYSTEMD_EXEC_PID",
}
_OF_AGENT_PREFIXES: Final = ("VLLM_AGENT_", "WATCHDOG_", "LISTEN_")
_OF_SESSION: Final = frozenset(
    {"DBUS_SESSION_BUS_ADDRESS", "MAIL", "XDG_RUNTIME_DIR", "XDG_SESSION_ID"}
)
"""Of the login of the agent's user, of no use to another one."""

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One launch of a managed server, before anything is started.

    `command` is what the arguments say, and `url` where the server is connected to. `gpus` is how
    many it needs at least of this host.
    """

    server: str
    launch_id: str
    model: str
    arguments: tuple[str, ...] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    command: VllmCommand
    url: str
    user: str | None = None
    gpu_memory_utilization: float
    gpus: int = 1
    is_airgapped: bool = False


def plan_launch(
    server: ServerConfig, model: str | None, agent_environ: Mapping[str, str]
) -> LaunchPlan:
    """Lays out a launch with `model`, or the configured one where it is None.

    Whatever `managed.args` gives itself is not given a second time. This reads files and may ask a
    name server: call it in a thread.

    Raises:
        StartError: there is no model, or no API key where one is configured.
    """
    managed = server.managed
    served = server.model if model is None else model
    if served is None:
        raise StartError(Reason.BAD_ARGUMENTS, "no model is configured: set model")
    launch_id = secrets.token_hex(_LAUNCH_ID_BYTES)
    is_serve = managed.command[-1] == _SERVE
    options = (*_options(server), *managed.args)
    rest = (served, *options) if is_serve else ("--model", served, *options)
    command = parse_command((*(_SERVE_LINE if is_serve else _MODULE_LINE), *rest), _read_config)
    flags = read_flags(options, _WANTED)
    return LaunchPlan(
        server=server.name,
        launch_id=launch_id,
        model=served,
        arguments=(*managed.command, *rest),
        environ=MappingProxyType(_environ(server, launch_id, agent_environ)),
        command=command,
        url=str(server.url),
        user=managed.user,
        gpu_memory_utilization=_utilization(flags, managed.gpu_memory_utilization),
        gpus=_gpus(flags, command),
        is_airgapped=managed.airgapped,
    )


def _options(server: ServerConfig) -> Iterator[str]:
    """The flags that follow from the configuration, less those that its `args` has."""
    managed = server.managed
    written = read_flags(managed.args, _WANTED).values
    given = {_ALIASES.get(name, name) for name in written}
    for name, value in _configured(server):
        if name not in given and value:
            yield f"--{name}"
            yield value


def _configured(server: ServerConfig) -> Iterator[tuple[str, str]]:
    managed, url = server.managed, server.url
    if url is not None and url.socket_path is not None:
        yield "uds", str(url.socket_path)
    elif url is not None:
        yield "host", url.host or ""
        yield "port", str(url.port)
    if url is not None:
        yield "root-path", url.root_path
    yield "served-model-name", managed.served_model_name or ""
    yield "gpu-memory-utilization", str(managed.gpu_memory_utilization)
    # Not what is vLLM's default: it would overrule the file of a `--config`.
    yield "tensor-parallel-size", _unless_one(managed.tensor_parallel_size)
    yield "pipeline-parallel-size", _unless_one(managed.pipeline_parallel_size)


def _unless_one(size: int) -> str:
    return "" if size == 1 else str(size)


def _read_config(path: str) -> Mapping[str, object]:
    """The file of `--config`, which the operator named: it is read with the agent's rights."""
    try:
        return read_config_file(Proc(), os.getpid(), os.path.join(WORKING_FOLDER, path))
    except UnreadableFileError as problem:
        _LOGGER.warning(
            "the file of --config in managed.args was not read", extra={"detail": str(problem)}
        )
        return {}


def _environ(
    server: ServerConfig, launch_id: str, agent_environ: Mapping[str, str]
) -> dict[str, str]:
    managed = server.managed
    environ = {
        name: value
        for name, value in agent_environ.items()
        if name not in _OF_AGENT and not name.startswith(_OF_AGENT_PREFIXES)
    }
    # Its log is a file: what it says last must not stay in a buffer.
    environ.setdefault("PYTHONUNBUFFERED", "1")
    user = None if managed.user is None else find_user(managed.user)
    if user is not None:
        if user.uid != os.geteuid():
            environ = {name: value for name, value in environ.items() if name not in _OF_SESSION}
        environ |= user.environ
    if managed.airgapped:
        environ["HF_HUB_OFFLINE"] = "1"
    if server.api_key_file is not None:
        environ["VLLM_API_KEY"] = _api_key(server.api_key_file)
    environ |= managed.env
    for name in _NEVER:
        environ.pop(name, None)
    environ[MARKER] = f"{server.name}/{launch_id}"
    return environ


def _api_key(path: Path) -> str:
    try:
        return read_api_key(path)
    except ValueError as error:
        # Without it the server would serve everybody.
        raise StartError(Reason.BAD_ARGUMENTS, f"api_key_file: {error}") from None


def _utilization(flags: Flags, configured: float) -> float:
    try:
        return float(
            flags.value("gpu-memory-utilization")
            or flags.value("device-memory-utilization")
            or configured
        )
    except ValueError:
        return configured


def _gpus(flags: Flags, command: VllmCommand) -> int:
    is_spread = flags.value("nnodes") not in {None, "1"} or "ray" in {
        flags.value("data-parallel-backend"),
        flags.value("distributed-executor-backend"),
    }
    if is_spread:
        return 1
    engines = 1 if command.engines is None else command.engines
    return engines * _size(flags, "tensor-parallel-size") * _size(flags, "pipeline-parallel-size")


def _size(flags: Flags, name: str) -> int:
    try:
        return max(1, int(flags.value(name) or 1))
    except ValueError:
        return 1
