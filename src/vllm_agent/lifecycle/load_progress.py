"""How far a load is, and whether it moves, from what its witnesses saw. Pure.

A load is judged by its progress and never by a wall clock: a slow one that moves is never failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import Instant, Stage, Witness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_agent.lifecycle.load_history import LoadHistory
    from vllm_agent.observations import Download, LoadLook, ProcessId

MOVED_BYTES: Final = 2**20
"""Bytes of a witness that count as progress: a process that hangs still reads a little now and then
(heartbeats, usage statistics), a load moves gigabytes."""

BUSY_CORES: Final = 0.5
"""From so many cores of CPU on a silent stage counts as busy."""

BUSY_SECONDS: Final = 30 * 60.0
"""The longest that CPU alone extends a stage: a collective that hangs spins, too."""

BUSY_TIMES_LONGEST: Final = 3.0
"""The same for a server whose stage has taken long before: so many times the longest."""

UNMAPPED_LOOKS: Final = 2
"""Looks in a row that see no file mapped before the weights count as loaded: between two files
there is a moment with none."""

_QUIET_STAGES: Final = frozenset({Stage.INIT, Stage.COMPILE, Stage.WARMUP})
"""Stages that may give no sign for minutes. A download or a read that moves shows bytes."""


_AFTER_WEIGHTS: Final = frozenset({Stage.COMPILE, Stage.WARMUP})


@dataclass(frozen=True, slots=True)
class Weights:
    """How much of a checkpoint is loaded, by the slowest process.

    `shard` of `shards` is the file that is being loaded. Bytes are those of the files before it,
    and of all. `source` is who told: SHARDS or LOG.
    """

    shard: int
    shards: int
    done_bytes: int | None
    size_bytes: int | None
    is_complete: bool = False
    source: Witness = Witness.SHARDS

    @property
    def ratio(self) -> float:
        """From 0 to 1: bytes where they are known, else files."""
        if self.is_complete:
            return 1.0
        if self.done_bytes is not None and self.size_bytes:
            return min(1.0, self.done_bytes / self.size_bytes)
        return (self.shard - 1) / self.shards

    def completed(self) -> Weights:
        """The same when all of it is loaded."""
        return replace(self, shard=self.shards, done_bytes=self.size_bytes, is_complete=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How the newest launch of a local server loads, or loaded.

    `began` is when its process was started, `watched` when the agent first looked. `stage` is NONE
    once it serves, or has ended. `stage_seconds` are of stages that are over, and add up where one
    came again. `last_progress` is that of the last hard sign, `last_busy` of the last soft one.
    `is_stalled` is None where no witness could have seen it move. `signs` is when each witness
    last showed progress; `look` is what they saw last. `moved_io_bytes` and `moved_gpu_bytes` are
    where those stood when they last moved.
    """

    process: ProcessId
    began: Instant
    watched: Instant
    stage: Stage
    stage_entered: Instant
    last_progress: Instant
    look: LoadLook
    stage_seconds: Mapping[Stage, float] = field(default_factory=lambda: MappingProxyType({}))
    last_busy: Instant | None = None
    is_stalled: bool | None = False
    download: Download | None = None
    weights: Weights | None = None
    unmapped_looks: int = 0
    moved_io_bytes: int | None = None
    moved_gpu_bytes: int | None = None
    signs: Mapping[Witness, Instant] = field(default_factory=lambda: MappingProxyType({}))
    ended: Instant | None = None

    @classmethod
    def begun(cls, look: LoadLook, start_seconds: float) -> LoadProgress:
        """A load that is looked at for the first time; its process started at that unix time."""
        age_seconds = max(0.0, look.at.unix_seconds - start_seconds)
        began = Instant(look.at.monotonic_seconds - age_seconds, look.at.unix_seconds - age_seconds)
        weights = _weights(None, look)
        return cls(
            process=look.process,
            began=began,
            watched=look.at,
            stage=_stage(look, weights, unmapped_looks=0),
            # What was before nobody saw: it is booked for the stage that it is found in.
            stage_entered=began,
            last_progress=look.at,
            look=look,
            download=look.download,
            weights=weights,
            moved_io_bytes=look.io_bytes,
            moved_gpu_bytes=look.gpu_bytes,
        )

    def after(
        self, look: LoadLook, history: LoadHistory, *, start_seconds: float, load_seconds: float
    ) -> LoadProgress:
        """The same after one more look.

        `start_seconds` is the longest time without progress before the first EngineCore,
        `load_seconds` after that.
        """
        signs = dict.fromkeys(_signs(self, look), look.at)
        unmapped_looks = 0 if look.shards else self.unmapped_looks + 1
        weights = _weights(self.weights, look)
        stage = _stage(look, weights, unmapped_looks)
        load = replace(
            self,
            download=look.download or self.download,
            weights=weights,
            unmapped_looks=unmapped_looks,
            last_busy=look.at if _is_busy(self.look, look) else self.last_busy,
            last_progress=look.at if signs or stage is not self.stage else self.last_progress,
            moved_io_bytes=_mark(self.moved_io_bytes, look.io_bytes, has_moved=Witness.IO in signs),
            moved_gpu_bytes=_mark(
                self.moved_gpu_bytes, look.gpu_bytes, has_moved=Witness.GPU_MEMORY in signs
            ),
            signs=MappingProxyType({**self.signs, **signs}) if signs else self.signs,
            look=look,
        ).entered(stage, look.at)
        limit_seconds = load_seconds if load.has_engine else min(start_seconds, load_seconds)
        return replace(load, is_stalled=_is_stalled(load, history, limit_seconds, look.at))

    def entered(self, stage: Stage, now: Instant) -> LoadProgress:
        """The same in `stage`; NONE when it serves, or has ended."""
        if stage is self.stage:
            return self
        spent = self.seconds_in(self.stage, now) or 0.0
        weights = self.weights
        if self.stage is Stage.LOAD_WEIGHTS and weights is not None and stage in _AFTER_WEIGHTS:
            weights = weights.completed()
        return replace(
            self,
            stage=stage,
            stage_entered=now,
            stage_seconds=MappingProxyType({**self.stage_seconds, self.stage: spent}),
            weights=weights,
            is_stalled=False if stage is Stage.NONE else self.is_stalled,
            ended=now if stage is Stage.NONE else None,
        )

    @property
    def has_engine(self) -> bool:
        """Whether it has got as far as an EngineCore, by anything that tells."""
        return self.look.has_engine or self.stage is not Stage.INIT

    def seconds_in(self, stage: Stage, now: Instant) -> float | None:
        """How long it was in that stage up to `now`; None if it never was."""
        before = self.stage_seconds.get(stage)
        if stage is not self.stage:
            return before
        return (before or 0.0) + max(0.0, now.since(self.stage_entered))

    def ratio(self, stage: Stage) -> float | None:
        """How much of a stage is done, 0 to 1; None where nothing tells, or it never came."""
        if stage is Stage.LOAD_WEIGHTS:
            return None if self.weights is None else self.weights.ratio
        if stage is Stage.DOWNLOAD and self.download is not None and self.download.size_bytes:
            return min(1.0, self.download.done_bytes / self.download.size_bytes)
        return None


