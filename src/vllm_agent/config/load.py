"""Loads a configuration file: all of it, or a `ConfigError` with everything that is wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_agent.config.document import Document, parse_document
from vllm_agent.config.messages import FOLLOWING_ERROR, message
from vllm_agent.config.model import DEFAULT_MANAGED_URL, Config, ConfigFile, MatchConfig
from vllm_agent.config.overrides import override
from vllm_agent.config.problem import ConfigError, Problem, key_path, quoted
from vllm_agent.config.url import parse_server_url
from vllm_agent.config.values import LoadContext
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllm_agent.config.url import ServerUrl

# 2,000 external servers with every key written come to about 700 KiB.
MAX_FILE_BYTES = 2**20


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Load the configuration from a file; None gives the configuration without servers.

    `environ` changes what `overrides` says. Takes about a millisecond per four servers.

    Raises:
        ConfigError: the file cannot be read or used, with every problem found in it.
    """
    if path is None:
        return Config()
    file = str(path)
    document = parse_document(_read_text(path), file)
    # An empty file, or one with comments only, is a configuration too.
    overridden = override({} if document.value is None else document.value, environ)
    value = overridden.value
    problems = [*document.problems, *overridden.problems]
    problems += (
        Problem(file, document.line_of(where), key_path(where), text)
        for where, text in _duplicates(value)
    )
    try:
        context = LoadContext(path.absolute().parent)
        content = ConfigFile.model_validate(value, context=context, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += _problems(error, document, file)
    if problems:
        problems.sort(key=lambda problem: problem.line or 0)
        raise ConfigError(tuple(problems)) from None
    return Config(**dict(content), source=path, warnings=overridden.warnings)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError((Problem(str(path), None, "", _read_message(error)),)) from None
    if len(content) > MAX_FILE_BYTES:
        text = f"is larger than {MAX_FILE_BYTES // 2**20} MiB: this is not a configuration file"
        raise ConfigError((Problem(str(path), None, "", text),))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = "is not UTF-8 text: save the file as UTF-8"
        raise ConfigError((Problem(str(path), line, "", text),)) from None


def _read_message(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "no such file: correct --config.file"
        case IsADirectoryError():
            return "is a directory: name the file in it"
        case PermissionError():
            return "cannot be read: let the user of the agent read it"
        case OSError():
            return f"cannot be read: {error.strerror}"
        case _:
            return "is not the name of a file"


def _problems(error: ValidationError, document: Document, file: str) -> list[Problem]:
    problems = []
    for details in error.errors(include_url=False):
        if details["type"] != FOLLOWING_ERROR:
            where = details["loc"]
            # Said of a key itself, behind its name.
            where = where[:-1] if where[-1:] == ("[key]",) else where
            text = message(details)
            problems.append(Problem(file, document.line_of(where), key_path(where), text))
    return problems


def _duplicates(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Compare servers with each other, also where one of them has other problems."""
    servers = value.get("servers") if isinstance(value, dict) else None
    names: dict[str, int] = {}
    addresses: dict[ServerUrl, int] = {}
    processes: dict[object, int] = {}
    log_files: dict[str, int] = {}
    ports: dict[int, int] = {}
    for index, server in enumerate(servers if isinstance(servers, list) else ()):
        if not isinstance(server, dict):
            continue
        name = server.get("name")
        if isinstance(name, str) and names.setdefault(name, index) != index:
            text = f"{quoted(name)} is the name of servers[{names[name]}] too: names must differ"
            yield ("servers", index, "name"), text
        log_file = server.get("log_file")
        if isinstance(log_file, str):
            first = log_files.setdefault(os.path.normpath(log_file), index)
            if first != index:
                text = f"servers[{first}] writes to the same file: give each server its own"
                yield ("servers", index, "log_file"), text
        url = _url(server)
        is_managed = _is_managed(server)
        if url is not None and url.port is not None and is_managed:
            first = ports.setdefault(url.port, index)
            if first != index:
                text = f"servers[{first}] is started on port {url.port} too: write another in url"
                yield ("servers", index, "url"), text
                continue
        if url is not None and addresses.setdefault(url, index) != index:
            text = f"servers[{addresses[url]}] has the same address: name each server once"
            yield ("servers", index, "url"), text
            continue
        key, process = _process(server, url)
        if process is not None and processes.setdefault(process, index) != index:
            text = f"servers[{processes[process]}] is the same process of this host"
            advice = (
                "give it a port of its own" if is_managed else "write a match that tells them apart"
            )
            yield ("servers", index, key), f"{text}: {advice}"


def _is_managed(server: Mapping[str, Any]) -> bool:
    return bool(server.get("mode") == LifecycleMode.MANAGED)


def _url(server: Mapping[str, Any]) -> ServerUrl | None:
    url = server.get("url")
    if url is None and _is_managed(server):
        url = DEFAULT_MANAGED_URL
    try:
        return parse_server_url(url) if isinstance(url, str) else None
    except ValueError:
        return None


def _process(server: Mapping[str, Any], url: ServerUrl | None) -> tuple[str, object]:
    """Give what tells a local server's process, and the key that says so; None if nothing."""
    if server.get("mode") not in (None, LifecycleMode.MONITORED, LifecycleMode.MANAGED):
        return "mode", None
    if server.get("match") is None:
        return "url", MatchConfig(port=url.port) if url and url.port else url
    try:
        return "match", MatchConfig.model_validate(server["match"], by_alias=True, by_name=False)
    except ValidationError:
        return "match", None
