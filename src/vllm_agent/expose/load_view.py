"""The load of a local server as the API tells it: stage, progress, and which witness gave what.

Values that grow with time are as of the newest look, whose time is told: a look comes every second
while it loads, so an answer is never older than its entity tag says.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypedDict

from vllm_agent.expose.json_text import duration, timestamp
from vllm_agent.expose.size_text import size_text
from vllm_agent.lifecycle.load_history import STAGE_ORDER, seconds_left
from vllm_agent.observations import Stage, Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import Instant, LoadLook
    from vllm_agent.snapshot import ServerSnapshot


class StageView(TypedDict):
    """One stage of a load, up to `as_of_timestamp_seconds`; null where it never came.

    `last_seconds` is how long it took in the load before this one that came to serve.
    """

    stage: str
    seconds: float | None
    last_seconds: float | None


class DownloadView(TypedDict):
    """The files of the model on their way to disk.

    `bytes` shrinks when a file is begun anew. `size_source` is `hf_cache` where the index in the
    cache tells what they come to, `hub` where the Hub does.
    """

    bytes: int
    size_bytes: int | None
    size_source: str | None
    ratio: float | None


class WeightsView(TypedDict):
    """How much of the checkpoint is loaded, by the slowest process.

    `shard` of `shards` is the file that is being loaded; bytes are of the files before it. `source`
    is the witness that told: `shards` or `log`.
    """

    shard: int
    shards: int
    bytes: int | None
    size_bytes: int | None
    ratio: float
    source: str


class WitnessView(TypedDict):
    """What one witness gave in the newest look, as a short sentence; null where it gave nothing.

    `last_progress_timestamp_seconds` is when it last showed progress, null if it never did.
    """

    witness: str
    told: str | None
    last_progress_timestamp_seconds: float | None


class LoadView(TypedDict):
    """How the newest launch loads, or loaded.

    `stage` is one of `stages`, or `none` once it serves or has ended. `stalled` is null where no
    witness could have seen it move. `last_progress_timestamp_seconds` is null where the agent came
    to it late and has not seen it move yet. `seconds` are since its process was started.
    `last_seconds` and those of the stages are null once this load serves itself. `seconds_left` is
    an estimate from this server's own loads, null where they tell none, and when it is over.
    `trouble` is the name of what its log says went wrong, null where it says nothing.
    """

    stage: str
    as_of_timestamp_seconds: float | None
    started_timestamp_seconds: float | None
    ended_timestamp_seconds: float | None
    last_progress_timestamp_seconds: float | None
    stalled: bool | None
    stages: list[StageView]
    seconds: float | None
    last_seconds: float | None
    seconds_left: float | None
    download: DownloadView | None
    weights: WeightsView | None
    trouble: str | None
    witnesses: list[WitnessView]


def newest_load(life: ServerLife) -> LoadProgress | None:
    """How the newest launch loads or loaded; None where this agent did not see it."""
    load, launch = life.load, life.launch
    is_of_newest = load is not None and launch is not None and load.process == launch.process
    return load if is_of_newest else None


def watched_load(life: ServerLife) -> LoadProgress | None:
    """The load that is under way; None where there is none, or it was not looked at yet."""
    load = newest_load(life)
    return None if load is None or load.stage is Stage.NONE else load


def load_view(server: ServerSnapshot) -> LoadView | None:
    """How the newest launch loads, or loaded; None where this agent did not see it."""
    life = server.life
    load, history = newest_load(life), life.load_history
    if load is None:
        return None
    at = load.ended or load.look.at
    # Once it serves it is the last load of the history itself.
    is_last = load.ended is not None and life.has_served_now
    last_stages = {} if is_last else history.last_stage_seconds
    return LoadView(
        stage=load.stage,
        as_of_timestamp_seconds=timestamp(at.unix_seconds),
        started_timestamp_seconds=timestamp(load.began.unix_seconds),
        ended_timestamp_seconds=None if load.ended is None else timestamp(load.ended.unix_seconds),
        last_progress_timestamp_seconds=_moment(load.seen_progress),
        stalled=load.is_stalled,
        stages=[
            StageView(
                stage=stage,
                seconds=duration(load.seconds_in(stage, at)),
                last_seconds=duration(last_stages.get(stage)),
            )
            for stage in STAGE_ORDER
        ],
        seconds=duration(at.since(load.began)),
        last_seconds=None if is_last else duration(history.last_seconds),
        seconds_left=duration(seconds_left(load, history, at)),
        download=_download_view(load),
        weights=_weights_view(load),
        trouble=load.look.trouble or None,
        witnesses=[
            WitnessView(
                witness=witness,
                told=_TELL[witness](load.look),
                last_progress_timestamp_seconds=_last_progress(load, witness),
            )
            for witness in _TELL
        ],
    )


def _download_view(load: LoadProgress) -> DownloadView | None:
    download = load.download
    if download is None:
        return None
    return DownloadView(
        bytes=download.done_bytes,
        size_bytes=download.size_bytes,
        size_source=download.size_source,
        ratio=load.ratio(Stage.DOWNLOAD),
    )


def _weights_view(load: LoadProgress) -> WeightsView | None:
    weights = load.weights
    if weights is None:
        return None
    return WeightsView(
        shard=weights.shard,
        shards=weights.shards,
        bytes=weights.done_bytes,
        size_bytes=weights.size_bytes,
        ratio=weights.ratio,
        source=weights.source,
    )


def _last_progress(load: LoadProgress, witness: Witness) -> float | None:
    return _moment(load.last_busy if witness is Witness.CPU else load.signs.get(witness))


def _moment(at: Instant | None) -> float | None:
    return None if at is None else timestamp(at.unix_seconds)


def _hf_cache_told(look: LoadLook) -> str | None:
    download = look.download
    if download is None:
        return None
    of = ""
    if download.size_bytes is not None and download.size_source is Witness.HF_CACHE:
        of = f" of {size_text(download.size_bytes)}"
    more = ", a file is on its way" if download.is_under_way else ""
    return f"{size_text(download.done_bytes)}{of} on disk{more}"


def _hub_told(look: LoadLook) -> str | None:
    download = look.download
    if download is None or download.size_bytes is None or download.size_source is not Witness.HUB:
        return None
    return f"all files come to {size_text(download.size_bytes)}"


def _shards_told(look: LoadLook) -> str | None:
    if look.shards is None:
        return None
    if not look.shards:
        return "no file of the checkpoint is mapped"
    slowest = min(look.shards, key=lambda shard: shard.number / shard.count)
    who = f", by the slowest of {len(look.shards)} processes" if len(look.shards) > 1 else ""
    return f"shard {slowest.number} of {slowest.count} is mapped{who}"


def _components_told(look: LoadLook) -> str:
    if look.has_worker:
        return "EngineCore and workers were started"
    return "EngineCore was started" if look.has_engine else "no EngineCore was started"


def _compile_cache_told(look: LoadLook) -> str | None:
    changes = look.compile_changes
    return None if changes is None else f"{changes} changes since the start"


def _log_told(look: LoadLook) -> str | None:
    log = look.log
    if log is None:
        return None
    parts = [] if log.stage is None else [f"stage {log.stage}"]
    if log.shard_count is not None:
        parts.append(f"{log.shards_done or 0} of {log.shard_count} shards loaded")
    return ", ".join((*parts, f"{log.new_lines} different lines"))


_TELL: Final[Mapping[Witness, Callable[[LoadLook], str | None]]] = MappingProxyType(
    {
        Witness.HF_CACHE: _hf_cache_told,
        Witness.HUB: _hub_told,
        Witness.SHARDS: _shards_told,
        Witness.IO: lambda look: _amount_told(look.io_bytes, "read and written"),
        Witness.GPU_MEMORY: lambda look: _amount_told(look.gpu_bytes, "held"),
        Witness.COMPONENTS: _components_told,
        Witness.COMPILE_CACHE: _compile_cache_told,
        Witness.LOG: _log_told,
        Witness.CPU: lambda look: (
            None if look.cpu_seconds is None else f"{look.cpu_seconds:.0f} s of CPU time"
        ),
    }
)


def _amount_told(size_bytes: int | None, what: str) -> str | None:
    return None if size_bytes is None else f"{size_text(size_bytes)} {what}"
