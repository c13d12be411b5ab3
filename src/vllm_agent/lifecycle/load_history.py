"""What the loads of a server have taken so far: the measure of the one that runs. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.observations import Instant

LOAD_BUCKETS_SECONDS: Final = (30.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds of load durations: a tiny model takes half a minute, a large one that has to be
downloaded and compiled an hour."""

LOADING_STAGES: Final[tuple[Stage, ...]] = tuple(
    stage for stage in Stage if stage is not Stage.NONE
)
"""The stages of a load; most loads pass through them in the order of `STAGE_ORDER`."""

STAGE_ORDER: Final = (
    Stage.INIT,
    Stage.DOWNLOAD,
    Stage.LOAD_WEIGHTS,
    Stage.COMPILE,
    Stage.WARMUP,
)


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """The loads of a server that came to serve.

    `counts` are per bucket of `LOAD_BUCKETS_SECONDS`, with one place more for +Inf.
    `last_stage_seconds` are of the last load that the agent watched from its beginning,
    `longest_stage_seconds` the longest of any.
    """

    counts: tuple[int, ...] = (0,) * (len(LOAD_BUCKETS_SECONDS) + 1)
    sum_seconds: float = 0.0
    last_seconds: float | None = None
    last_stage_seconds: Mapping[Stage, float] = field(default_factory=lambda: MappingProxyType({}))
    longest_stage_seconds: Mapping[Stage, float] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def with_load(self, load: LoadProgress, served: Instant) -> LoadHistory:
        """The same with one load more, that began to serve at that moment."""
        seconds = max(0.0, served.since(load.began))
        place = bisect_left(LOAD_BUCKETS_SECONDS, seconds)
        counted = replace(
            self,
            counts=(*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :]),
            sum_seconds=self.sum_seconds + seconds,
            last_seconds=seconds,
        )
        if load.is_watched_late:
            return counted
        stages: dict[Stage, float] = {
            stage: spent
            for stage in LOADING_STAGES
            if (spent := load.seconds_in(stage, served)) is not None
        }
        longest = {
            stage: max(stages.get(stage, 0.0), self.longest_stage_seconds.get(stage, 0.0))
            for stage in stages.keys() | self.longest_stage_seconds.keys()
        }
        return replace(
            counted,
            last_stage_seconds=MappingProxyType(stages),
            longest_stage_seconds=MappingProxyType(longest),
        )

    @property
    def count(self) -> int:
        """How many loads there were."""
        return sum(self.counts)


def seconds_left(load: LoadProgress, history: LoadHistory, now: Instant) -> float | None:
    """About how long the load still takes; None where no load before tells, or it is over.

    Of the stage that it is in: by its own speed where its share is known, else what is left of
    the time that it took the last time. Of those that follow: the time that they took then, but
    for a download of what is there already. What has stalled, or takes longer than it did then,
    has no measure.
    """
    if load.stage is Stage.NONE or load.is_stalled or not history.last_stage_seconds:
        return None
    spent = load.seconds_in(load.stage, now) or 0.0
    ratio = load.ratio(load.stage)
    expected = history.last_stage_seconds.get(load.stage)
    if ratio:
        left = spent / ratio - spent
    elif expected is not None and spent <= expected:
        left = expected - spent
    else:
        return None
    following = set(STAGE_ORDER[STAGE_ORDER.index(load.stage) + 1 :])
    if load.download is not None and not load.download.is_under_way:
        following.discard(Stage.DOWNLOAD)
    return left + sum(history.last_stage_seconds.get(stage, 0.0) for stage in following)
