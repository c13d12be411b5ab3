"""Frozen facts about the load of a local server, each from a witness of its own.

Every witness is optional: what one could not tell is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm_agent.observations.instant import Instant
    from vllm_agent.observations.processes import ProcessId


class Stage(StrEnum):
    """What a starting server is doing."""

    DOWNLOAD = "download"
    INIT = "init"
    LOAD_WEIGHTS = "load_weights"
    COMPILE = "compile"
    WARMUP = "warmup"
    NONE = "none"


class Witness(StrEnum):
    """What tells of a load, without a word from vLLM's own API."""

    HF_CACHE = "hf_cache"
    HUB = "hub"
    SHARDS = "shards"
    IO = "io"
    GPU_MEMORY = "gpu_memory"
    COMPONENTS = "components"
    COMPILE_CACHE = "compile_cache"
    LOG = "log"
    CPU = "cpu"


_LOGGED_STAGES: Final = frozenset({Stage.COMPILE, Stage.WARMUP})


@dataclass(frozen=True, slots=True)
class Download:
    """The files of a model on their way into a Hugging Face cache.

    `done_bytes` are allocated on disk, in finished files and in those on their way; it shrinks when
    a file is begun anew. `size_bytes` is what all files come to, as `size_source` says: HF_CACHE
    for the index in the cache, HUB for the Hub. `is_under_way`: a file was written to in this
    launch, and is not finished.
    """

    done_bytes: int
    size_bytes: int | None
    size_source: Witness | None
    is_under_way: bool


@dataclass(frozen=True, slots=True)
class Shard:
    """The file of a checkpoint that one process has mapped: vLLM maps one after the other.

    `number` counts from 1 to `count`. `done_bytes` is what the files before it come to,
    `size_bytes` all of them; None where they cannot be seen.
    """

    pid: int
    number: int
    count: int
    done_bytes: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LogProgress:
    """What the log of this launch has told of the load so far.

    `stage` is that of the newest line which tells one. `new_lines` counts the different lines.
    `shards_done` of `shard_count` is vLLM's own progress bar, `weights_bytes` the size that it
    found the checkpoint to have.
    """

    stage: Stage | None = None
    new_lines: int = 0
    shards_done: int | None = None
    shard_count: int | None = None
    weights_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLook:
    """What one look at a load saw.

    `has_engine` and `has_worker`: this launch has, or had, a component that is one. `is_eager`: its
    command line turns compiling off. `shards` has an entry for each process that has a file of the
    checkpoint mapped; None where no mapping can be seen. `io_bytes` were read and written by the
    tree, `gpu_bytes` it holds, `cpu_seconds` it used; the first and the last never fall.
    `compile_changes` counts what came to vLLM's torch.compile cache since the launch began.
    `trouble` is the name of what its log says went wrong, empty where it says nothing.
    """

    process: ProcessId
    at: Instant
    has_engine: bool = False
    has_worker: bool = False
    is_eager: bool = False
    download: Download | None = None
    shards: tuple[Shard, ...] | None = None
    io_bytes: int | None = None
    gpu_bytes: int | None = None
    cpu_seconds: float | None = None
    compile_changes: int | None = None
    log: LogProgress | None = None
    trouble: str = ""

    def can_see_progress(self, stage: Stage) -> bool:
        """Whether there is a witness that would have seen a load move in that stage.

        A log is silent while files are fetched and read, however fast they come.
        """
        can_see_bytes = self.shards is not None or self.io_bytes is not None
        return can_see_bytes or (self.log is not None and stage in _LOGGED_STAGES)
