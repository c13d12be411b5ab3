"""Recognises the processes of vLLM by their command lines and titles, and reads what they say.

Written after the sources of vLLM 0.11, 0.15, 0.22 and 0.32. Nothing here touches the host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.host.secrets import Secrets
from vllm_agent.host.vllm_flags import SWITCHES
from vllm_agent.host.vllm_grammar import Flags, read_flags
from vllm_agent.observations import ComponentRole, VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MAX_ARGUMENTS: Final = 1024
"""Arguments read of one line, and tokens of one file: the longest lines seen have about 100."""

MAX_VALUE_LENGTH: Final = 1024
"""Of a model or name: it may be a path. It is compared with what the server lists, so a longer one
is left out rather than cut."""

MAX_SERVED_NAMES: Final = 16
"""Names of one model; more than two are rare."""

MAX_SOCKET_PATH_LENGTH: Final = 107
"""Of a unix socket: sun_path has 108 bytes with the final zero (unix(7))."""

MAX_COUNT: Final = 4096
"""Engines or API servers of one node; more is a mistake of the line."""

MAX_TITLE_LENGTH: Final = 256
"""Of a title; the longest of vLLM has about 60 characters with the default prefix."""

DEFAULT_PORT: Final = 8000

_HIGHEST_PORT: Final = 65535
_SCRIPTS: Final = frozenset({"vllm", ".vllm-wrapped"})  # nixpkgs renames what it wraps
_INTERPRETERS: Final = ("python", "pypy")
_CLI_MODULE: Final = "vllm.entrypoints.cli.main"
_SCRIPT_PATHS: Final = MappingProxyType(
    {
        "vllm/entrypoints/openai/api_server.py": "vllm.entrypoints.openai.api_server",
        "vllm/entrypoints/cli/main.py": _CLI_MODULE,
    }
)
_NOT_SERVING: Final = frozenset({"--grpc", "--help", "-h"})
_ALL_ADDRESSES: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - read, never bound
_YAML_EXTENSIONS: Final = frozenset({"yaml", "yml"})
# YAML 1.1, which vLLM reads, has more words for a switch than the YAML 1.2 of our own reader.
_YAML_WORDS: Final = MappingProxyType({"yes": True, "on": True, "no": False, "off": False})
_WANTED: Final = frozenset(
    {
        "api-server-count",
        "compilation-config",
        "data-parallel-backend",
        "data-parallel-rank",
        "data-parallel-size",
        "data-parallel-size-local",
        "download-dir",
        "host",
        "load-format",
        "model",
        "nnodes",
        "optimization-level",
        "port",
        "revision",
        "root-path",
        "served-model-name",
        "ssl-certfile",
        "ssl-keyfile",
        "uds",
    }
)
# The prefix is VLLM_PROCESS_NAME_PREFIX and can be anything; Ray titles its actors alike.
_MAX_NAME_BYTES: Final = 15  # TASK_COMM_LEN of include/linux/sched.h, without its NUL
_TITLE: Final = re.compile(
    r"(?!ray::).*::(EngineCore|Worker|APIServer)((?:_[A-Z]{0,4}[0-9]{1,5}){0,8})", re.DOTALL
)
_ROLES: Final = MappingProxyType(
    {
        "EngineCore": ComponentRole.ENGINE_CORE,
        "Worker": ComponentRole.WORKER,
        "APIServer": ComponentRole.API_SERVER,
    }
)
_RUST_FRONTEND: Final = ("vllm-rs", "frontend")


class _Kind(Enum):
    SERVE = auto()
    MODULE = auto()
    RENDER = auto()
    SNAPSHOT = auto()


_MODULES: Final = MappingProxyType(
    {
        "vllm.entrypoints.openai.api_server": _Kind.MODULE,
        "vllm.entrypoints.launchers.api_server.entry": _Kind.MODULE,
        # `vllm snapshot restore` itself ends once this one, restored, serves.
        "vllm.snapshot.server": _Kind.SNAPSHOT,
    }
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """How a vLLM was started, and the arguments that follow."""

    kind: _Kind
    tokens: Sequence[str]


def is_main(arguments: Sequence[str]) -> bool:
    """Whether this is the main process of a vLLM with an HTTP API, a headless node or a supervisor.

    `vllm launch render` is one: it has no engine but the same health, model and metrics pages. The
    gRPC server is none: nothing of it can be asked over HTTP. Nor is a command that ends by itself.
    A child has the arguments of its parent between fork and exec, and is taken for one then.
    """
    entry = _entry(arguments)
    if entry is None:
        return False
    tokens = entry.tokens[:MAX_ARGUMENTS]
    return not any(token in _NOT_SERVING or token.startswith("--help=") for token in tokens)


def parse_command(
    arguments: Sequence[str], read_config: Callable[[str], Mapping[str, object]]
) -> VllmCommand:
    """What the command line of a main process says; what vLLM would refuse counts as not said.

    `read_config` gives the content of the file of `--config`, its path as the process wrote it, and
    an empty mapping where it cannot; what it raises goes through. Names and paths are without the
    secrets of the line and what looks like one, all but the socket, which is connected to. The port
    of a restored snapshot is in no argument: it reads as the one with which the snapshot was made.
    """
    entry = _entry(arguments)
    if entry is None:
        return VllmCommand()
    tokens = list(entry.tokens[:MAX_ARGUMENTS])
    if entry.kind is _Kind.SERVE:
        tokens = _with_model_first(tokens)
    config_file = None
    if entry.kind is not _Kind.RENDER and "--config" in tokens[:-1]:
        config_file, tokens = _with_config(tokens, read_config)
    secrets = Secrets.of(tokens)
    flags = read_flags(tokens, _WANTED)

    def shown(value: str | None) -> str | None:
        if value is None or len(value) > MAX_VALUE_LENGTH:
            return None
        return _clean(secrets.redact_value(value))

    is_supervisor = entry.kind is _Kind.SERVE and flags.is_on(
        "data-parallel-multi-port-external-lb"
    )
    is_headless = entry.kind is _Kind.SERVE and (
        flags.is_on("headless") or _count(flags, "api-server-count") == 0
    )
    engines = 0 if entry.kind is _Kind.RENDER else _engines(flags, is_supervisor=is_supervisor)
    api_servers = engines if is_supervisor else _api_servers(entry.kind, flags)
    host, names = flags.value("host"), flags.values.get("served-model-name", ())
    return VllmCommand(
        model=shown(_model(entry.kind, flags)),
        served_names=tuple(islice(filter(None, map(shown, names)), MAX_SERVED_NAMES)),
        host=None if host in _ALL_ADDRESSES else _clean(host),
        port=_number(flags.value("port"), _HIGHEST_PORT) or DEFAULT_PORT,
        uds=_clean(flags.value("uds"), MAX_SOCKET_PATH_LENGTH),
        is_https=bool(flags.value("ssl-keyfile") and flags.value("ssl-certfile")),
        root_path=shown(flags.value("root-path")) or "",
        is_headless=is_headless,
        is_supervisor=is_supervisor,
        engines=engines,
        api_servers=0 if is_headless else api_servers,
        config_file=shown(config_file),
        download_dir=shown(flags.value("download-dir")),
        revision=shown(flags.value("revision")),
        load_format=shown(flags.value("load-format")),
        is_eager=_is_eager(flags),
    )


def role_of(arguments: Sequence[str]) -> tuple[ComponentRole, str] | None:
    """The role and rank that a process of vLLM's tree tells by its title.

    None for the main process, and for what has no role: coordinators and helpers.
    """
    if len(arguments) != 1:
        is_frontend = tuple(arguments[1:2]) == _RUST_FRONTEND[1:] and (
            _base_name(arguments[0]) == _RUST_FRONTEND[0]
        )
        return (ComponentRole.API_SERVER, "") if is_frontend else None
    title = arguments[0]
    if "::" not in title or len(title) > MAX_TITLE_LENGTH:
        return None
    match = _TITLE.fullmatch(title)
    return None if match is None else (_ROLES[match[1]], match[2][1:].lower())


def role_of_name(name: str) -> ComponentRole | None:
    """The role that the name of a process tells (`comm`, 15 bytes), which a zombie still has."""
    _, separator, title = name.partition("::")
    if not separator or not title:
        return None
    is_cut = len(name.encode()) >= _MAX_NAME_BYTES
    for known, role in _ROLES.items():
        if title.startswith(known) or (is_cut and known.startswith(title)):
            return role
    return None


def _entry(arguments: Sequence[str]) -> _Entry | None:
    if len(arguments) <= 1:
        return None
    program = _base_name(arguments[0])
    if program in _SCRIPTS:
        return _cli(arguments[1:])
    if not program.startswith(_INTERPRETERS):
        return None
    return _of_python(arguments)


def _of_python(arguments: Sequence[str]) -> _Entry | None:
    """Skip the interpreter's own options, as python(1) does, up to what it runs."""
    position = 1
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("-"):
            return _of_script(argument, arguments[position:])
        if argument == "-":  # a program on standard input
            return None
        if argument.startswith("--"):
            if argument == "--" and position < len(arguments):
                return _of_script(arguments[position], arguments[position + 1 :])
            position += argument == "--check-hash-based-pycs"
            continue
        taking = re.search("[cmWX]", argument)
        if taking is None:
            continue
        value = argument[taking.end() :]
        if not value:
            value = "".join(arguments[position : position + 1])
            position += 1
        if taking[0] == "m":
            return _of_module(value, arguments[position:])
        if taking[0] == "c":
            return None
    return None


