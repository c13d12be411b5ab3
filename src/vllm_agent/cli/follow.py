"""Follows a server until it is in a state, and tells of it meanwhile on standard error."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from vllm_agent.cli.agent_client import server_path
from vllm_agent.cli.load_bar import load_of
from vllm_agent.cli.load_lines import NOT_SEEN_YET, load_parts
from vllm_agent.cli.outcome import NoAgentError, TimedOutError
from vllm_agent.cli.patience import Patience
from vllm_agent.cli.text import age, age_of, local_time, plain
from vllm_agent.cli.wait_lines import StderrLines, WaitLook
from vllm_agent.config.duration import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.cli.agent_client import AgentClient
    from vllm_agent.cli.wait_lines import Display
    from vllm_agent.expose.json_view import ServerView
    from vllm_agent.lifecycle.states import ServerState

POLL_SECONDS: Final = 0.2
"""Shorter than anybody notices; an unchanged server costs the agent a tenth of a millisecond."""


def follow(
    client: AgentClient,
    name: str,
    states: tuple[ServerState, ...],
    asked_seconds: float | None,
    is_vain: Callable[[ServerView], bool] = lambda _: False,
) -> ServerView:
    """The server as soon as it is in one of the states, or as soon as waiting on is in vain.

    An agent that goes away meanwhile is waited for.

    Raises:
        TimedOutError: patience ended first; without `asked_seconds` it is that of a load.
    """
    patience = Patience(asked_seconds, states, time.monotonic())
    path = server_path(name)
    answer = client.read(path)
    server: ServerView = answer.json
    trouble = ""
    if server["state"] in states or is_vain(server):
        return server
    with display() as shown:
        while True:
            now = time.monotonic()
            patience.note(None if trouble else server, now)
            rest = patience.rest_seconds(now)
            shown.show(WaitLook(server, states, rest, trouble, now, time.time()))
            if rest <= 0:
                break
            time.sleep(min(POLL_SECONDS, rest))
            try:
                changed = client.read_if_changed(path, answer.etag)
            except NoAgentError as error:
                # It may only be restarting; patience bounds this.
                trouble = error.line
                continue
            trouble = ""
            if changed is not None:
                answer, server = changed, changed.json
                if server["state"] in states or is_vain(server):
                    return server
    spent = patience.spent_seconds(time.monotonic())
    limit = age(spent) if asked_seconds is None else format_duration(asked_seconds)
    raise TimedOutError(_still(server, states, limit, time.time()))


def display() -> Display:
    """Where it is told of: a bar where a person looks, lines for a log."""
    if sys.stderr is not None and os.isatty(sys.stderr.fileno()):
        from vllm_agent.cli.wait_terminal import LiveBar, can_draw  # noqa: PLC0415 - see terminal

        if can_draw():
            return LiveBar()
    return StderrLines()


def _still(
    server: ServerView, states: tuple[ServerState, ...], limit: str, now_unix_seconds: float
) -> str:
    why = f" ({server['reason']})" if server["reason"] else ""
    name = plain(server["name"])
    load = load_of(server)
    told = ""
    if load is not None:
        at = load["last_progress_timestamp_seconds"]
        moved = NOT_SEEN_YET
        if at is not None:
            moved = f"last progress {age_of(at, now_unix_seconds)} ago, at {local_time(at)}"
        told = f": {', '.join((*load_parts(load), moved))}"
    return (
        f"{name} is still {server['state']}{why}, not {' or '.join(states)}, after {limit}{told}; "
        f"'vllm-agent status {name}' says more"
    )
