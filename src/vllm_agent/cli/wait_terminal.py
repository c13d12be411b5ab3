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
MIN_BAR_CELLS: Final = 10
"""A cell is a tenth; with less room the line is cut at its end instead."""

MAX_NAME_CELLS: Final = 24
"""What follows a name matters more than its end."""


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
    server = look.server
    name = Text(plain(server["name"]))
    name.truncate(MAX_NAME_CELLS, overflow="ellipsis")
    state = Text(server["state"], terminal.state_style(server["state"]))
    load = load_of(server)
    since = age_of(server["state_entered_timestamp_seconds"], look.now_unix_seconds)
    parts = [name, Text.assemble(state, f" for {since}")]
    if load is None:
        parts.append(Text(f"waiting for {' or '.join(look.states)}"))
    else:
        parts.append(Text(_doing(load)))
    if math.isfinite(look.rest_seconds):
        parts.append(Text(f"gives up in {age(look.rest_seconds)}", terminal.QUIET))
    lines = [_line(parts)]
    if load is not None:
        lines += _bar(load, width)
    notes = (look.trouble, "" if load is None else trouble_text(load))
    return Group(*terminal.warnings([note for note in notes if note]), *lines)


def _doing(load: LoadView) -> str:
    weights = load["weights"]
    if load["stage"] == Stage.LOAD_WEIGHTS and weights is not None:
        return f"{load['stage']}, shard {weights['shard']} of {weights['shards']}"
    return load["stage"]


def _bar(load: LoadView, width: int) -> list[Text]:
    ratio = stage_ratio(load)
    told = ["" if ratio is None else percent(ratio), stage_amount(load)]
    parts = [Text(text) for text in told if text]
    if pause := pause_text(load):
        parts.append(Text(pause, terminal.state_style("failed" if load["stalled"] else "starting")))
    if left := left_text(load):
        parts.append(Text(f"{left} left"))
    if ratio is not None:
        room = width - sum(part.cell_len + terminal.GAP for part in parts)
        cells = max(MIN_BAR_CELLS, min(MAX_BAR_CELLS, room))
        parts.insert(0, terminal.with_bar(Text(bar_text(ratio, cells))))
    return [_line(parts)] if parts else []


def _line(parts: list[Text]) -> Text:
    return Text(" " * terminal.GAP, no_wrap=True, overflow="ellipsis").join(parts)


def _console() -> Console:
    return Console(stderr=True, highlight=False, emoji=False)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
