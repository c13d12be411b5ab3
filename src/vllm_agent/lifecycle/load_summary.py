"""A load in a few words, for the agent's log. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.load_history import seconds_left
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.load_history import LoadHistory
    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.observations import Instant

SUMMARY_SECONDS: Final = 15.0
"""From one line on a load to the next."""


def summary(load: LoadProgress, history: LoadHistory, now: Instant) -> Mapping[str, object]:
    """The stage, how long the load has taken, and what is known of its progress; by field."""
    told: dict[str, object] = {
        "stage": load.stage,
        "seconds": round(now.since(load.began)),
    }
    weights, download = load.weights, load.download
    if load.stage is Stage.DOWNLOAD and download is not None:
        told["bytes"] = download.done_bytes
        if download.size_bytes is not None:
            told["size_bytes"] = download.size_bytes
    if load.stage is Stage.LOAD_WEIGHTS and weights is not None:
        told["shard"] = f"{weights.shard}/{weights.shards}"
        if weights.done_bytes is not None and weights.size_bytes is not None:
            told["bytes"], told["size_bytes"] = weights.done_bytes, weights.size_bytes
    if load.is_stalled:
        told["quiet_seconds"] = round(now.since(load.last_progress))
    left = seconds_left(load, history, now)
    if left is not None:
        told["seconds_left"] = round(left)
    return told
