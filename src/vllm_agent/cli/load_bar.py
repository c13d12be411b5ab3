"""The load of a server in a table: its stage, how much of that is done, and the time left. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.text import UNKNOWN, age
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.expose.load_view import LoadView

BAR_CELLS: Final = 10
"""A cell is a tenth, and beside it there is room in 80 columns for name, state and reason."""

DONE_SIGN: Final = "#"
OPEN_SIGN: Final = "-"
STALLED: Final = "stalled"

MAX_SECONDS_LEFT: Final = 99 * 24 * 3600.0
"""An estimate of more is none: a reading that has hardly begun says nothing of its end."""

MIN_SECONDS_LEFT: Final = 1.0
"""An estimate of less is none: it would be shown as `~0s` for as long as it is wrong."""


def load_of(server: ServerView) -> LoadView | None:
    """The load that is under way; an agent of an older version tells of none."""
    load = server.get("load")
    return None if load is None or load["stage"] == Stage.NONE else load


def stage_ratio(load: LoadView) -> float | None:
    """How much of the present stage is done, 0 to 1; None where nothing tells."""
    part = load["download"] if load["stage"] == Stage.DOWNLOAD else None
    if load["stage"] == Stage.LOAD_WEIGHTS and load["weights"] is not None:
        return load["weights"]["ratio"]
    return None if part is None else part["ratio"]


def percent(ratio: float) -> str:
    """A share in whole percent; all but everything is not 100%."""
    # 0.29 * 100 is less than 29 in floating point.
    return f"{math.floor(ratio * 100 + 1e-9)}%"


def bar_text(ratio: float, cells: int) -> str:
    """A share as a bar of so many cells; a cell is drawn once all of it is done."""
    done = min(cells, max(0, math.floor(ratio * cells + 1e-9)))
    return DONE_SIGN * done + OPEN_SIGN * (cells - done)


def left_text(load: LoadView) -> str:
    """The time left as an estimate, as in `~1m10s`; empty where there is none, or no end to see."""
    seconds = load["seconds_left"]
    if load["stalled"] or seconds is None:
        return ""
    return f"~{age(seconds)}" if MIN_SECONDS_LEFT <= seconds <= MAX_SECONDS_LEFT else ""


def table_cells(server: ServerView) -> tuple[str, str, str]:
    """Stage, share and time left, a word each; that it stalled takes the place of the time."""
    load = load_of(server)
    if load is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    ratio = stage_ratio(load)
    done = UNKNOWN if ratio is None else percent(ratio)
    return load["stage"], done, STALLED if load["stalled"] else left_text(load) or UNKNOWN


def drawn_forms(server: ServerView) -> tuple[str, str, str]:
    """The same in one cell: with a bar, without it, and stage and share alone."""
    load = load_of(server)
    if load is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    ratio = stage_ratio(load)
    left = STALLED if load["stalled"] else left_text(load)
    share = "" if ratio is None else percent(ratio)
    bar = "" if ratio is None else bar_text(ratio, BAR_CELLS)
    stage = load["stage"]
    short = (stage, STALLED if load["stalled"] else share)
    forms = ((stage, bar, share, left), (stage, share, left), short)
    with_bar, without_bar, shortest = (" ".join(filter(None, parts)) for parts in forms)
    return with_bar, without_bar, shortest
