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

WATCHED_LATE_SECONDS: Final = 5.0
"""A load that the agent came to later than this after its start is known from then on only: a new
process is seen within a second."""

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
    once it serves, or has ended. `stage_seconds` are of stages that are over, as far as the agent
    watched, and add up where one came again. `last_progress` is that of the last hard sign, or when
    the agent first looked, `last_busy` that of the last soft one. `is_stalled` is None where no
    witness could have seen it move. `signs` is when each witness last showed progress; `look` is
    what they saw last. `moved_io_bytes` and `moved_gpu_bytes` are where those stood when they last
    moved; `mapped_anew` is when another file was mapped, `logged_anew` when the log last told
    another stage.
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
    mapped_anew: Instant | None = None
    logged_anew: Instant | None = None
    signs: Mapping[Witness, Instant] = field(default_factory=lambda: MappingProxyType({}))
    ended: Instant | None = None
    has_ended_stalled: bool = False

    @classmethod
    def begun(
        cls, look: LoadLook, start_seconds: float, *, is_stalled: bool = False
    ) -> LoadProgress:
        """A load that is looked at for the first time; its process started at that unix time.

        `is_stalled` is whether it had stalled before.
        """
        age_seconds = max(0.0, look.at.unix_seconds - start_seconds)
        began = Instant(look.at.monotonic_seconds - age_seconds, look.at.unix_seconds - age_seconds)
        load = cls(
            process=look.process,
            began=began,
            watched=look.at,
            stage=Stage.INIT,
            # The moments before the first look are those of the stage that it finds.
            stage_entered=began if age_seconds <= WATCHED_LATE_SECONDS else look.at,
            last_progress=look.at,
            look=look,
            is_stalled=is_stalled,
            download=look.download,
            weights=_weights(None, look),
            moved_io_bytes=look.io_bytes,
            moved_gpu_bytes=look.gpu_bytes,
            mapped_anew=look.at if look.shards else None,
            logged_anew=None if _logged(look) is None else look.at,
        )
        return replace(load, stage=_stage(load))

    def after(
        self, look: LoadLook, history: LoadHistory, *, start_seconds: float, load_seconds: float
    ) -> LoadProgress:
        """The same after one more look.

        `start_seconds` is the longest time without progress before the first EngineCore,
        `load_seconds` after that.
        """
        signs = dict.fromkeys(_signs(self, look), look.at)
        unmapped_looks = 0 if look.shards else self.unmapped_looks + 1
        logged = _logged(look)
        load = replace(
            self,
            download=look.download or self.download,
            weights=_weights(self.weights, look),
            unmapped_looks=unmapped_looks,
            mapped_anew=look.at if Witness.SHARDS in signs else self.mapped_anew,
            logged_anew=look.at if logged is not _logged(self.look) else self.logged_anew,
            last_busy=look.at if _is_busy(self.look, look) else self.last_busy,
            moved_io_bytes=_mark(self.moved_io_bytes, look.io_bytes, has_moved=Witness.IO in signs),
            moved_gpu_bytes=_mark(
                self.moved_gpu_bytes, look.gpu_bytes, has_moved=Witness.GPU_MEMORY in signs
            ),
            signs=MappingProxyType({**self.signs, **signs}) if signs else self.signs,
            look=look,
        )
        stage = _stage(load)
        has_moved = bool(signs) or stage is not self.stage
        load = load.entered(stage, look.at)
        if has_moved:
            return replace(load, last_progress=look.at, is_stalled=False)
        if self.is_stalled:
            return load
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
            has_ended_stalled=stage is Stage.NONE and bool(self.is_stalled),
            ended=now if stage is Stage.NONE else None,
        )

    @property
    def look_stage(self) -> Stage:
        """The stage of the newest look, also once it is over."""
        return _stage(self) if self.stage is Stage.NONE else self.stage

    @property
    def is_watched_late(self) -> bool:
        """Whether the agent came to it in the middle."""
        return self.watched.since(self.began) > WATCHED_LATE_SECONDS

    @property
    def seen_progress(self) -> Instant | None:
        """When it was last seen to move; None where the agent came late, and saw none yet."""
        is_seen = self.last_progress != self.watched or not self.is_watched_late
        return self.last_progress if is_seen else None

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


def _stage(load: LoadProgress) -> Stage:
    """The stage that the newest look shows; of witnesses that differ the one that saw the act."""
    look, weights, logged = load.look, load.weights, _logged(load.look)
    if look.shards and not _is_left_mapped(load):
        return Stage.LOAD_WEIGHTS
    if look.download is not None and look.download.is_under_way and weights is None:
        # vLLM says nothing of it, and its line on loading comes before.
        return Stage.DOWNLOAD
    if logged in _AFTER_WEIGHTS:
        return logged
    if weights is None:
        return logged or Stage.INIT
    is_loaded = weights.is_complete or load.unmapped_looks >= UNMAPPED_LOOKS
    if weights.source is Witness.LOG or not is_loaded or _is_bar_unfinished(look):
        return Stage.LOAD_WEIGHTS
    # Where there is no log nothing tells a compilation from what follows it.
    return Stage.WARMUP if look.is_eager else Stage.COMPILE


def _logged(look: LoadLook) -> Stage | None:
    return None if look.log is None else look.log.stage


def _is_left_mapped(load: LoadProgress) -> bool:
    """Whether its log went on to a later stage, and no other file was mapped since."""
    logged, mapped = load.logged_anew, load.mapped_anew
    if _logged(load.look) not in _AFTER_WEIGHTS or logged is None or mapped is None:
        return False
    return logged.since(mapped) >= 0


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
    if not load.look.can_see_progress(load.stage):
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
