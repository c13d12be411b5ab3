"""Draws on a terminal. It imports rich, and so is imported only when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vllm_agent.cli.load_bar import DONE_SIGN, OPEN_SIGN, STALLED, drawn_forms, load_of
from vllm_agent.cli.server_details import detail_rows
from vllm_agent.cli.status_table import (
    HEADINGS,
    remarks,
    rows_in_order,
    state_counts,
    summary,
    table_row,
)
from vllm_agent.cli.text import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from vllm_agent.expose.gpu_view import GpusView
    from vllm_agent.expose.json_view import ServersView, ServerView

_STATE_STYLES: Final = {
    "running": Style(color="green", bold=True),
    "starting": Style(color="yellow", bold=True),
    "stopping": Style(color="yellow", bold=True),
    "failed": Style(color="red", bold=True),
    "crashed": Style(color="red", bold=True, reverse=True),
    "stopped": Style(dim=True),
    "unknown": Style(dim=True),
}
QUIET: Final = Style(dim=True)
_DONE_STYLE: Final = Style(color="green")
GAP: Final = 2
_DROPPED_FIRST: Final = ("MODE", "URL", "CHECKED", "PID", "VERSION", "MODEL", "CRASHES", "RESTARTS")
"""What a narrow terminal does without, in this order; `status SERVER` shows all of it."""

_MIN_MODEL_WIDTH: Final = 14
"""Enough to tell models apart; with less room the column goes."""

_MIN_SERVER_WIDTH: Final = 12
"""What is left of a name where the reason needs the room."""

_SHORT_SERVER_WIDTH: Final = 8
"""The same where a load needs the room as well."""

_LOAD_OR_REASON: Final = "LOAD/REASON"
_LOADS: Final = frozenset({"LOAD", _LOAD_OR_REASON})
_WRAPPED: Final = frozenset({"REASON", _LOAD_OR_REASON})
_BARE: Final = ("SERVER", "STATE")
_NUMBERS: Final = frozenset({"RESTARTS", "CRASHES", "PID"})
_ELSEWHERE: Final = frozenset({"STAGE", "DONE", "LEFT", "WANTED", "NEXT"})
"""What is one column here, and only where a server loads, or is told beside the reason."""

_Row: TypeAlias = dict[str, str]


def print_once(drawing: RenderableType) -> None:
    """Draws, and is done."""
    _console().print(drawing)


def live() -> Live:
    """A place to draw on again and again; the last drawing stays when it is left."""
    return Live(console=_console(), auto_refresh=False)


def height() -> int:
    """The lines of the terminal."""
    return _console().height


def width() -> int:
    """The columns of the terminal."""
    return _console().width


def line_count(drawing: RenderableType) -> int:
    """The lines that it takes on this terminal."""
    return len(_console().render_lines(drawing))


def warnings(notes: Sequence[str]) -> list[RenderableType]:
    """Sentences to be shown above what is drawn."""
    return [Text(note, style=Style(color="yellow")) for note in notes]


def state_style(state: str) -> Style:
    """How the word for that state is drawn."""
    return _STATE_STYLES.get(state, QUIET)


def with_bar(text: Text) -> Text:
    """The text with the bar in it, and that a load stalled, in colour."""
    text.highlight_regex(f"{DONE_SIGN}+", _DONE_STYLE)
    text.highlight_regex(f"{OPEN_SIGN}+", QUIET)
    text.highlight_words([STALLED], _STATE_STYLES["failed"])
    return text


def servers_table(
    view: ServersView,
    now_unix_seconds: float,
    notes: Sequence[str] = (),
    max_lines: int | None = None,
) -> RenderableType:
    """Servers as a table as wide as the terminal, the worst first, below a line that sums it up.

    With `max_lines` the last line counts the servers that there is no room for.
    """
    head = Text(summary(view), style=QUIET)
    if not view["servers"]:
        return Group(head, *warnings(notes))
    above = Group(head, *warnings(notes), Text())
    servers = rows_in_order(view)
    if max_lines is None:
        return Group(above, _table(servers, now_unix_seconds))
    return Group(above, _cut_table(servers, now_unix_seconds, max_lines - line_count(above)))


def server_grid(
    server: ServerView,
    gpus: GpusView | None,
    now_unix_seconds: float,
    notes: Sequence[str] = (),
) -> RenderableType:
    """One server in full."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style=QUIET, no_wrap=True)
    grid.add_column(overflow="fold")
    for row in detail_rows(server, gpus, now_unix_seconds):
        text = Text(row.text)
        if row.state is not None:
            text.highlight_words([row.state], state_style(row.state))
        grid.add_row(row.label, text)
    return Group(*warnings(notes), grid)


def _console() -> Console:
    return Console(highlight=False, emoji=False)


def _cut_table(servers: list[ServerView], now: float, max_lines: int) -> RenderableType:
    """As many rows as there is room for below the heading, at least one, and what is left out."""
    count = max(1, min(len(servers), max_lines - 1))
    while True:
        table = _table(servers[:count], now)
        rest = servers[count:]
        drawing = Group(table, _left_out(rest)) if rest else table
        # A long reason may need a second line.
        excess = line_count(drawing) - max_lines
        if excess <= 0 or count == 1:
            return drawing
        count = max(1, count - excess)


def _left_out(servers: Sequence[ServerView]) -> Text:
    return Text(
        f"… {len(servers)} more ({state_counts(servers)})",
        style=QUIET,
        no_wrap=True,
        overflow="ellipsis",
    )


