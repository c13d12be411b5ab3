"""Tells what the model of a command line is: a repository of the Hub, a folder or a file."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote

from vllm_agent.host.contained_file import UnreadableFileError

if TYPE_CHECKING:
    from vllm_agent.host.contained_tree import ContainedTree

MAX_REVISION_LENGTH: Final = 255
"""Of a branch, tag or commit: git holds each part of a reference in a file name of that length."""

_PAGES: Final = "https://huggingface.co/"
_GGUF: Final = ".gguf"
# The rules of huggingface_hub's validate_repo_id, which vLLM goes by.
_REPO_ID: Final = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)
_PATH_STARTS: Final = ("/", "./", "../", "~")
_PATHS: Final = frozenset({".", ".."})
_QUANTIZATION: Final = re.compile(r"[A-Za-z0-9_]{1,32}")


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


def why_no_repo_id(text: str) -> str:
    """What keeps `text` from being the id of a repository, as a clause; empty where it is one."""
    if text.count("/") > 1:
        return "an id of the Hub is `name` or `organization/name`"
    if not _REPO_ID.fullmatch(text):
        return (
            "an id of the Hub has letters, digits, '-', '_' and '.' only, at most 96 to a name, and"
            " no name begins or ends with '-' or '.'"
        )
    if "--" in text or ".." in text:
        return "an id of the Hub has no '--' and no '..'"
    if text.endswith(".git"):
        return "an id of the Hub does not end with '.git'"
    return ""


def is_revision(text: str) -> bool:
    """Whether `text` can be a branch, tag or commit, and is no way out of a folder of them."""
    return (
        0 < len(text) <= MAX_REVISION_LENGTH
        and text.isprintable()
        and not text.startswith("-")
        and all(part not in {"", ".", ".."} for part in text.split("/"))
    )


def _why_nothing(model: str | None) -> str:
    if not model:
        return "no model is given, and vLLM takes its default"
    if model.startswith("-"):
        return "no model begins with '-'"
    return "it is the address of an object store, not of the Hub" if "://" in model else ""


def _on_the_hub(model: str) -> Model:
    why_not = why_no_repo_id(model)
    if not why_not:
        return HubRepo(model)
    repo, _, part = model.rpartition(":")
    if not _QUANTIZATION.fullmatch(part):
        repo, _, part = model.rpartition("/")
        if not part.endswith(_GGUF):
            return Unidentified(why_not)
    # Both forms need the organization, else `name/file.gguf` would be one of them.
    if "/" not in repo or why_no_repo_id(repo):
        return Unidentified(why_not)
    return HubRepo(repo, part)


def _local(model: str, files: ContainedTree) -> LocalFolder | LocalFile | None:
    try:
        mode = files.status(model).st_mode
    except UnreadableFileError:
        return None
    if stat.S_ISDIR(mode):
        return LocalFolder(model)
    return LocalFile(model) if stat.S_ISREG(mode) else None
