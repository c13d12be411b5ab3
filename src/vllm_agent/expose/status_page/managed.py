"""What the agent does with a managed server, and what it kept of the last end, on the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vllm_agent.expose.managed_view import (
    PHASE_WORDS,
    next_restart_unix_seconds,
    shown_model,
    wanted_model,
)
from vllm_agent.expose.status_page.words import moment, span
from vllm_agent.lifecycle.states import ALIVE_PHASES, Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.lifecycle.management import Management
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot


def managed_lines(server: ServerSnapshot, now: Instant) -> Iterator[str]:
    """How far the agent is with what was asked of it; nothing of one that is only watched."""
    asked = server.life.management
    if asked is None:
        return
    yield from _what_follows(server, asked, now)
    if asked.model_before is not None:
        model = escape(shown_model(wanted_model(server) or ""))
        yield f"model {model} is to take the place of {escape(shown_model(asked.model_before))}"
    last = asked.last_stop
    if last is not None and server.life.phase not in ALIVE_PHASES:
        how = ", with SIGKILL" if last.is_forced else ""
        yield f'<span class="quiet">its last stop took {span(last.seconds)}{how}</span>'
    if server.policy.is_dry_run:
        yield '<span class="quiet">restart.dry_run: restarts are only told of</span>'


def evidence_line(server: ServerSnapshot) -> Iterator[str]:
    """Where the evidence of the last end is, on the agent's host; nothing where none is kept."""
    ending = server.life.last_ending
    if ending is not None and ending.bundle:
        path = f"<code>{escape(ending.bundle)}</code>"
        yield f'<span class="quiet">evidence of its last end: {path}</span>'


def _what_follows(server: ServerSnapshot, asked: Management, now: Instant) -> Iterator[str]:
    phase, planned = server.life.phase, next_restart_unix_seconds(server)
    words = PHASE_WORDS.get(phase)
    if planned is not None:
        when = moment(planned, now) if planned > now.unix_seconds else "now"
        yield f"the agent starts it again {when}"
    elif phase in {Phase.BACKOFF, Phase.REFUSED}:
        yield "the agent does not start it again for now"
    elif words is not None:
        since = "" if asked.stop is None else f" {moment(asked.stop.since.unix_seconds, now)}"
        yield f"{words}{since if phase is Phase.TERMINATING else ''}"
    elif phase is Phase.ABSENT and not asked.is_goal_up:
        yield "it stays down until an operator starts it"
