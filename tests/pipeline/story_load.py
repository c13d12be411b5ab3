"""How a model of the story loads, and what the witnesses of the load see of it at any moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import Download, LoadLook, LogProgress, Shard, Stage, Witness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_agent.observations import Instant, ProcessId

GIB: Final = 2**30
_CONTEXT_BYTES: Final = GIB // 2
"""What a process takes of a GPU before it holds anything of the model."""
_HOLDS_MEMORY: Final = (Stage.LOAD_WEIGHTS, Stage.COMPILE, Stage.WARMUP)


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its name, the size of its checkpoint and of how many files that is made."""

    name: str
    weights_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Load:
    """A load that began at `began` and takes the given stages, each so many seconds.

    `workers` are the PIDs that hold memory, `full_bytes` what each holds once it serves. After the
    last stage it stays as it is.
    """

    process: ProcessId
    model: Model
    workers: tuple[int, ...]
    full_bytes: int
    began: Instant
    stages: Sequence[tuple[Stage, int]]

    def at(self, now: Instant) -> tuple[Stage, float]:
        """The stage, and how much of it is done."""
        passed = now.since(self.began)
        for stage, seconds in self.stages:
            if passed < seconds:
                return stage, passed / seconds
            passed -= seconds
        return self.stages[-1][0], 1.0

    def look(self, now: Instant) -> LoadLook:
        """What a look at the load sees."""
        stage, share = self.at(now)
        is_loading = stage is Stage.LOAD_WEIGHTS
        return LoadLook(
            process=self.process,
            at=now,
            has_engine=stage is not Stage.INIT or share > 0.5,
            has_worker=stage is not Stage.INIT,
            download=self._download(share) if stage is Stage.DOWNLOAD else None,
            shards=self._shards(share) if is_loading else (),
            io_bytes=self._read_bytes(stage, share),
            gpu_bytes=self.gpu_bytes(now) * len(self.workers),
            compile_changes=int(20 * share) if stage is Stage.COMPILE else None,
            log=LogProgress(stage, self._lines(stage, share)),
        )

    def gpu_bytes(self, now: Instant) -> int:
        """What each worker holds."""
        stage, share = self.at(now)
        if stage not in _HOLDS_MEMORY:
            return _CONTEXT_BYTES if stage is Stage.DOWNLOAD else 0
        weights_bytes = self.model.weights_bytes // len(self.workers)
        if stage is Stage.LOAD_WEIGHTS:
            return _CONTEXT_BYTES + int(share * weights_bytes)
        loaded_bytes = _CONTEXT_BYTES + weights_bytes
        if stage is Stage.COMPILE:
            return loaded_bytes + int(share * GIB)
        # The KV cache takes what is left of its part of the GPU.
        return max(loaded_bytes, int((0.5 + share / 2) * self.full_bytes))

    def _download(self, share: float) -> Download:
        size = self.model.weights_bytes
        return Download(int(share * size), size, Witness.HF_CACHE, is_under_way=True)

    def _shards(self, share: float) -> tuple[Shard, ...]:
        files, size = self.model.files, self.model.weights_bytes
        done = min(int(share * files), files - 1)
        return tuple(
            Shard(pid, done + 1, files, size * done // files, size) for pid in self.workers
        )

    def _read_bytes(self, stage: Stage, share: float) -> int:
        size = self.model.weights_bytes
        if stage is Stage.LOAD_WEIGHTS:
            return int(share * size)
        return size if stage in _HOLDS_MEMORY else 0

    def _lines(self, stage: Stage, share: float) -> int:
        order = [known for known, _ in self.stages]
        return 10 * order.index(stage) + int(5 * share)
