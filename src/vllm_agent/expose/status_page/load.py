"""The load of a server on the status page: its stage, how far that is, and what is left."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.load_view import watched_load
from vllm_agent.expose.size_text import size_text
from vllm_agent.expose.status_page.words import moment, span
from vllm_agent.lifecycle.load_history import seconds_left
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.lifecycle.load_progress import LoadProgress
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

_UNSEEN: Final = "nothing is seen that could tell whether it moves"


def load_lines(server: ServerSnapshot, now: Instant) -> Iterator[str]:
    """How far the load is that is under way, as of its newest look; nothing where none is."""
    load, history = watched_load(server.life), server.life.load_history
    if load is None:
        return
    stage, at = load.stage, load.look.at
    spent, last = load.seconds_in(stage, at) or 0.0, history.last_stage_seconds.get(stage)
    before = "" if last is None else f', <span class="quiet">{span(last)} the last time</span>'
    yield f"stage <strong>{stage}</strong> for {span(spent)}{before}"
    ratio = load.ratio(stage)
    parts = [] if ratio is None else [_bar(server.name, load.stage, ratio)]
    parts += _amounts(load)
    left = seconds_left(load, history, at)
    if left is not None and left >= 1:
        parts.append(f"about {span(left)} left")
    if parts:
        yield ", ".join(parts)
    if load.is_stalled is not False:
        seen = load.seen_progress
        moved = "no progress seen yet"
        if seen is not None:
            moved = f"last progress {moment(seen.unix_seconds, now)}"
        yield f"<strong>stalled</strong>, {moved}" if load.is_stalled else f"{_UNSEEN}; {moved}"
    if load.look.trouble and not load.is_stalled:
        yield f"its log says: {escape(load.look.trouble)}"


def _bar(name: str, stage: Stage, ratio: float) -> str:
    """The text after it says the same to who does not see it."""
    label = escape(f"{stage} of {name}")
    percent = f"{100 * ratio:.0f} %"
    bar = f'<progress aria-label="{label}" max="1" value="{ratio:.3f}">{percent}</progress>'
    return f"{bar} {percent}"


def _amounts(load: LoadProgress) -> Iterator[str]:
    """Shards and bytes of the stage that it is in."""
    download, weights = load.download, load.weights
    if load.stage is Stage.DOWNLOAD and download is not None:
        yield _of(download.done_bytes, download.size_bytes)
    if load.stage is Stage.LOAD_WEIGHTS and weights is not None:
        yield f"shard {weights.shard} of {weights.shards}"
        if weights.done_bytes is not None:
            yield _of(weights.done_bytes, weights.size_bytes)


def _of(done_bytes: int, size_bytes: int | None) -> str:
    of = "" if size_bytes is None else f" of {size_text(size_bytes)}"
    return f"{size_text(done_bytes)}{of}"
