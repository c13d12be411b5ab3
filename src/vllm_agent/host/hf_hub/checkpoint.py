"""Which files of a repository are the weights that vLLM fetches, and what an index says of them.

Written after `download_weights_from_hf` and the loaders of vLLM 0.11 to 0.32. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The files that list a checkpoint of several files; the first is the one that vLLM fetches."""

MAX_INDEX_BYTES: Final = 32 * 1024 * 1024
"""Of an index: that of a model with 92,000 tensors has 9 MB."""

MAX_WEIGHT_FILES: Final = 2048
"""Files of one checkpoint: those of the largest models have about 200."""

MAX_NAME_LENGTH: Final = 255
"""Of a file in a repository, folders included; longer ones have not been seen."""

MAX_WEIGHT_BYTES: Final = 2**50
"""More than any checkpoint has: a number beyond it is no size."""

MAX_STRINGS: Final = 1_000_000
"""In an index, two to a tensor: models of 10^12 parameters have 300,000. So many take 0.5 s."""

MAX_TOKEN_BYTES: Final = 4096
"""From one string of an index to the end of the next: they are names."""

_WEIGHT_ENDINGS: Final = (
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf"),
    *(".h5", ".msgpack", ".onnx", ".ckpt", ".ot", ".tflite", ".onnx_data"),
)
_IGNORED: Final = "original/*/*"  # vLLM's `original/**/*`, as fnmatch takes it
_SAFETENSORS: Final = ("*.safetensors",)
_ANY: Final = ("*.safetensors", "*.bin", "*.pt")
_PATTERNS: Final = MappingProxyType(
    {
        "auto": _ANY,
        "hf": _ANY,
        "bitsandbytes": _ANY,
        "safetensors": _SAFETENSORS,
        "fastsafetensors": _SAFETENSORS,
        "instanttensor": _SAFETENSORS,
        "runai_streamer": _SAFETENSORS,
        "mistral": ("consolidated*.safetensors",),
        "npcache": ("*.bin",),
        "pt": ("*.pt",),
    }
)
_MISTRAL: Final = "consolidated*.safetensors"
_ONE_OF: Final = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})(\.[a-z]+)", re.DOTALL)

# What stands before a string, and the string; nothing is ever tried twice.
_STRING: Final = re.compile(rb'([^"]*+)"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_NUMBER: Final = re.compile(rb"\s*:\s*([0-9]{1,16})(?:\.0)?\s*[,}]")


@dataclass(frozen=True, slots=True)
class Index:
    """The files of a checkpoint, and what its tensors come to, without the headers of the files."""

    files: frozenset[str]
    tensor_bytes: int | None


def read_index(pieces: Iterable[bytes]) -> Index | None:
    """What an index says; None where it is none, is cut, or names what cannot be in a repository.

    It is searched piece by piece and never held or parsed as a whole, which for the largest would
    take 100 MB and stop every other thread for as many milliseconds.
    """
    scan = _Scan()
    for piece in pieces:
        if not scan.has_read(piece):
            return None
    return scan.index()


class _Scan:
    """Follows the strings of a JSON text, and what stands between them."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._totals: set[int] = set()
        self._has_map = False
        self._strings = 0
        self._first = self._last = self._string = self._rest = b""

    def has_read(self, piece: bytes) -> bool:
        """Whether this can still be an index."""
        self._first = self._first or piece.lstrip()[:1]
        self._last = piece.rstrip()[-1:] or self._last
        text = self._rest + piece
        end = 0
        while match := _STRING.match(text, end):
            end = match.end()
            self._strings += 1
            self._take(match[1], match[2])
        self._rest = text[end:]
        return (
            self._strings <= MAX_STRINGS
            and len(self._rest) <= MAX_TOKEN_BYTES
            and len(self._files) <= MAX_WEIGHT_FILES
        )

    def index(self) -> Index | None:
        """What it says, if it is one."""
        self._take_total(self._rest)
        is_whole = self._has_map and self._first + self._last == b"{}"
        if not is_whole or not self._files or not all(map(is_inside, self._files)):
            return None
        total = self._totals.pop() if len(self._totals) == 1 else 0
        return Index(frozenset(self._files), total if 0 < total <= MAX_WEIGHT_BYTES else None)

    def _take(self, before: bytes, string: bytes) -> None:
        self._take_total(before)
        if before.strip() == b":":
            # Other values are those of its metadata.
            name = _text(string)
            if is_weight(name):
                self._files.add(name)
        elif string == b"weight_map":
            self._has_map = True
        self._string = string

    def _take_total(self, behind: bytes) -> None:
        if self._string == b"total_size" and (match := _NUMBER.match(behind)):
            self._totals.add(int(match[1]))


def _text(string: bytes) -> str:
    if b"\\" not in string:
        return string.decode("utf-8", "replace")
    try:
        return str(json.loads(b'"%b"' % string))
    except ValueError:
        return "\0.bin"  # no name that a file can have


def weights_of(names: Collection[str], load_format: str | None) -> frozenset[str] | None:
    """The weights that vLLM fetches of a repository with these files; None if that is not clear.

    Empty where none of them is what `load_format` reads.
    """
    patterns = _PATTERNS.get(load_format or "auto")
    if patterns is None:
        return None
    names = [name for name in names if is_inside(name) and not fnmatchcase(name, _IGNORED)]
    top = [name for name in names if "/" not in name]
    if patterns is _ANY and any(fnmatchcase(name, _MISTRAL) for name in top):
        # Newer versions take these alone, older ones those of the index, or all.
        return None
    if patterns[0] == "*.safetensors" and INDEXES[0] in top:
        # Those that the index names; nobody gives files of another model the same folder.
        return frozenset(name for name in top if fnmatchcase(name, patterns[0]))
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in top):
            return frozenset(name for name in names if fnmatchcase(name, pattern))
    # One file of several quantizations, as the rest of the model's name tells.
    return None if any(name.endswith(".gguf") for name in names) else frozenset()


def is_weight(name: str) -> bool:
    """Whether a file holds weights of some kind, which vLLM may want or not."""
    return name.endswith(_WEIGHT_ENDINGS)


def is_inside(name: str) -> bool:
    """Whether a name is one of a file in a repository, and leads nowhere else."""
    return (
        0 < len(name) <= MAX_NAME_LENGTH
        and name.isprintable()
        and all(part not in {"", ".", ".."} for part in name.split("/"))
    )


def others_of(name: str) -> frozenset[str]:
    """All files of a set that one of them tells the number of (`-00001-of-00003.`), itself too."""
    match = _ONE_OF.fullmatch(name)
    if match is None:
        return frozenset({name})
    before, _, count, ending = match.groups()
    if not 0 < int(count) <= MAX_WEIGHT_FILES:
        return frozenset({name})
    return frozenset(f"{before}{at:05d}-of-{count}{ending}" for at in range(1, int(count) + 1))