def _table(servers: Sequence[ServerView], now: float) -> Table:
    rows, widths = _fitting([_cells(server, now) for server in servers], servers, width())
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style=QUIET)
    for heading, cells in widths.items():
        table.add_column(
            heading,
            justify="right" if heading in _NUMBERS else "left",
            no_wrap=heading not in _WRAPPED,
            overflow="fold" if heading in _WRAPPED else "ellipsis",
            width=cells,
        )
    for row, server in zip(rows, servers, strict=True):
        table.add_row(*(_styled(heading, row[heading], server["state"]) for heading in widths))
    return table


def _fitting(
    rows: list[_Row], servers: Sequence[ServerView], available: int
) -> tuple[list[_Row], dict[str, int]]:
    """The rows with as much as there is room for, and their columns; no word is ever broken."""
    for layout in _layouts(rows, servers):
        widths = fit(_widths(layout.rows), available, layout.min_server)
        if total_width(widths) <= available and widths[layout.wrapped] >= layout.min_wrapped:
            return layout.rows, widths
    bare = [{heading: row[heading] for heading in _BARE} for row in rows]
    return bare, fit(_widths(bare), available, 1)


class _Layout(NamedTuple):
    """Rows to try; a name gets `min_server` columns, the one that wraps `min_wrapped`, or more."""

    rows: list[_Row]
    min_server: int
    min_wrapped: int
    wrapped: str = "REASON"


def _layouts(rows: list[_Row], servers: Sequence[ServerView]) -> Iterator[_Layout]:
    """What to try, the best first.

    A load is worth more than what a narrow terminal does without, than how long a state holds, and
    than the whole name. Where there is no room beside it for a reason, both share a column: hardly
    a server has both.
    """
    longest_word = max(len(word) for row in rows for word in row["REASON"].split())
    if any(load_of(server) for server in servers):
        with_bar, without_bar, shortest = zip(*map(drawn_forms, servers), strict=True)
        whole = _widths(rows)["SERVER"]
        for loads, has_since, min_server in (
            (with_bar, True, whole),
            (without_bar, True, whole),
            (with_bar, False, whole),
            (without_bar, False, whole),
            (shortest, False, _MIN_SERVER_WIDTH),
        ):
            cells = zip(rows, loads, strict=True)
            told = [_with_load(row, load, has_since=has_since) for row, load in cells]
            yield _Layout(told, min_server, longest_word)
        for loads in (without_bar, shortest):
            cells = zip(rows, loads, strict=True)
            told = [_with_load_or_reason(row, load) for row, load in cells]
            longest = max(longest_word, *map(len, loads))
            yield _Layout(told, _SHORT_SERVER_WIDTH, longest, _LOAD_OR_REASON)
    yield _Layout(rows, _MIN_SERVER_WIDTH, longest_word)
    without_since = [{h: text for h, text in row.items() if h != "SINCE"} for row in rows]
    yield _Layout(without_since, _MIN_SERVER_WIDTH, longest_word)


def _with_load(row: _Row, load: str, *, has_since: bool) -> _Row:
    """The row with a load beside the state."""
    cells = []
    for heading, text in row.items():
        if heading == "SINCE":
            cells += [(heading, text)] * has_since + [("LOAD", load)]
        else:
            cells.append((heading, text))
    return dict(cells)


def _with_load_or_reason(row: _Row, load: str) -> _Row:
    told = row["REASON"] if load == UNKNOWN else load
    return {**{heading: row[heading] for heading in _BARE}, _LOAD_OR_REASON: told}


def _widths(rows: Sequence[_Row]) -> dict[str, int]:
    return {
        heading: max(len(heading), *(Text(row[heading]).cell_len for row in rows))
        for heading in rows[0]
    }


def fit(
    widths: dict[str, int], available: int, min_server: int = _MIN_SERVER_WIDTH
) -> dict[str, int]:
    """The columns that there is room for, and how wide each may be."""
    widths = dict(widths)
    for heading in _DROPPED_FIRST:
        excess = total_width(widths) - available
        if excess <= 0:
            break
        if heading == "MODEL" and widths.get(heading, 0) - excess >= _MIN_MODEL_WIDTH:
            widths[heading] -= excess
            break
        widths.pop(heading, None)
    return _without_excess(widths, available, min_server)


def _without_excess(widths: dict[str, int], available: int, min_server: int) -> dict[str, int]:
    """A name may be cut; a reason never is: it gets more lines where all else does not help."""
    widths = dict(widths)
    excess = max(0, total_width(widths) - available)
    cut = min(excess, max(0, widths["SERVER"] - min_server))
    widths["SERVER"] -= cut
    for heading in _WRAPPED & widths.keys():
        widths[heading] = max(len(heading), widths[heading] - (excess - cut))
    return widths


def total_width(widths: dict[str, int]) -> int:
    """All columns, and the gaps between them."""
    return sum(widths.values()) + GAP * (len(widths) - 1)


def _cells(server: ServerView, now: float) -> _Row:
    cells = dict(zip(HEADINGS, table_row(server, now), strict=True))
    # A model's folder or owner is the part that can be missed.
    cells["MODEL"] = cells["MODEL"].rstrip("/").rpartition("/")[2] or cells["MODEL"]
    reason = () if cells["REASON"] == UNKNOWN else (cells["REASON"],)
    cells["REASON"] = ", ".join((*reason, *remarks(server, now))) or UNKNOWN
    return {heading: text for heading, text in cells.items() if heading not in _ELSEWHERE}


def _styled(heading: str, text: str, state: str) -> Text:
    if heading == "STATE":
        return Text(text, style=state_style(state))
    drawn = Text(text, style=QUIET if text == UNKNOWN else "")
    return with_bar(drawn) if heading in _LOADS else drawn
