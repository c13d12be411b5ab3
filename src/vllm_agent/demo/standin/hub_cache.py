"""A download as huggingface_hub 2.x does one, seen from its cache: no network, real files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_agent.demo.standin.options import Options
    from vllm_agent.demo.standin.reactor import Reactor

AT_ONCE: Final = 8
"""Files that snapshot_download fetches at a time."""

TICK_SECONDS: Final = 0.05
"""From one piece of a file to the next."""

_NATURAL: Final = re.compile(r"(\d+)")
_INDEX: Final = "model.safetensors.index.json"
_CONFIG: Final = json.dumps({"architectures": ["LlamaForCausalLM"]})


def named_cache(environ: Mapping[str, str], download_dir: str | None) -> Path | None:
    """The cache that somebody named; never that of the user, which a stand-in must not fill."""
    if download_dir is not None:
        return Path(download_dir)
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable])
    home = environ.get("HF_HOME")
    return Path(home) / "hub" if home else None


def shards_in(folder: Path) -> list[Path]:
    """The safetensors files of a folder in natural order."""
    return sorted(folder.glob("*.safetensors"), key=lambda path: _NATURAL.split(path.name))


@dataclass(frozen=True, slots=True)
class _Part:
    """A file on its way into the cache."""

    name: str
    etag: str
    size: int


class Repo:
    """The folder of one model in the cache."""

    def __init__(self, cache: Path, options: Options) -> None:
        self._options = options
        name = f"models--{options.model.replace('/', '--')}"
        self._folder = cache / name
        self._locks = cache / ".locks" / name
        self._commit = digest(options.model)[:40]
        self._total = max(options.download_bytes, options.shards)
        self._retry_at = options.retry_download
        self.snapshot = self._folder / "snapshots" / self._commit

    @property
    def shards(self) -> list[Path]:
        """The weights that are there, in natural order."""
        return shards_in(self.snapshot)

    def fetch_config(self) -> None:
        """What the API server fetches to know the model."""
        self._write("refs/main", self._commit)
        self._add("config.json", _CONFIG)
        self._write(f"trees/{self._commit}.json", self._listing())

    def fetch_weights(self, reactor: Reactor) -> bool:
        """What the first worker of an engine fetches; false where the reactor was stopped.

        Whoever comes second waits, and finds everything there.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / "weights.lock").open("w") as lock:
            while not _locked(lock.fileno()):
                if not reactor.sleep(TICK_SECONDS):
                    return False
            parts = self._parts()
            if [path.name for path in self.shards] == [part.name for part in parts]:
                return True
            self._add(_INDEX, self._index())
            return all(
                self._fetch(parts, first, reactor) for first in range(0, len(parts), AT_ONCE)
            )

    def _parts(self) -> list[_Part]:
        count, total = self._options.shards, self._total
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        # The last file of a checkpoint is what is left over.
        size = -(-total // count)
        return [
            _Part(
                name, digest(self._options.model + name), max(1, min(size, total - size * before))
            )
            for before, name in enumerate(names)
        ]

    def _index(self) -> str:
        parts = self._parts()
        return json.dumps(
            {
                "metadata": {"total_size": sum(part.size for part in parts)},
                "weight_map": {f"layers.{n}.weight": part.name for n, part in enumerate(parts)},
            }
        )

    def _listing(self) -> str:
        """All files of the commit, as huggingface_hub 2 keeps them."""
        files: dict[str, dict[str, object]] = {
            name: {"size": len(text), "blob_id": _blob_id(text)}
            for name, text in (("config.json", _CONFIG), (_INDEX, self._index()))
        }
        for part in self._parts():
            sizes = {"size": part.size, "lfs_size": part.size}
            files[part.name] = {**sizes, "blob_id": _blob_id(part.name), "lfs_sha256": part.etag}
        return json.dumps({"format_version": 1, "files": files})

    def _fetch(self, parts: list[_Part], first: int, reactor: Reactor) -> bool:
        """Fetches the files from `first` on, as many as go at a time."""
        options = self._options
        before = sum(part.size for part in parts[:first])
        parts = parts[first : first + AT_ONCE]
        whole = sum(part.size for part in parts)
        seconds = (options.download_seconds or 0.0) * whole / self._total
        ticks = max(1, round(seconds / TICK_SECONDS))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(self._incomplete(part)) for part in parts]
            tick = 0
            while tick < ticks:
                ratio = (before + whole * tick / ticks) / self._total
                if options.stall_download is not None and ratio >= options.stall_download:
                    reactor.hang(is_spinning=options.hang_spin)
                if self._retry_at is not None and ratio >= self._retry_at:
                    self._retry_at, tick = None, 0
                    stack.close()
                    files = [stack.enter_context(self._incomplete(part)) for part in parts]
                if not reactor.sleep(seconds / ticks):
                    return False
                tick += 1
                for part, (fd, _path) in zip(parts, files, strict=True):
                    # Blocks are allocated and nothing is written: no page of memory is used.
                    os.posix_fallocate(fd, 0, max(1, part.size * tick // ticks))
            for part, (_fd, path) in zip(parts, files, strict=True):
                path.rename(self._blob(part.etag))
                self._link(part.name, part.etag)
        return True

    @contextlib.contextmanager
    def _incomplete(self, part: _Part) -> Iterator[tuple[int, Path]]:
        """The file that a download is written to, gone if that fails."""
        path = self._blob(f"{part.etag}.{os.urandom(4).hex()}.incomplete")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            try:
                yield file.fileno(), path
            finally:
                path.unlink(missing_ok=True)

    def _add(self, name: str, text: str) -> None:
        self._write(f"blobs/{_blob_id(text)}", text)
        self._link(name, _blob_id(text))

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _link(self, name: str, etag: str) -> None:
        self.snapshot.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (self.snapshot / name).symlink_to(Path("../../blobs") / etag)

    def _blob(self, name: str) -> Path:
        return self._folder / "blobs" / name


def digest(text: str) -> str:
    """64 hexadecimal digits that tell texts apart: hashlib would bring OpenSSL's 4 MiB along."""
    return "".join(f"{zlib.crc32(f'{part} {text}'.encode()):08x}" for part in range(8))


def _blob_id(text: str) -> str:
    return digest(text)[:40]


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
