"""The few variables of a process that tell where its models are. Nothing else of them is kept.

The values are text of whoever started the process. They are the environment that it was started
with: what it changed since is not seen.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import open_tree_of, working_folder
from vllm_agent.host.hf_hub.hub_variables import is_on, origin
from vllm_agent.host.proc import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.host.proc import Proc

MAX_ENVIRON_BYTES: Final = 2**20
"""Read of an environment. A pod in a namespace of a thousand services is given 300 kB; what is
longer than this is not read on, so that what is missing in it stays unknown."""

MAX_VALUE_CHARACTERS: Final = 4096
"""Of a value that is kept: PATH_MAX of Linux."""

MAX_PASSWD_BYTES: Final = 256 * 1024
"""Read of the user database of a process: 3,000 users."""

UNUSABLE: Final = ""
"""Kept for a variable that is set, but to nothing that is a path, or none that can be told."""

_PATHS: Final = (
    "HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "VLLM_CACHE_ROOT",
)
_NAMES: Final = frozenset({*_PATHS, "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"})
_NO_FIELDS: Final = (b"",) * 6  # passwd(5) has seven
_UNKNOWN: Final = "\0"  # in no path
_REFERENCE: Final = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)  # posixpath.expandvars


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEnvironment:
    """Where a vLLM looks for models and keeps what it compiles, and whether it may go online.

    A path is absolute, as the process sees it: a relative one is below its working directory, as
    huggingface_hub takes it. It is None where the variable is not set, and `UNUSABLE` where nothing
    can be made of it. `hf_hub_cache` is HF_HUB_CACHE or its older name. `home` is the one of the
    user database where HOME is not set. Of `hf_endpoint` only scheme, host and port are kept:
    whatever follows or precedes may be a secret.
    """

    home: str | None = None
    hf_home: str | None = None
    hf_hub_cache: str | None = None
    xdg_cache_home: str | None = None
    hf_endpoint: str | None = None
    is_offline: bool = False
    vllm_cache_root: str | None = None

    @classmethod
    def read(cls, proc: Proc, pid: int) -> Self | None:
        """The variables of a process; None where they may not be read, or are too many.

        This blocks as the disk of the process does: call it in a thread.
        """
        block = read_small(proc.path(pid, "environ"), MAX_ENVIRON_BYTES + 1)
        # A zombie shows nothing, and a title that was written over it no variables.
        if block is None or len(block) > MAX_ENVIRON_BYTES or b"=" not in block:
            return None
        folder = None
        with contextlib.suppress(UnreadableFileError):
            folder = working_folder(proc, pid)
        values = _values(block)
        if "HOME" not in values and (home := _home_of_user(proc, pid)) is not None:
            values["HOME"] = home
        return cls._of(values, folder)

    @classmethod
    def of_start(cls, environ: Mapping[str, str], folder: str, home: str | None) -> Self:
        """The variables of a process that is yet to be started in `folder`.

        `home` is that of the user database, for where HOME is not set.
        """
        values = {
            name: _text(environ[name].encode("utf-8", "surrogatepass"))
            for name in _NAMES & environ.keys()
        }
        if home is not None:
            values.setdefault("HOME", home)
        return cls._of(values, folder)

    @classmethod
    def _of(cls, values: Mapping[str, str], folder: str | None) -> Self:
        paths = {name: _path(values, name, folder) for name in _PATHS if name in values}
        hub_cache = paths.get("HF_HUB_CACHE", paths.get("HUGGINGFACE_HUB_CACHE"))
        offline = values.get("HF_HUB_OFFLINE") or values.get("TRANSFORMERS_OFFLINE") or ""
        return cls(
            home=paths.get("HOME"),
            hf_home=paths.get("HF_HOME"),
            hf_hub_cache=hub_cache,
            xdg_cache_home=paths.get("XDG_CACHE_HOME"),
            hf_endpoint=origin(values.get("HF_ENDPOINT", "")),
            is_offline=is_on(offline),
            vllm_cache_root=paths.get("VLLM_CACHE_ROOT"),
        )

    @property
    def hub_cache(self) -> str | None:
        """The folder of the Hugging Face cache; None where it cannot be told.

        Source: huggingface_hub.constants.
        """
        if self.hf_hub_cache is not None:
            return self.hf_hub_cache or None
        home = self._below_cache("huggingface") if self.hf_home is None else self.hf_home
        return os.path.join(home, "hub") if home else None

    @property
    def compile_cache(self) -> str | None:
        """The folder of vLLM's torch.compile cache; None where it cannot be told.

        Source: vllm.envs, vllm.compilation.
        """
        unset = self.vllm_cache_root is None
        root = self._below_cache("vllm") if unset else self.vllm_cache_root
        return os.path.join(root, "torch_compile_cache") if root else None

    def _below_cache(self, name: str) -> str | None:
        if self.xdg_cache_home is not None:
            return os.path.join(self.xdg_cache_home, name) if self.xdg_cache_home else None
        return os.path.join(self.home, ".cache", name) if self.home else None


def read_environ(proc: Proc, pid: int) -> bytes | None:
    """The whole environment as NAME=VALUE, each ended by a NUL; None where it may not be read.

    It holds secrets: use it at once and keep nothing of it.
    """
    block = read_small(proc.path(pid, "environ"), MAX_ENVIRON_BYTES + 1)
    if block is None or len(block) <= MAX_ENVIRON_BYTES:
        return block
    return block[: block.rfind(b"\0", 0, MAX_ENVIRON_BYTES) + 1]


def _values(block: bytes) -> dict[str, str]:
    """The variables of the handful; of one that is set twice the first, as Python takes it."""
    values: dict[str, str] = {}
    for entry in block.split(b"\0"):
        name, is_set, value = entry.partition(b"=")
        key = name.decode("ascii", "replace")
        if is_set and key in _NAMES:
            values.setdefault(key, _text(value))
    return values


def _text(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return _UNKNOWN
    is_kept = len(text) <= MAX_VALUE_CHARACTERS and text.isprintable()
    return text if is_kept else _UNKNOWN


def _path(values: Mapping[str, str], name: str, folder: str | None) -> str:
    """What the process takes a variable for, as an absolute path."""
    path = (values[name] or "/") if name == "HOME" else _expanded(values[name], values)
    if not path.startswith("/"):
        path = _UNKNOWN if folder is None else os.path.join(folder, path)
    return UNUSABLE if _UNKNOWN in path or len(path) > MAX_VALUE_CHARACTERS else path


def _expanded(path: str, values: Mapping[str, str]) -> str:
    """As os.path.expandvars(os.path.expanduser(path)) in the process."""
    if path.startswith("~"):
        # The home of another user is nowhere in the environment.
        is_own = path[1:2] in {"", "/"}
        home = values.get("HOME", _UNKNOWN) if is_own else _UNKNOWN
        path = home.rstrip("/") + path[1:] or "/"
    # Any other variable may be a secret: what names one stays unknown.
    paths = {name: value for name, value in values.items() if name in _PATHS}
    return _REFERENCE.sub(lambda found: paths.get(found[1].strip("{}"), _UNKNOWN), path)


def _home_of_user(proc: Proc, pid: int) -> str | None:
    """As os.path.expanduser has it where HOME is not set: systemd sets none without User=."""
    user = proc.real_user(pid)
    try:
        with open_tree_of(proc, pid) as tree:
            lines = tree.read("/etc/passwd", MAX_PASSWD_BYTES).split(b"\n")
    except UnreadableFileError:
        return None
    for line in lines:
        _, _, uid, _, _, home, *_ = (*line.split(b":"), *_NO_FIELDS)
        if user is not None and uid == b"%d" % user[0]:
            return _text(home)
    return None