def _of_script(path: str, rest: Sequence[str]) -> _Entry | None:
    if _base_name(path) in _SCRIPTS:
        return _cli(rest)
    for script, module in _SCRIPT_PATHS.items():
        if path == script or path.endswith(f"/{script}"):
            return _of_module(module, rest)
    return None


def _of_module(module: str, rest: Sequence[str]) -> _Entry | None:
    if module == _CLI_MODULE:
        return _cli(rest)
    kind = _MODULES.get(module)
    if kind is _Kind.SNAPSHOT:
        # Its own flags come first; `--` divides them from those of the server.
        rest = rest[list(rest).index("--") + 1 :] if "--" in rest else rest
    return None if kind is None else _Entry(kind, rest)


def _cli(rest: Sequence[str]) -> _Entry | None:
    if rest[:1] and rest[0] == "serve":
        return _Entry(_Kind.SERVE, rest[1:])
    if list(rest[:2]) == ["launch", "render"]:
        return _Entry(_Kind.RENDER, rest[2:])
    return None


def _base_name(path: str) -> str:
    return path[path.rfind("/") + 1 :]


def _with_model_first(tokens: list[str]) -> list[str]:
    """Move the first `--model` to the front as vLLM does, where it counts as the positional."""
    for at, (flag, value) in enumerate(pairwise([*tokens, ""])):
        if flag.startswith("--model=") and len(flag) > len("--model="):
            return [flag.removeprefix("--model="), *tokens[:at], *tokens[at + 1 :]]
        if flag == "--model" and value:
            return [value, *tokens[:at], *tokens[at + 2 :]]
    return tokens


