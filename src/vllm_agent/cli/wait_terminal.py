"""Draws a wait on a terminal. Imports rich, as `terminal` does, and so is imported as late."""

from __future__ import annotations

import math
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vllm_agent.cli import terminal
from vllm_agent.cli.load_bar import bar_text, left_text, load_of, percent, stage_ratio
from vllm_agent.cli.load_lines import pause_text, stage_amount, trouble_text
from vllm_agent.cli.text import age, age_of, plain
from vllm_agent.cli.wait_lines import abandon_stderr, failure_lines, headline
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import RenderableType

    from vllm_agent.cli.wait_lines import WaitLook
    from vllm_agent.expose.load_view import LoadView

REDRAW_SECONDS: Final = 1.0
"""Times are shown in seconds."""

MAX_BAR_CELLS: Final = 40
MIN_BAR_CELLS: Final = 5
"""A cell is a fifth; with less room the bytes go, and then the bar."""

MAX_NAME_CELLS: Final = 24
MIN_NAME_CELLS: Final = 4
"""What follows a name matters more than its end; with less room what a load does stands alone."""


def can_draw() -> bool:
    """Whether standard error is a terminal that can go back to the line before."""
    if sys.stderr is None:
        return False
    console = _console()
    return console.is_terminal and not console.is_dumb_terminal


class LiveBar:
    """Two lines that follow the server and leave with the wait; failures stay above them."""

    def __init__(self) -> None:
        self._live = Live(
            console=_console(),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._shown: tuple[object, ...] = ()
        self._drawn_seconds = -math.inf
        self._condition: tuple[str | None, ...] = ()
        self._is_read = True

    def __enter__(self) -> Self:
        # SIGTERM has to leave the cursor as it was, as Ctrl-C does.
        signal.signal(signal.SIGTERM, _leave)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._live.stop()
        except OSError:
            abandon_stderr()

    def show(self, look: WaitLook) -> None:
        """Draws what is new, and every second what grows with time."""
        if not self._is_read:
            return
        try:
            self._show(look)
        except OSError:
            self._is_read = False
            abandon_stderr()

    def _show(self, look: WaitLook) -> None:
        if look.condition != self._condition:
            self._condition = look.condition
            if look.is_failure:
                self._keep([headline(look), *failure_lines(look.server)])
        shown = (look.server, look.trouble)
        if shown == self._shown and look.now_seconds - self._drawn_seconds < REDRAW_SECONDS:
            return
        self._shown, self._drawn_seconds = shown, look.now_seconds
        self._live.update(frame(look, self._live.console.width), refresh=True)

    def _keep(self, lines: list[str]) -> None:
        self._live.console.print(Text("\n".join(lines)), soft_wrap=True)


def frame(look: WaitLook, width: int) -> RenderableType:
    """The server, and how far its load is."""
    load = load_of(look.server)
    lines = [_line(_head(look, load, width))]
    if load is not None and (parts := _bar(load, width)):
        lines.append(_line(parts))
    notes = (look.trouble, "" if load is None else trouble_text(load))
    return Group(*terminal.warnings([note for note in notes if note]), *lines)


def _head(look: WaitLook, load: LoadView | None, width: int) -> list[Text]:
    """The server, its state and what it does, or what is waited for; without what has no room."""
    server = look.server
    name = Text(plain(server["name"]))
    name.truncate(MAX_NAME_CELLS, overflow="ellipsis")
    state = Text(server["state"], terminal.state_style(server["state"]))
    since = age_of(server["state_entered_timestamp_seconds"], look.now_unix_seconds)
    doing = Text(f"waiting for {' or '.join(look.states)}" if load is None else _doing(load))
    end = []
    if math.isfinite(look.rest_seconds):
        end.append(Text(f"gives up in {age(look.rest_seconds)}", terminal.QUIET))
    fullest = [name, Text.assemble(state, f" for {since}"), doing, *end]
    # Which stage it is in says that it starts, and the line below that it has stalled.
    shortest = [name, state, doing] if load is None else [name, doing]
    for parts in (fullest, [name, state, doing, *end], [name, state, doing], shortest):
        if _width(parts) <= width:
            return parts
    name.truncate(
        max(MIN_NAME_CELLS, width - _width(shortest[1:]) - terminal.GAP), overflow="ellipsis"
    )
    return shortest if _width(shortest) <= width or load is None else [doing]


def _doing(load: LoadView) -> str:
    weights = load["weights"]
    if load["stage"] == Stage.LOAD_WEIGHTS and weights is not None:
        return f"{load['stage']}, shard {weights['shard']} of {weights['shards']}"
    return load["stage"]


def _bar(load: LoadView, width: int) -> list[Text]:
    """A bar, its share, bytes and the time left; where there is no room without bar and bytes."""
    ratio = stage_ratio(load)
    share = [] if ratio is None else [Text(percent(ratio))]
    amount = [Text(text)] if (text := stage_amount(load)) else []
    end = []
    if pause := pause_text(load):
        end.append(Text(pause, terminal.state_style("failed" if load["stalled"] else "starting")))
    if left := left_text(load):
        end.append(Text(f"{left} left"))
    if ratio is None:
        return end if end and _width([*amount, *end]) > width else [*amount, *end]
    for parts in ([*share, *amount, *end], [*share, *end]):
        cells = min(MAX_BAR_CELLS, width - _width(parts) - terminal.GAP)
        if cells >= MIN_BAR_CELLS:
            return [terminal.with_bar(Text(bar_text(ratio, cells))), *parts]
    return [*share, *end]


def _width(parts: list[Text]) -> int:
    return sum(part.cell_len for part in parts) + terminal.GAP * (len(parts) - 1)


def _line(parts: list[Text]) -> Text:
    return Text(" " * terminal.GAP, no_wrap=True, overflow="ellipsis").join(parts)


def _console() -> Console:
    return Console(stderr=True, highlight=False, emoji=False)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
