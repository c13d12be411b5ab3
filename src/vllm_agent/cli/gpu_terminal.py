"""Draws GPUs on a terminal. Imports rich, as `terminal` does, and so is imported as late."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vllm_agent.cli import terminal
from vllm_agent.cli.gpu_bar import SIGNS, Holder, bar
from vllm_agent.cli.gpu_lines import CompactRow, compact_rows
from vllm_agent.cli.gpu_rows import HEADINGS, LOST, device_lines, device_row, short_name
from vllm_agent.cli.text import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from vllm_agent.expose.gpu_view import GpusView, GpuView
    from vllm_agent.expose.json_view import ServersView

_TROUBLE: Final = Style(color="red", bold=True)
_HOLDER_STYLES: Final = {
    Holder.SERVERS: Style(color="green"),
    Holder.ORPHANS: Style(color="red", bold=True),
    Holder.OTHER: Style(color="yellow"),
    Holder.UNKNOWN: Style(color="magenta"),
    Holder.FREE: terminal.QUIET,
}
_DROPPED_FIRST: Final = ("POWER", "TEMP", "UTIL", "NAME", "MEMORY")
"""What a narrow terminal does without, in this order: memory is what this is about."""

_MIN_NAME_WIDTH: Final = 8
"""Enough to tell devices apart (`H100 80…`); with less room the name goes."""

_NAME: Final = 1
"""The place of the name in a compact row."""

_MIN_HOLDERS_WIDTH: Final = 8
"""A column of less is no text any more; all else is cut before it."""

_PART_OF_GPUS: Final = 3
"""One line of a terminal in so many is theirs, however many servers there are."""

_MIN_GPU_LINES: Final = 2
"""A device, and how many more there are."""

_LINES_AROUND_SERVERS: Final = 3
"""The sum, an empty line and the heading."""


def devices(view: GpusView, now_unix_seconds: float) -> RenderableType:
    """Every device as a row with a bar, and below it who holds its memory."""
    return Group(*_devices(view, now_unix_seconds))


def watched_devices(
    view: GpusView, now_unix_seconds: float, notes: Sequence[str], max_lines: int
) -> RenderableType:
    """The same below `notes`, as far as there is room."""
    drawn = terminal.warnings(notes)
    if view["gpus"]:
        drawn += _devices(view, now_unix_seconds)
    ends = list(accumulate(terminal.line_count(one) for one in drawn))
    if not drawn or ends[-1] <= max_lines:
        return Group(*drawn)
    kept = bisect_right(ends, max_lines - 1)
    left_out = ends[-1] - (ends[kept - 1] if kept else 0)
    return Group(*drawn[:kept], _left_out(f"{left_out} more lines"))


def _devices(view: GpusView, now_unix_seconds: float) -> list[RenderableType]:
    rows = [dict(zip(HEADINGS, _cells(gpu, view["gpus"]), strict=True)) for gpu in view["gpus"]]
    widths = {
        heading: max(len(heading), *(row[heading].cell_len for row in rows)) for heading in HEADINGS
    }
    indent = widths["GPU"] + terminal.GAP
    widths = fit(widths, terminal.width())
    headings = {heading: Text(heading, style=terminal.QUIET) for heading in HEADINGS}
    drawn: list[RenderableType] = [_in_columns(headings, widths)]
    for gpu, row in zip(view["gpus"], rows, strict=True):
        drawn.append(_in_columns(row, widths))
        for line in device_lines(gpu, now_unix_seconds):
            style = _TROUBLE if line.holder is None else _HOLDER_STYLES[line.holder]
            text = Text(line.text, style, overflow="fold")
            drawn.append(Padding(text, (0, 0, 0, indent), expand=False))
    if "MEMORY" in widths:
        drawn += [Text(), _legend(view["gpus"])]
    return drawn


def servers_and_gpus(
    servers: ServersView,
    gpus: GpusView | None,
    now_unix_seconds: float,
    notes: Sequence[str] = (),
    max_lines: int | None = None,
) -> RenderableType:
    """The table of servers, and below it a line per device."""
    rows = [] if gpus is None else compact_rows(gpus)
    if not rows:
        return terminal.servers_table(servers, now_unix_seconds, notes, max_lines)
    if max_lines is None:
        above = terminal.servers_table(servers, now_unix_seconds, notes)
        return Group(above, Text(), _compact(rows, is_one_line=False))
    needed = len(servers["servers"]) + len(notes) + _LINES_AROUND_SERVERS
    room = max(_MIN_GPU_LINES, max_lines // _PART_OF_GPUS - 1, max_lines - needed - 1)
    below = _cut_compact(rows, room)
    # What is taken off beside theirs is the empty line between the two.
    rest = max_lines - 1 - min(len(rows), room)
    return Group(terminal.servers_table(servers, now_unix_seconds, notes, rest), Text(), below)


def fit(widths: dict[str, int], available: int) -> dict[str, int]:
    """The columns that there is room for, and how wide each may be."""
    widths = dict(widths)
    for heading in _DROPPED_FIRST:
        excess = terminal.total_width(widths) - available
        if excess <= 0:
            break
        if widths.get("NAME", 0) - excess >= _MIN_NAME_WIDTH:
            widths["NAME"] -= excess
            break
        widths.pop(heading)
    return widths


def _cells(gpu: GpuView, gpus: Sequence[GpuView]) -> list[Text]:
    cells = dict(zip(HEADINGS, device_row(gpu, gpus), strict=True)) | {"NAME": short_name(gpu)}
    styled = {
        heading: Text(text, style=terminal.QUIET if text == UNKNOWN else "")
        for heading, text in cells.items()
    }
    if holders := bar(gpu):
        runs = ((SIGNS[who] * len(list(run)), _HOLDER_STYLES[who]) for who, run in groupby(holders))
        styled["MEMORY"] = Text.assemble(*runs)
    return list(styled.values())


def _in_columns(row: dict[str, Text], widths: dict[str, int]) -> Text:
    cells = []
    for heading, width in widths.items():
        cell = row[heading].copy()
        cell.truncate(width, overflow="ellipsis", pad=True)
        cells.append(cell)
    line = Text(" " * terminal.GAP, no_wrap=True, overflow="ellipsis").join(cells)
    line.rstrip()
    return line


def _legend(gpus: Sequence[GpuView]) -> Text:
    """What the signs mean that are in some bar."""
    there = {who for gpu in gpus for who in bar(gpu)}
    told = [Text(f"{SIGNS[who]} {who}", _HOLDER_STYLES[who]) for who in Holder if who in there]
    return Text("   ").join(told)


def _cut_compact(rows: Sequence[CompactRow], max_lines: int) -> RenderableType:
    """As many lines as there is room for, at least one, and how many are left out."""
    if len(rows) <= max_lines:
        return _compact(rows, is_one_line=True)
    count = max(1, max_lines - 1)
    return Group(_compact(rows[:count], is_one_line=True), _left_out(f"{len(rows) - count} more"))


def _left_out(what: str) -> Text:
    text = f"… {what}: 'vllm-agent gpus' shows all"
    return Text(text, terminal.QUIET, no_wrap=True, overflow="ellipsis")


def _compact(rows: Sequence[CompactRow], *, is_one_line: bool) -> RenderableType:
    """The devices without their names where these would cost what matters."""
    *widths, last = (
        max(Text(cell).cell_len for cell in column) for column in zip(*rows, strict=True)
    )
    room = terminal.width() - sum(widths) - terminal.GAP * len(widths)
    has_names = last <= room
    if not has_names:
        room += widths.pop(_NAME) + terminal.GAP
    table = Table.grid(padding=(0, terminal.GAP, 0, 0), pad_edge=False)
    for width in widths:
        table.add_column(no_wrap=True, width=width)
    table.add_column(
        no_wrap=is_one_line,
        overflow="ellipsis" if is_one_line else "fold",
        width=max(_MIN_HOLDERS_WIDTH, min(last, room)),
    )
    for *cells, holders in rows:
        if not has_names:
            cells.pop(_NAME)
        table.add_row(*cells, _holders(holders))
    return table


def _holders(text: str) -> Text:
    drawn = Text(text)
    drawn.highlight_words([LOST, "orphans"], _TROUBLE)
    return drawn