def _stage(look: LoadLook, weights: Weights | None, unmapped_looks: int) -> Stage:
    """The stage that a look shows; of witnesses that differ the one that saw the act itself."""
    if look.shards:
        return Stage.LOAD_WEIGHTS
    if look.download is not None and look.download.is_under_way and weights is None:
        # vLLM says nothing of it, and its line on loading comes before.
        return Stage.DOWNLOAD
    logged = None if look.log is None else look.log.stage
    if logged in _AFTER_WEIGHTS:
        return logged
    if weights is None:
        return logged or Stage.INIT
    is_loaded = weights.is_complete or unmapped_looks >= UNMAPPED_LOOKS
    if weights.source is Witness.LOG or not is_loaded or _is_bar_unfinished(look):
        return Stage.LOAD_WEIGHTS
    # Where there is no log nothing tells a compilation from what follows it.
    return Stage.WARMUP if look.is_eager else Stage.COMPILE


def _is_bar_unfinished(look: LoadLook) -> bool:
    log = look.log
    return log is not None and log.shard_count is not None and log.shards_done != log.shard_count


def _weights(before: Weights | None, look: LoadLook) -> Weights | None:
    slowest = min(look.shards or (), key=lambda shard: shard.number / shard.count, default=None)
    if slowest is not None:
        return Weights(slowest.number, slowest.count, slowest.done_bytes, slowest.size_bytes)
    log = look.log
    is_seen = before is not None and before.source is Witness.SHARDS
    if is_seen or log is None or not log.shard_count:
        return before
    done, size = min(log.shards_done or 0, log.shard_count), log.weights_bytes
    return Weights(
        shard=min(done + 1, log.shard_count),
        shards=log.shard_count,
        done_bytes=None if size is None else size * done // log.shard_count,
        size_bytes=size,
        is_complete=done == log.shard_count,
        source=Witness.LOG,
    )


def _signs(load: LoadProgress, look: LoadLook) -> Iterator[Witness]:
    """The witnesses whose look shows that it moved since the one before."""
    before, had = load.look, load.download
    if look.has_engine > before.has_engine or look.has_worker > before.has_worker:
        yield Witness.COMPONENTS
    if look.download is not None and (had is None or look.download.done_bytes > had.done_bytes):
        yield Witness.HF_CACHE
    if look.shards and look.shards != before.shards:
        yield Witness.SHARDS
    if _has_moved(load.moved_io_bytes, look.io_bytes):
        yield Witness.IO
    if _has_moved(load.moved_gpu_bytes, look.gpu_bytes):
        yield Witness.GPU_MEMORY
    if (look.compile_changes or 0) > (before.compile_changes or 0):
        yield Witness.COMPILE_CACHE
    if look.log is not None and look.log.new_lines > _lines(before):
        yield Witness.LOG


def _lines(look: LoadLook) -> int:
    return 0 if look.log is None else look.log.new_lines


def _is_busy(before: LoadLook, now: LoadLook) -> bool:
    passed_seconds = now.at.since(before.at)
    if before.cpu_seconds is None or now.cpu_seconds is None or passed_seconds <= 0:
        return False
    return (now.cpu_seconds - before.cpu_seconds) / passed_seconds >= BUSY_CORES


def _is_stalled(
    load: LoadProgress, history: LoadHistory, limit_seconds: float, now: Instant
) -> bool | None:
    quiet_seconds = now.since(load.last_progress)
    if quiet_seconds < limit_seconds:
        return False
    if not load.look.can_see_progress:
        return None
    is_busy = load.last_busy is not None and now.since(load.last_busy) < limit_seconds
    if load.stage in _QUIET_STAGES and is_busy:
        longest = history.longest_stage_seconds.get(load.stage, 0.0)
        return quiet_seconds >= max(BUSY_SECONDS, BUSY_TIMES_LONGEST * longest)
    return True


def _has_moved(mark: int | None, now: int | None) -> bool:
    return now is not None and mark is not None and now - mark >= MOVED_BYTES


def _mark(mark: int | None, now: int | None, *, has_moved: bool) -> int | None:
    """Where a witness stood when it last moved; lower if it fell, so that what follows counts."""
    if now is None:
        return mark
    return now if mark is None or has_moved or now < mark else mark
