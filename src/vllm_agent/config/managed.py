"""The section `managed`: how the agent starts and stops a server of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, StrictStr

from vllm_agent.config.problem import quoted, shown
from vllm_agent.config.values import Duration, Section, between, fail
from vllm_agent.config.variables import Variables

DEFAULT_COMMAND: Final = ("vllm", "serve")

MAX_COMMAND_WORDS: Final = 16
"""Of `command`: an interpreter with its options and a wrapper or two are a handful."""

MAX_ARGUMENTS: Final = 512
"""Of `args`: the longest lines seen have about 100, and of one with more than 1,024 words the
agent does not read the rest."""

MAX_ARGUMENTS_BYTES: Final = 64 * 1024
"""Of `args` as a whole. One argument of Linux has 128 KiB at most (execve(2), MAX_ARG_STRLEN)."""

MAX_VARIABLES: Final = 256
"""Of `env`: vLLM has about 200 variables of its own."""

MAX_VARIABLES_BYTES: Final = 64 * 1024
"""Of `env` as a whole, for the same reason as of `args`."""

MAX_TEXT_LENGTH: Final = 256
"""Of a served name, and of a user (LOGIN_NAME_MAX of Linux)."""

MIN_STOP_SECONDS: Final = 1.0
"""Of `stop_timeout`: an idle vLLM takes 0.5 s to end, one with streams 5 s."""

MAX_STOP_SECONDS: Final = 600.0
"""Of `stop_timeout`: the longest answers stream for minutes; nobody waits longer for a stop."""

MAX_PARALLEL: Final = 1024
"""Of a parallel size: more GPUs than one host has; a larger number is a mistake."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PERCENT: Final = range(2, 101)
_NO_COMMAND: Final = "must be a list of words, which no shell reads: write command: [vllm, serve]"
_URL: Final = "is what the server's url says: write url: http://127.0.0.1:8000, or unix:///path"
_SEEN: Final = "would be seen by every user of the host (ps): write"
_TLS: Final = "does not go with mode: managed: the agent asks it over plain HTTP on this host"

REFUSED_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--model": "is what the server's model says: write model: org/name beside name",
        "--host": _URL,
        "--port": _URL,
        "--uds": _URL,
        "--root-path": "is what the server's url says: write url: http://127.0.0.1:8000/path",
        "--served-model-name": "is a key of its own: write served_model_name: NAME",
        "--gpu-memory-utilization": "is a key of its own: write gpu_memory_utilization: 0.9",
        "--device-memory-utilization": "is a key of its own: write gpu_memory_utilization: 0.9",
        "--tensor-parallel-size": "is a key of its own: write tensor_parallel_size: 2",
        "-tp": "is a key of its own: write tensor_parallel_size: 2",
        "--pipeline-parallel-size": "is a key of its own: write pipeline_parallel_size: 2",
        "-pp": "is a key of its own: write pipeline_parallel_size: 2",
        "--api-key": f"{_SEEN} api_key_file: /path beside name, the file with the key",
        "--hf-token": f"{_SEEN} env: {{HF_TOKEN_PATH: /path}}, the file with the token",
        "--ssl-certfile": _TLS,
        "--ssl-keyfile": _TLS,
    }
)
"""Flags of vLLM that `args` may not have, and what to do instead."""


def _command(value: Any) -> Any:
    # What is written here is not repeated: it may hold a key.
    if not isinstance(value, list | tuple):
        fail(_NO_COMMAND)
    return value


