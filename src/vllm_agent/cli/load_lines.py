"""The load of a server as sentences and labelled lines. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.load_bar import (
    STALLED,
    bar_text,
    left_text,
    load_of,
    percent,
    stage_ratio,
)
from vllm_agent.cli.text import UNKNOWN, age, age_of, local_time, plain
from vllm_agent.expose.size_text import size_text
from vllm_agent.observations import Stage, Witness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.expose.load_view import (
        DownloadView,
        LoadView,
        StageView,
        WeightsView,
        WitnessView,
    )

DETAIL_BAR_CELLS: Final = 20
"""As long as the bar of a GPU."""

PAUSE_SECONDS: Final = 15.0
"""A load that has not moved for so long is told to be quiet: most show something every second."""

NOT_SEEN_YET: Final = "no progress seen yet"
"""Of a load that the agent came to in the middle: when it moved before, nobody knows."""

_SIZE_SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {Witness.HF_CACHE: "the index in the cache", Witness.HUB: "the Hub"}
)


def load_parts(load: LoadView) -> list[str]:
    """Where a load is, what matters first: `load_weights 52%`, `shard 3 of 8`, `~1m10s left`."""
    ratio = stage_ratio(load)
    parts = [load["stage"] + ("" if ratio is None else f" {percent(ratio)}")]
    if pause := pause_text(load):
        parts.append(pause)
    if load["stage"] == Stage.LOAD_WEIGHTS and load["weights"] is not None:
        parts.append(_shard(load["weights"]))
    if amount := stage_amount(load):
        parts.append(amount)
    if told := trouble_text(load):
        parts.append(told)
    if left := left_text(load):
        parts.append(f"{left} left")
    return parts


def pause_text(load: LoadView) -> str:
    """That it has not moved for a while, or has stalled, and for how long; empty while it moves."""
    seen, moved = load["as_of_timestamp_seconds"], load["last_progress_timestamp_seconds"]
    if seen is None or moved is None:
        return STALLED if load["stalled"] else ""
    if load["stalled"]:
        return f"{STALLED} for {age(seen - moved)}"
    return f"no progress for {age(seen - moved)}" if seen - moved >= PAUSE_SECONDS else ""


def stage_amount(load: LoadView) -> str:
    """The bytes of the present stage, as in `8.3 GiB of 16.0 GiB`; empty where none are told."""
    if load["stage"] == Stage.DOWNLOAD and load["download"] is not None:
        return _amount(load["download"]["bytes"], load["download"]["size_bytes"])
    if load["stage"] == Stage.LOAD_WEIGHTS and load["weights"] is not None:
        return _amount(load["weights"]["bytes"], load["weights"]["size_bytes"])
    return ""


def trouble_text(load: LoadView) -> str:
    """What its log says went wrong; empty where it says nothing, or an older agent knows of none.

    It may load on all the same: vLLM tries a download again.
    """
    trouble = load.get("trouble")
    return f"its log says {plain(trouble)}" if trouble else ""


def quiet_text(load: LoadView, now_unix_seconds: float) -> str:
    """When it last made progress, and whether that is too long ago."""
    at = load["last_progress_timestamp_seconds"]
    ago = age_of(at, now_unix_seconds)
    if load["stalled"]:
        quiet = NOT_SEEN_YET if at is None else f"no progress for {ago}, since {local_time(at)}"
        return f"{STALLED} in {load['stage']}, {quiet}"
    if load["stalled"] is None:
        since = "yet" if at is None else f"for {ago}"
        return f"none seen {since}: nothing that the agent may see shows whether it moves"
    return "none seen yet" if at is None else f"last {ago} ago"


def load_rows(server: ServerView, now_unix_seconds: float) -> Iterator[tuple[str, str]]:
    """Label and text of each line; few of a load that is over."""
    load = server.get("load")
    if load is None:
        return
    if load_of(server) is None:
        yield from _over(load)
        return
    now = _stage(load, load["stage"])
    spent = "" if now is None or now["seconds"] is None else f" for {age(now['seconds'])}"
    left = left_text(load)
    total = "" if load["seconds"] is None else f", started {age(load['seconds'])} ago"
    yield "load", f"{load['stage']}{spent}{total}" + (f", {left} left" if left else "")
    if load["download"] is not None:
        yield "download", _download(load["download"])
    if load["weights"] is not None:
        yield "weights", _weights(load["weights"])
    yield "progress", quiet_text(load, now_unix_seconds)
    if told := trouble_text(load):
        yield "trouble", told
    yield from _stages(load["stages"])
    yield from _witnesses(load["witnesses"], now_unix_seconds)


def _over(load: LoadView) -> Iterator[tuple[str, str]]:
    """What a load took, and how far it got if that was not to the end."""
    took = [f"{one['stage']} {age(one['seconds'])}" for one in load["stages"] if one["seconds"]]
    stages = f" ({', '.join(took)})" if took else ""
    seconds = load["seconds"]
    spent = "" if seconds is None else f" after {age(seconds)}"
    yield "load", f"over{spent}{stages}"
    download, weights = load["download"], load["weights"]
    if download is not None and download["ratio"] is not None and download["ratio"] < 1:
        yield "download", _download(download)
    if weights is not None and weights["ratio"] < 1:
        yield "weights", _weights(weights)


def _download(download: DownloadView) -> str:
    source = download["size_source"]
    told = "" if source is None else f" as {_SIZE_SOURCES.get(source, source)} has it"
    amount = _amount(download["bytes"], download["size_bytes"]) + told
    return _with_bar(download["ratio"], amount)


def _weights(weights: WeightsView) -> str:
    amount = _amount(weights["bytes"], weights["size_bytes"])
    return _with_bar(weights["ratio"], ", ".join(filter(None, (_shard(weights), amount))))


def _with_bar(ratio: float | None, text: str) -> str:
    if ratio is None:
        return text
    return f"{bar_text(ratio, DETAIL_BAR_CELLS)} {percent(ratio)}, {text}"


def _shard(weights: WeightsView) -> str:
    return f"shard {weights['shard']} of {weights['shards']}"


def _amount(done: int | None, size: int | None) -> str:
    if done is None:
        return ""
    return size_text(done) + ("" if size is None else f" of {size_text(size)}")


def _stage(load: LoadView, name: str) -> StageView | None:
    return next((one for one in load["stages"] if one["stage"] == name), None)


def _stages(stages: list[StageView]) -> Iterator[tuple[str, str]]:
    told = [one for one in stages if one["seconds"] is not None or one["last_seconds"] is not None]
    name = max((len(one["stage"]) for one in told), default=0)
    spent = max((len(_age(one["seconds"])) for one in told), default=0)
    for index, one in enumerate(told):
        last = one["last_seconds"]
        before = "" if last is None else f"  last time {age(last)}"
        text = f"{one['stage']:{name}}  {_age(one['seconds']):{spent}}{before}"
        yield "" if index else "stages", text.rstrip()


def _age(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else age(seconds)


def _witnesses(witnesses: list[WitnessView], now: float) -> Iterator[tuple[str, str]]:
    told = [one for one in witnesses if one["told"] is not None]
    width = max((len(one["witness"]) for one in told), default=0)
    heading = "seen by"
    for one in told:
        text = f"{one['witness']:{width}}  {plain(one['told'] or UNKNOWN)}; {_sign(one, now)}"
        yield heading, text
        heading = ""
    if silent := [one["witness"] for one in witnesses if one["told"] is None]:
        yield "not seen by", ", ".join(silent)


def _sign(witness: WitnessView, now: float) -> str:
    at = witness["last_progress_timestamp_seconds"]
    # CPU time is no progress: a hang spins, too.
    if witness["witness"] == Witness.CPU:
        return "not busy yet" if at is None else f"busy {age_of(at, now)} ago"
    return "no progress yet" if at is None else f"progress {age_of(at, now)} ago"
