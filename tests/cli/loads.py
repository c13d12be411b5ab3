"""Servers that load, for the tests of commands."""

from __future__ import annotations

import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.expose.snapshots import GIB, MAIN, life, local_server
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.load_progress import LoadProgress, Weights
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Launch
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import (
    Download,
    Instant,
    LoadLook,
    LogProgress,
    Shard,
    Stage,
    Witness,
)

if TYPE_CHECKING:
    from vllm_agent.snapshot import ServerSnapshot

LAST_TIME = LoadHistory(
    last_seconds=150.0,
    last_stage_seconds=MappingProxyType(
        {Stage.INIT: 12.0, Stage.LOAD_WEIGHTS: 80.0, Stage.COMPILE: 58.0}
    ),
)
"""A load before this one, without a download."""

HALF = Weights(shard=5, shards=8, done_bytes=8 * GIB, size_bytes=16 * GIB)


def ago(seconds: float) -> Instant:
    """So long before now. Unix times are apart by what passes between two calls, too."""
    return Instant(10_000.0 - seconds, time.time() - seconds)


def load(stage: Stage = Stage.LOAD_WEIGHTS, **changes: Any) -> LoadProgress:
    """A load begun 72 s ago, for 30 s in that stage; half of its weights are read."""
    look = LoadLook(
        process=MAIN,
        at=ago(0),
        has_engine=True,
        has_worker=True,
        shards=(Shard(4100, 5, 8, 8 * GIB, 16 * GIB),),
        io_bytes=9 * GIB,
        cpu_seconds=41.0,
        log=LogProgress(Stage.LOAD_WEIGHTS, new_lines=37, shards_done=4, shard_count=8),
    )
    begun = LoadProgress(
        process=MAIN,
        began=ago(72),
        watched=ago(71),
        stage=stage,
        stage_entered=ago(30),
        last_progress=ago(2.5),
        look=look,
        stage_seconds=MappingProxyType({Stage.INIT: 42.0}),
        weights=HALF,
        signs=MappingProxyType({Witness.SHARDS: ago(2), Witness.IO: ago(3)}),
    )
    return replace(begun, **changes)


def downloading(done_gib: float, size_gib: float | None, **changes: Any) -> LoadProgress:
    """A load whose model is on its way."""
    size = None if size_gib is None else int(size_gib * GIB)
    source = None if size is None else Witness.HF_CACHE
    download = Download(int(done_gib * GIB), size, source, is_under_way=True)
    return load(Stage.DOWNLOAD, **{"download": download, "weights": None, **changes})


def loading_server(
    name: str = "llama", of: LoadProgress | None = None, **changes: Any
) -> ServerSnapshot:
    """A local server that loads."""
    progress = load() if of is None else of
    loading = life(
        Phase.LOADING,
        entered=ago(72),
        launch=Launch(1, time.time() - 72, ago(72), process=MAIN),
        has_served=False,
        load=progress,
        load_history=LAST_TIME,
    )
    return local_server(name, life=replace(loading, **changes))


def late_load(**changes: Any) -> LoadProgress:
    """A load that the agent came to in the middle, and has not seen to move."""
    came = ago(2.5)
    return load(
        **{"watched": came, "last_progress": came, "signs": MappingProxyType({}), **changes}
    )


def stalled_server(name: str = "llama", of: LoadProgress | None = None) -> ServerSnapshot:
    """A local server whose load has not moved for six minutes and two seconds."""
    progress = load() if of is None else of
    stalled = replace(progress, is_stalled=True, last_progress=ago(362.5))
    return loading_server(
        name,
        stalled,
        phase=Phase.STALLED,
        reason=Reason.LOAD_STALLED,
        detail="its load made no progress for 300 s in stage load_weights",
        entered=ago(62),
    )
