"""The rows of the status page, one server each. Everything from outside is escaped here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from vllm_agent.expose.advice import advice_on_server
from vllm_agent.expose.json_view import reason_of
from vllm_agent.expose.process_view import main_pid
from vllm_agent.expose.status_page.load import load_lines
from vllm_agent.expose.status_page.managed import evidence_line, managed_lines
from vllm_agent.expose.status_page.words import UNKNOWN, moment

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.observations import Component, Instant
    from vllm_agent.snapshot import ServerSnapshot

COLUMNS: Final = (
    "Server",
    "State",
    "Since",
    "Why, and what to do",
    "Model",
    "vLLM",
    "Processes",
    "Restarts",
    "Crashes",
    "Last check",
)

SHORT_CONTAINER_ID: Final = 12
"""Digits of a container's id that `docker ps` shows, and that every tool accepts."""

_FOREVER: Final = float("inf")


def server_row(server: ServerSnapshot, now: Instant) -> str:
    """One row of the table."""
    life = server.life
    checked = None if server.last_check is None else server.last_check.unix_seconds
    cells = (
        f'<th scope="row">{server_link(server.name)}</th>',
        f'<td class="condition">{_state(life, now)}</td>',
        f"<td>{moment(life.entered.unix_seconds, now)}</td>",
        f'<td class="why">{_why(server, now)}</td>',
        f'<td class="model" data-label="Model">{_models(server)}</td>',
        f'<td data-label="vLLM">{_text(server.version)}</td>',
        f'<td data-label="Processes">{_processes(server)}</td>',
        f'<td class="number" data-label="Restarts">{sum(life.tally.restarts.values())}</td>',
        f'<td class="number" data-label="Crashes">{sum(life.tally.crashes.values())}</td>',
        f'<td data-label="Last check">{moment(checked, now)}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def server_link(name: str) -> str:
    """The server's name, which leads to everything known of it."""
    href = f"api/v1/servers/{quote(name, safe='', errors='replace')}"
    return f'<a class="name" title="{escape(name)}" href="{escape(href)}">{escape(name)}</a>'


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


def _why(server: ServerSnapshot, now: Instant) -> str:
    """Why it does not serve: what failed, what the agent does, or how far its load is."""
    reason = reason_of(server.life)
    parts = [] if reason is None else [f"<strong>{reason}</strong>"]
    if server.life.detail:
        parts.append(escape(server.life.detail))
    if reason is not None:
        parts.append(f'<span class="quiet">{escape(advice_on_server(server, reason))}</span>')
    more = (*managed_lines(server, now), *load_lines(server, now), *evidence_line(server))
    return "<br>".join((*parts, *more))


def _models(server: ServerSnapshot) -> str:
    """The main model without the folder or owner; the title has it in full, and all others."""
    others = [name for name in server.model_names if name != server.model_name]
    more = f' <span class="quiet">+{len(others)}</span>' if others else ""
    every = ", ".join(filter(None, (server.model_name, *others)))
    full = server.model_name or ""
    short = full.rstrip("/").rpartition("/")[2] or full
    return f'<span class="name" title="{escape(every)}">{_text(short)}</span>{more}'


def _processes(server: ServerSnapshot) -> str:
    """The main process; the title has who keeps it up and every part of it. None for a URL."""
    tree, pid = server.tree, main_pid(server)
    if server.sighting is None and tree is None:
        return ""
    parts = [] if tree is None else list(tree.components)
    told = ", ".join((*_keepers(server), *(f"{_component(p)} {p.pid}" for p in parts)))
    text = "none" if pid is None else f"PID {pid}"
    lines = [f'<span title="{escape(told)}">{text}</span>']
    if tree is not None and tree.is_main_alive:
        lines += [f"{escape(_component(p))} is gone" for p in parts if not p.is_alive]
    if tree is not None and tree.orphans:
        lines.append(f"<strong>{len(tree.orphans)} orphaned</strong>")
    return "<br>".join(lines)


def _component(part: Component) -> str:
    return f"{part.role} {part.rank}".rstrip()


def _keepers(server: ServerSnapshot) -> list[str]:
    sighting = server.sighting
    if sighting is None:
        return []
    container = sighting.container_id
    short = None if container is None else f"container {container[:SHORT_CONTAINER_ID]}"
    return [keeper for keeper in (sighting.unit, short) if keeper]


def _text(value: str | None) -> str:
    return escape(value) if value else UNKNOWN
