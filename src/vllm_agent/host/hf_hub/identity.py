"""Tells what the model of a command line is: a repository of the Hub, a folder or a file."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote

from vllm_agent.config.model_id import divide_model, why_no_repo_id
from vllm_agent.host.contained_file import UnreadableFileError

if TYPE_CHECKING:
    from vllm_agent.host.contained_tree import ContainedTree

_PAGES: Final = "https://huggingface.co/"
_GGUF: Final = ".gguf"
_PATH_STARTS: Final = ("/", "./", "../", "~")
_PATHS: Final = frozenset({".", ".."})


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of the Hub; `part` is the GGUF file or quantization of it, empty for all."""

    id: str
    part: str = ""

    @property
    def page_url(self) -> str:
        """Where people read about it."""
        return _PAGES + quote(self.id)


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on the server's own disk; `path` as it was given."""

    path: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on the server's own disk, of which GGUF is the only kind; `path` as it was given."""

    path: str


@dataclass(frozen=True, slots=True)
class Unidentified:
    """None of these; `why` is a clause for people."""

    why: str


Model: TypeAlias = HubRepo | LocalFolder | LocalFile | Unidentified


def identify(model: str | None, files: ContainedTree | None = None) -> Model:
    """What vLLM takes `model` for: what is on its disk comes before the Hub.

    `files` are those that its process sees; without them a path is believed.
    """
    why_not = _why_nothing(model)
    if model is None or why_not:
        return Unidentified(why_not)
    local = None if files is None else _local(model, files)
    if local is not None:
        return local
    if not model.startswith(_PATH_STARTS) and model not in _PATHS:
        return _on_the_hub(model)
    if files is not None:
        return Unidentified("there is no such folder or file on the server's disk")
    return LocalFile(model) if model.endswith(_GGUF) else LocalFolder(model)


def _why_nothing(model: str | None) -> str:
    if not model:
        return "no model is given, and vLLM takes its default"
    if model.startswith("-"):
        return "no model begins with '-'"
    return "it is the address of an object store, not of the Hub" if "://" in model else ""


def _on_the_hub(model: str) -> Model:
    found = divide_model(model)
    return Unidentified(why_no_repo_id(model)) if found is None else HubRepo(*found)


def _local(model: str, files: ContainedTree) -> LocalFolder | LocalFile | None:
    try:
        mode = files.status(model).st_mode
    except UnreadableFileError:
        return None
    if stat.S_ISDIR(mode):
        return LocalFolder(model)
    return LocalFile(model) if stat.S_ISREG(mode) else None