def _with_config(
    tokens: list[str], read_config: Callable[[str], Mapping[str, object]]
) -> tuple[str, list[str]]:
    """Put the file's content where vLLM puts it: behind a model that comes first, before flags."""
    at = tokens.index("--config")
    path = tokens[at + 1]
    behind = 0 if tokens[0].startswith("-") else 1
    tokens = tokens[:at] + tokens[at + 2 :]
    if path.rpartition(".")[2] in _YAML_EXTENSIONS:
        tokens[behind:behind] = islice(_config_tokens(read_config(path)), MAX_ARGUMENTS)
    return path, tokens


def _config_tokens(config: Mapping[str, object]) -> Iterator[str]:
    for key, written in config.items():
        value = written
        if isinstance(written, str) and key.replace("_", "-") in SWITCHES:
            value = _YAML_WORDS.get(written.lower(), written)
        if value is True:
            yield f"--{key}"
        elif isinstance(value, list):
            if value:
                yield f"--{key}"
            yield from map(_config_text, value)
        elif value is not False:  # every switch that matters here is off by default
            yield f"--{key}"
            yield _config_text(value)


def _config_text(value: object) -> str:
    if isinstance(value, str):
        return value
    is_plain = isinstance(value, float | None) or (isinstance(value, int) and abs(value) < 2**64)
    # The rest is JSON for a flag that does not matter here.
    return str(value) if is_plain else "{}"


def _model(kind: _Kind, flags: Flags) -> str | None:
    # The module takes a positional model, and ignores it.
    positional = None if kind is _Kind.MODULE else flags.positional
    return flags.value("model") if positional is None else positional


def _engines(flags: Flags, *, is_supervisor: bool) -> int | None:
    if flags.value("data-parallel-backend") == "ray":
        return None  # actors of Ray, on nodes of its choice
    if _has_external_balancer(flags) and not is_supervisor:
        return 1
    local = _count(flags, "data-parallel-size-local")
    if local is not None:
        return local
    if flags.value("nnodes") not in {None, "1"}:
        return None  # a node may hold several engines, or only workers of one
    return _count(flags, "data-parallel-size", 1)


def _api_servers(kind: _Kind, flags: Flags) -> int | None:
    if kind is not _Kind.SERVE or flags.is_on("enable-elastic-ep"):
        return 1
    if flags.value("api-server-count") is not None:
        return _count(flags, "api-server-count")
    if _has_external_balancer(flags) or _count(flags, "data-parallel-size", 1) == 1:
        return 1
    return None  # one up to 0.11, as many as there are engines since 0.15


def _is_eager(flags: Flags) -> bool:
    # Level 0 is `-O0`, too, which stands for either flag in one version or another.
    levels = ("compilation-config", "optimization-level")
    return flags.is_on("enforce-eager") or any(flags.value(level) == "0" for level in levels)


def _has_external_balancer(flags: Flags) -> bool:
    return flags.is_on("data-parallel-external-lb") or (
        flags.value("data-parallel-rank") is not None
    )


def _count(flags: Flags, name: str, default: int | None = None) -> int | None:
    value = flags.value(name)
    return default if value is None else _number(value, MAX_COUNT)


def _number(text: str | None, at_most: int) -> int | None:
    try:
        number = int(text or "")
    except ValueError:  # also where it has thousands of digits
        return None
    return number if 0 <= number <= at_most else None


def _clean(value: str | None, limit: int = MAX_VALUE_LENGTH) -> str | None:
    """A value that can go to a log, a label and a terminal; None if it is empty or too long."""
    if not value or len(value) > limit:
        return None
    if value.isprintable():
        return value
    return "".join(character if character.isprintable() else "\ufffd" for character in value)
