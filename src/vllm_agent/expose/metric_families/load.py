"""Families on the load of a local server: its stage, how far it is, and how long loads take.

What tells of a load that is under way has series only for as long as it is, and of the stage that
it is in: bytes of a load that is over tell nothing, and a server keeps to its budget of series.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import PREFIX, Family, MetricType
from vllm_agent.expose.load_view import newest_load, watched_load
from vllm_agent.expose.metric_families.declare import LOCAL_MODES, gauge, one, running_gauge
from vllm_agent.lifecycle.load_history import LOAD_BUCKETS_SECONDS, STAGE_ORDER
from vllm_agent.lifecycle.states import LifecycleMode, ServerState
from vllm_agent.observations import Stage
from vllm_agent.snapshot import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Samples, ServerMoment
    from vllm_agent.lifecycle.load_progress import LoadProgress, Weights
    from vllm_agent.observations import Download
    from vllm_agent.snapshot import ServerSnapshot

# Walking an Enum is slow, and a scrape does it for every server.
_ALL_STAGES: Final = tuple(Stage)
# What a mode can produce; these series exist from the start.
_STAGES: Final = MappingProxyType({LifecycleMode.EXTERNAL: (Stage.NONE,)})


def _stage(server: ServerSnapshot) -> Samples:
    load = watched_load(server.life)
    if load is None and server.life.state is ServerState.STARTING:
        return ()  # it is in one of the stages, and nothing says in which
    current = Stage.NONE if load is None else load.stage
    stages = _STAGES.get(server.mode, _ALL_STAGES)
    return [((stage,), float(stage is current)) for stage in stages]


def _stage_seconds(moment: ServerMoment) -> Samples:
    life = moment.server.life
    load = newest_load(life)
    if load is None:
        last = life.load_history.last_stage_seconds
        return [((stage,), last[stage]) for stage in STAGE_ORDER if stage in last]
    return [
        ((stage,), seconds)
        for stage in STAGE_ORDER
        if (seconds := load.seconds_in(stage, moment.now)) is not None
    ]


def _ratio(server: ServerSnapshot) -> Samples:
    load = watched_load(server.life)
    ratio = None if load is None else load.ratio(load.stage)
    return () if load is None or ratio is None else (((load.stage,), ratio),)


def _of_load(
    value: Callable[[LoadProgress], float | None],
) -> Callable[[ServerSnapshot], Samples]:
    def samples(server: ServerSnapshot) -> Samples:
        load = watched_load(server.life)
        return () if load is None else one(value(load))

    return samples


def _of_download(value: Callable[[Download], int | None]) -> Callable[[ServerSnapshot], Samples]:
    def samples(server: ServerSnapshot) -> Samples:
        load = watched_load(server.life)
        if load is None or load.stage is not Stage.DOWNLOAD or load.download is None:
            return ()
        return one(value(load.download))

    return samples


def _of_weights(value: Callable[[Weights], int | None]) -> Callable[[ServerSnapshot], Samples]:
    def samples(server: ServerSnapshot) -> Samples:
        load = watched_load(server.life)
        if load is None or load.stage is not Stage.LOAD_WEIGHTS or load.weights is None:
            return ()
        return one(value(load.weights))

    return samples


def _last_progress(load: LoadProgress) -> float | None:
    seen = load.seen_progress
    return None if seen is None else seen.unix_seconds


def _durations(server: ServerSnapshot) -> Samples:
    history = server.life.load_history
    return (((), Histogram(history.counts, history.sum_seconds)),) if history.count else ()


LOAD_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    gauge(
        "load_stage",
        "Whether a starting server is in this stage of its load; none when it is not loading. "
        "Absent while it starts and was not looked at yet.",
        _stage,
        "stage",
    ),
    gauge(
        "load_progress_ratio",
        "How much of its download or of loading its weights is done, of the newest launch. Only "
        "while it is in that stage, and where it can be measured; falls when a file is begun anew.",
        _ratio,
        "stage",
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_download_bytes",
        "Bytes of the model's files on disk. Only while it downloads; falls when a file is begun "
        "anew.",
        _of_download(lambda download: download.done_bytes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_download_size_bytes",
        "What all files of the model come to. Only while it downloads, and where it is known.",
        _of_download(lambda download: download.size_bytes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_weights_bytes",
        "Bytes of the checkpoint's files that are loaded, by the slowest process. Only while it "
        "loads its weights.",
        _of_weights(lambda weights: weights.done_bytes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_weights_size_bytes",
        "What all files of the checkpoint come to. Only while it loads its weights.",
        _of_weights(lambda weights: weights.size_bytes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_last_progress_timestamp_seconds",
        "When its load last showed progress, in unix time. Only while it loads, and not before "
        "this agent saw any.",
        _of_load(_last_progress),
        modes=LOCAL_MODES,
    ),
    gauge(
        "load_stalled",
        "Whether its load has shown no progress for longer than it may. Only while it loads, and "
        "where something could have seen it move.",
        _of_load(lambda load: load.is_stalled),
        modes=LOCAL_MODES,
    ),
    Family(
        PREFIX + "load_duration_seconds",
        MetricType.HISTOGRAM,
        "How long its loads took, from the start of its process until it first served. Only those "
        "that came to serve; absent before the first; continues after a restart of the agent.",
        ("server",),
        (),
        _durations,
        LOCAL_MODES,
        LOAD_BUCKETS_SECONDS,
    ),
)

LOAD_TIME_FAMILIES: Final[tuple[Family[ServerMoment], ...]] = (
    running_gauge(
        "load_stage_seconds",
        "How long the newest launch has been in this stage of its load, or was; only of stages "
        "that it had. Of the last load that came to serve where this agent did not see the newest.",
        _stage_seconds,
        "stage",
        modes=LOCAL_MODES,
    ),
)