def _args(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        fail("must be a list of words, which no shell reads: write args: [--max-model-len, '8192']")
    return value


def _env(value: Any) -> Any:
    if not isinstance(value, Mapping):
        fail("must be a mapping of names to text: write env: {HF_HOME: /srv/models}")
    return value


def _words(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words:
        fail("must have at least one word: write command: [vllm, serve], or leave it out")
    if len(words) > MAX_COMMAND_WORDS:
        fail(f"must have at most {MAX_COMMAND_WORDS} words, got {len(words)}: write args for more")
    first = words[0]
    if len(words) == 1 and len(first.split()) > 1:
        fail(_NO_COMMAND)
    if not first or first.startswith("-"):
        fail(f"must begin with a program, got {quoted(first)}: write command: [vllm, serve]")
    return words


def _argument(text: str) -> str:
    # How execve(2) ends an argument; line ends and tabs are fine, as in a JSON value.
    if "\0" in text:
        fail("must not contain a zero byte")
    return text


def _flag(text: str) -> str:
    name = text.partition("=")[0].replace("_", "-")
    if not name.startswith("-") or not name.strip("-"):
        return text
    for refused, why in REFUSED_FLAGS.items():
        # argparse takes any beginning of a name that is no other flag's too.
        if refused.startswith(name):
            fail(f"{refused} {why}")
    return text


def _arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if arguments and not arguments[0].startswith("-"):
        fail("must begin with a flag: a model is written as the server's model, beside name")
    if len(arguments) > MAX_ARGUMENTS:
        fail(f"must have at most {MAX_ARGUMENTS} entries, got {len(arguments)}")
    size = sum(len(argument.encode()) for argument in arguments)
    if size > MAX_ARGUMENTS_BYTES:
        fail(
            f"must be at most {MAX_ARGUMENTS_BYTES // 1024} KiB long: write a file for "
            "args: [--config, FILE]"
        )
    return arguments


def _variable_name(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        fail("is no name of a variable: letters, digits and _ only, the first no digit")
    if name == "VLLM_PORT":
        fail(
            "must not be set: it moves the ports that vLLM uses inside, not the one it serves on, "
            "which is in the server's url"
        )
    return name


def _variable_value(value: Any) -> str:
    # No value is ever repeated: it may be a secret.
    if value is None:
        fail("must be text: write '' for an empty value, or remove it")
    if not isinstance(value, str):
        fail("must be text: put it in quotes")
    return _argument(value)


def _variables(values: Mapping[str, str]) -> Variables:
    if len(values) > MAX_VARIABLES:
        fail(f"must have at most {MAX_VARIABLES} variables, got {len(values)}")
    try:
        size = sum(len(name) + len(value.encode()) for name, value in values.items())
    except UnicodeEncodeError:
        fail("must have values that are valid Unicode")
    if size > MAX_VARIABLES_BYTES:
        fail(f"must be at most {MAX_VARIABLES_BYTES // 1024} KiB long")
    return Variables(values)


def _served_name(name: str) -> str:
    if not (0 < len(name) <= MAX_TEXT_LENGTH and name.isprintable()) or name.startswith("-"):
        fail(
            f"must be 1 to {MAX_TEXT_LENGTH} printable characters, the first no '-', got "
            f"{quoted(name)}"
        )
    return name


def _user(name: str) -> str:
    is_name = 0 < len(name) <= MAX_TEXT_LENGTH and name.isprintable()
    if not is_name or name.startswith("-") or any(part in name for part in " :/"):
        fail(f"must be the name of a user such as vllm, got {quoted(name)}")
    return name


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail(f"must be a number above 0 and at most 1, got {shown(value)}")
    if not 0 < value <= 1:
        advice = f": for {value} % write {value / 100:g}" if value in _PERCENT else ""
        fail(f"must be above 0 and at most 1, got {shown(value)}{advice}")
    return float(value)


_Size = Annotated[int, Field(strict=True, ge=1, le=MAX_PARALLEL)]


class ManagedConfig(Section):
    """How a server is started and stopped by the agent."""

    command: Annotated[
        tuple[Annotated[StrictStr, AfterValidator(_argument)], ...],
        BeforeValidator(_command),
        AfterValidator(_words),
    ] = Field(
        DEFAULT_COMMAND,
        description=(
            f"What starts a vLLM, as a list of at most {MAX_COMMAND_WORDS} words; no shell reads "
            "it. Found in the `PATH` of the agent, or of `env`. Or `[/opt/venv/bin/python, -m, "
            "vllm.entrypoints.openai.api_server]`."
        ),
    )
    args: Annotated[
        tuple[
            Annotated[StrictStr, AfterValidator(_argument), AfterValidator(_flag)],
            ...,
        ],
        BeforeValidator(_args),
        AfterValidator(_arguments),
    ] = Field(
        (),
        description=(
            f"More arguments, at most {MAX_ARGUMENTS}, such as `[--max-model-len, '8192']`. What "
            "has a key here or is said by `url` and `model` is refused. Every user of the host can "
            "read them: secrets go to `env`. Relative paths begin at `/`."
        ),
    )
    env: Annotated[
        Mapping[
            Annotated[StrictStr, AfterValidator(_variable_name)],
            Annotated[str, BeforeValidator(_variable_value)],
        ],
        BeforeValidator(_env),
        AfterValidator(_variables),
        PlainSerializer(repr, return_type=str),
    ] = Field(
        default_factory=Variables,
        description=(
            f"Variables, at most {MAX_VARIABLES}, besides those that the agent itself has, "
            "`HF_TOKEN` among them. Their values are never shown. `VLLM_PORT` is never handed on."
        ),
    )
    served_model_name: Annotated[StrictStr, AfterValidator(_served_name)] | None = Field(
        None, description="Name that clients ask for. Default: the model."
    )
    gpu_memory_utilization: Annotated[float, BeforeValidator(_share)] = Field(
        0.9,
        description=(
            "Share of the memory of each GPU that the server takes, above 0 and at most 1. It is "
            "not started before so much is free."
        ),
    )
    tensor_parallel_size: _Size = Field(
        1, description=f"GPUs that hold one layer together, 1 to {MAX_PARALLEL:,}."
    )
    pipeline_parallel_size: _Size = Field(
        1, description=f"Groups of GPUs that hold the layers in turn, 1 to {MAX_PARALLEL:,}."
    )
    stop_timeout_seconds: Annotated[Duration, between(MIN_STOP_SECONDS, MAX_STOP_SECONDS)] = Field(
        30.0,
        alias="stop_timeout",
        description="Time from SIGTERM to SIGKILL for what is left of it, 1s to 10m.",
    )
    stop_on_exit: bool = Field(
        default=False,
        strict=True,
        description=(
            "Stop it when the agent ends. `false`: it goes on serving, and the next agent takes "
            "it over."
        ),
    )
    airgapped: bool = Field(
        default=False,
        strict=True,
        description=(
            "It never asks the Hugging Face Hub (`HF_HUB_OFFLINE=1`), and is started only if its "
            "model is complete on this host."
        ),
    )
    user: Annotated[StrictStr, AfterValidator(_user)] | None = Field(
        None,
        description=(
            "User to run it as, where the agent runs as root, which then requires it: `root` must "
            "be asked for."
        ),
    )
