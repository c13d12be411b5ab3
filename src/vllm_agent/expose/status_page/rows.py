"""The rows of the status page, one server each. Everything from outside is escaped here."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from vllm_agent.expose.json_view import reason_of
from vllm_agent.lifecycle.reasons import REASON_TEXT

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

_UNKNOWN: Final = '<span class="quiet">unknown</span>'
_UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_FOREVER: Final = float("inf")


def server_row(server: ServerSnapshot, now: Instant) -> str:
    """One row of the table."""
    life = server.life
    href = f"api/v1/servers/{quote(server.name, safe='', errors='replace')}"
    last_check = server.last_check
    cells = (
        f'<th scope="row"><a href="{escape(href)}">{escape(server.name)}</a></th>',
        f"<td>{_state(life, now)}</td>",
        f"<td>{moment(life.entered.unix_seconds, now)}</td>",
        f'<td class="why">{_why(life)}</td>',
        f"<td>{_text(server.model_name)}{_more_models(server)}</td>",
        f"<td>{_text(server.version)}</td>",
        f'<td class="number">{sum(life.tally.restarts.values())}</td>',
        f'<td class="number">{sum(life.tally.crashes.values())}</td>',
        f"<td>{moment(last_check.unix_seconds if last_check else None, now)}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def moment(unix_seconds: float | None, now: Instant) -> str:
    """A time in UTC and how far it is from now; the agent does not know the reader's time zone."""
    if unix_seconds is None:
        return _UNKNOWN
    try:
        at = datetime.fromtimestamp(unix_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return _UNKNOWN
    distance = now.unix_seconds - unix_seconds
    far = _amount(abs(distance))
    away = f"{far} ago" if distance >= 0 else f"in {far}"
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{away}<br>{at:%Y-%m-%d %H:%M:%S} UTC</time>'


def _amount(seconds: float) -> str:
    for unit_seconds, name in _UNITS:
        amount = int(seconds // unit_seconds)
        if amount:
            return f"{amount} {name}{'' if amount == 1 else 's'}"
    return "0 seconds"


def _state(life: ServerLife, now: Instant) -> str:
    state = f'<span class="state state-{life.state}">{life.state}</span>'
    notes = []
    if life.is_sleeping:
        notes.append("sleeping")
    until = life.maintenance_until_unix_seconds
    if until == _FOREVER:
        notes.append("in maintenance")
    elif until is not None:
        notes.append(f"in maintenance until {moment(until, now)}")
    if life.budget.is_limit_reached:
        notes.append("<strong>restart limit reached</strong>")
    return "<br>".join((state, *notes))


def _why(life: ServerLife) -> str:
    reason = reason_of(life)
    parts = [] if reason is None else [f"<strong>{reason}</strong>"]
    if life.detail:
        parts.append(escape(life.detail))
    if reason is not None:
        parts.append(f'<span class="quiet">{escape(REASON_TEXT[reason].advice)}</span>')
    return "<br>".join(parts)


def _more_models(server: ServerSnapshot) -> str:
    others = [name for name in server.model_names if name != server.model_name]
    if not others:
        return ""
    return f'<br><span class="quiet">also {escape(", ".join(others))}</span>'


def _text(value: str | None) -> str:
    return escape(value) if value else _UNKNOWN
